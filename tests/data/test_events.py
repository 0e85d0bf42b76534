import itertools
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest

from rec_ray.config import EvaluationSettings
from rec_ray.contracts import RowCounts
from rec_ray.data.events import (
    active_users,
    as_events,
    as_query_markers,
    as_sign_ups,
    count_rows,
    split_times,
    survey_events,
    with_query_rows,
)
from rec_ray.errors import SchemaError
from rec_ray.schema import INTERACTIONS, TIMESTAMP

DAY = timedelta(days=1)
START = datetime(2024, 1, 1, tzinfo=UTC)
NOW = START + 100 * DAY


def slice_of(users, items, times, **more):
    return pa.table(
        {
            "user_id": pa.array(users, pa.string()),
            "item_id": pa.array(items, pa.string()),
            "event_timestamp": pa.array(times, TIMESTAMP),
            **more,
        }
    )


def test_rows_that_cannot_be_used_are_counted_by_why_and_the_others_keep_their_numbers():
    table = slice_of(
        ["a", None, "b", "", "c", "d", None],
        ["x", "x", None, "x", "x", "x", ""],
        [START, START, START, START, None, NOW + DAY, None],
    )
    assert as_events(table, 10, NOW).select(["user_id", "event_order"]).to_pylist() == [
        {"user_id": "a", "event_order": 10}
    ]
    late = slice_of(["a", "b"], ["x", "x"], [NOW, NOW + timedelta(microseconds=1)])
    assert as_events(late, 7, NOW)["event_order"].to_pylist() == [7], "an event of this very instant is kept"
    counted = count_rows([survey_events(table, NOW), survey_events(late, NOW)])
    assert counted == RowCounts(read=9, kept=2, null_keys=4, null_timestamps=1, in_the_future=2)


def test_users_who_are_left_out_leave_neither_events_nor_markers_and_are_counted():
    table = slice_of(["bot", "a", "bot", None], ["x", "x", "y", "z"], [START, START, START, START])
    assert as_events(table, 0, NOW, ["bot"])["user_id"].to_pylist() == ["a"]
    assert count_rows([survey_events(table, NOW, ["bot"])]) == RowCounts(4, 1, null_keys=1, of_excluded_users=2)
    assert active_users(table, NOW, START, ["bot"]).to_pylist() == ["a"]
    users = pa.table({"user_id": ["a", "bot"], "event_timestamp": pa.array([START] * 2, TIMESTAMP)})
    assert as_query_markers(users, 0, ["bot"])["user_id"].to_pylist() == ["a"]
    assert as_sign_ups(users, NOW, ["bot"])["user_id"].to_pylist() == ["a"]


def test_types_and_ratings_take_one_shape_whatever_the_column():
    many = slice_of(["a"] * 3, ["x"] * 3, [START] * 3)
    types = pa.array(["view", None, "cart"]).dictionary_encode()
    ratings = pa.array([Decimal("1.5"), None, Decimal("-3")], pa.decimal128(5, 1))
    events = as_events(many.append_column("event_type", types).append_column("event_value", ratings), 0, NOW)
    assert events.schema.equals(INTERACTIONS)
    assert events["event_type"].to_pylist() == ["view", None, "cart"]
    assert events["event_value"].to_pylist() == [1.5, None, -3.0]
    assert as_events(many, 0, NOW)["event_value"].null_count == 3


def test_true_and_false_are_the_values_1_and_0():
    table = slice_of(["a"] * 3, ["x"] * 3, [START] * 3, event_value=pa.array([True, None, False]))
    assert as_events(table, 0, NOW)["event_value"].to_pylist() == [1.0, None, 0.0]


def test_a_rating_that_is_text_is_an_error_that_says_so():
    table = slice_of(["a"], ["x"], [START], event_value=pa.array(["good"]))
    with pytest.raises(SchemaError, match=r"value_field is string .* expected a number"):
        as_events(table, 0, NOW)


def test_the_split_falls_at_the_shares_of_the_events():
    times = [START + n * timedelta(hours=1) for n in range(1000)]
    one = [survey_events(slice_of(["a"] * 1000, ["x"] * 1000, times), NOW)]
    # The same events in slices of different sizes, one of them empty, in any order.
    cuts = [(900, 1000), (0, 0), (0, 850), (850, 900)]
    many = [survey_events(slice_of(["a"] * (e - b), ["x"] * (e - b), times[b:e]), NOW) for b, e in cuts]
    settings = EvaluationSettings(test_fraction=0.1, validation_fraction=0.05)
    for surveys in (one, many):
        found = split_times(surveys, settings, NOW)
        assert abs(times.index(found.validation_start) - 850) <= 2
        assert abs(times.index(found.test_start) - 900) <= 2
        assert found.as_of == NOW


def test_leave_one_out_divides_no_time():
    surveys = [survey_events(slice_of(["a"], ["x"], [START]), NOW)]
    found = split_times(surveys, EvaluationSettings(split="leave_one_out"), NOW)
    assert (found.validation_start, found.test_start, found.as_of) == (NOW, NOW, NOW)


def test_a_user_table_gives_each_user_once_and_blank_ids_are_no_users():
    markers = as_query_markers(pa.table({"user_id": pa.array(["b", None, "a", "b", ""])}), 0)
    assert markers.schema.equals(INTERACTIONS)
    assert markers["user_id"].to_pylist() == ["b", "a"]
    assert markers["item_id"].null_count == 2


def test_query_rows_end_the_rows_of_each_user_even_when_events_are_later():
    events = as_events(slice_of(["b", "a", "b"], ["x", "y", "z"], [START + 9 * DAY, START, START]), 0, NOW)
    markers = as_query_markers(pa.table({"user_id": ["c", "a"]}), 0)
    instants = [START + 3 * DAY, START + 5 * DAY]
    rows = with_query_rows(pa.concat_tables([markers, events]), instants)
    found = list(zip(*(rows[name].to_pylist() for name in ("user_id", "item_id", "event_timestamp")), strict=True))
    assert found == [
        ("a", "y", START),
        ("a", None, instants[0]),
        ("a", None, instants[1]),
        ("b", "z", START),
        ("b", "x", START + 9 * DAY),
        ("b", None, instants[0]),
        ("b", None, instants[1]),
        ("c", None, instants[0]),
        ("c", None, instants[1]),
    ]


def test_events_of_one_instant_keep_the_order_of_the_source():
    items = [f"i{number}" for number in range(50)]
    events = as_events(slice_of(["a"] * 50, items, [START] * 50), 0, NOW)
    shuffled = events.take(pa.array(np.random.default_rng(0).permutation(50)))
    assert with_query_rows(shuffled, [NOW])["item_id"].to_pylist() == [*items, None]


@pytest.mark.parametrize("cuts", [[0, 10], [0, 4, 5, 9, 10], list(range(11))])
def test_the_split_of_few_events_does_not_depend_on_how_they_are_sliced(cuts):
    days = [0, 2, 5, 5, 4, 5, 12, 13, 3, 17]
    times = [START + number * DAY for number in days]
    surveys = [
        survey_events(slice_of(["a"] * (e - b), ["x"] * (e - b), times[b:e]), NOW) for b, e in itertools.pairwise(cuts)
    ]
    found = split_times(surveys, EvaluationSettings(test_fraction=0.25, validation_fraction=0.3), NOW)
    assert (found.validation_start, found.test_start) == (START + 5 * DAY, START + 12 * DAY)
