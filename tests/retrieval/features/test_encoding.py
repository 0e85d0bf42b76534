"""Raw events into timelines, worked by hand: splits, weights, repeats, and the user's features as of each event."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from rec_ray.errors import SchemaError
from rec_ray.retrieval.features.dislikes import with_disliked
from rec_ray.retrieval.features.encoding import LEAST_VALUE, LabelledEvents, Labelling, encode_timelines, label_events
from rec_ray.retrieval.features.preprocessing import Preprocessor, collect_statistics, fit_features
from rec_ray.retrieval.features.timelines import TIMELINES, Timelines
from rec_ray.schema import INTERACTIONS, FeatureDeclaration, Split, SplitTimes
from tests.retrieval.tensors import to_batch

TRAIN, VALIDATION, TEST = Split

START = datetime(2024, 1, 1, tzinfo=UTC)
ITEMS = pa.array(["a", "b", "c", "d", "ü" * 3000])
TIMES = SplitTimes(START + timedelta(days=10), START + timedelta(days=20), START + timedelta(days=30))
DAYS = [(time - START).days for time in (TIMES.validation_start, TIMES.test_start, TIMES.as_of)]

Event = tuple[Any, ...]


def block_of(users: dict[str, list[Event]], **features: list[Any]) -> pa.Table:
    """Rows of events (day, item, type, value) by user, each user's followed by the three query rows.

    features: a value for each row, query rows included.
    """
    rows: list[dict[str, Any]] = []
    for user, events in users.items():
        for event in [*events, *((day, None) for day in DAYS)]:
            day, item, kind, value = (*event, None, None)[:4]
            row = {"user_id": user, "item_id": item, "event_timestamp": START + timedelta(days=day)}
            rows.append(row | {"event_order": len(rows), "event_type": kind, "event_value": value})
    table = pa.Table.from_pylist(rows, schema=INTERACTIONS)
    for name, values in features.items():
        table = table.append_column(name, values if isinstance(values, pa.Array) else pa.array(values))
    return table


def labelling(split: str = "time", **meaning: Any) -> Labelling:
    arguments: dict[str, Any] = {"weights": {}, "negative_types": ()} | meaning
    return Labelling(split=split, validation_start=TIMES.validation_start, test_start=TIMES.test_start, **arguments)


def split_of(events: list[Event], split: str = "leave_one_out", **meaning: Any) -> str:
    """Labels of one user's events in words: t, v, T."""
    labelled = label_events(block_of({"u": events}), ITEMS, labelling(split, **meaning))
    return "".join("tvT"[label] for label in labelled.split)


def preprocessor_of(block: pa.Table, **declarations: FeatureDeclaration) -> Preprocessor:
    fit = {"text_buckets": 8, "max_vocabulary": 100}
    return Preprocessor(
        users=fit_features(collect_statistics(block, declarations), declarations, **fit),
        items=fit_features(collect_statistics(block, {}), {}, **fit),
        item_ids=("a", "b"),
        event_types=("buy", "view"),
    )


def encode(block: pa.Table, split: str = "time", **declarations: FeatureDeclaration) -> tuple[pa.Table, Timelines]:
    preprocessor = preprocessor_of(block, **declarations)
    table = encode_timelines(label_events(block, ITEMS, labelling(split)), preprocessor)
    assert table.schema == TIMELINES
    return table, Timelines.from_table(table, preprocessor.users.shape)


def numbers_as_of(timelines: Timelines) -> list[float]:
    """The first number of the feature row as of each event and query."""
    return timelines.user_features.numeric[timelines.feature_row, 0].round(decimals=4).tolist()


# --- splits


def test_an_event_at_the_instant_of_a_cut_off_belongs_to_what_begins_there() -> None:
    second = 1 / 86_400
    days = [0, 10 - second, 10, 10 + second, 20 - second, 20, 29]
    assert split_of([(day, "a") for day in days], "time") == "ttvvvTT"
    microsecond = timedelta(microseconds=1)
    block = block_of({"u": [(0, "a"), (1, "b")]})
    times = [TIMES.test_start - microsecond, TIMES.test_start, TIMES.as_of, TIMES.as_of, TIMES.as_of]
    at = block.schema.get_field_index("event_timestamp")
    block = block.set_column(at, block.schema.field(at), pa.array(times, block.schema.field(at).type))
    assert label_events(block, ITEMS, labelling()).split.tolist() == [VALIDATION, TEST]


def test_a_validation_without_length_has_no_events() -> None:
    same = replace(labelling(), validation_start=TIMES.test_start)
    labelled = label_events(block_of({"u": [(19, "a"), (20, "b")]}), ITEMS, same)
    assert labelled.split.tolist() == [TRAIN, TEST]


@pytest.mark.parametrize(
    ("kinds", "split"),
    [
        ("p", "t"),  # the only positive is learned from
        ("pp", "tT"),  # the last one is tested
        ("ppp", "tvT"),
        ("ppppp", "tttvT"),
        ("n", "t"),
        ("nnn", "ttt"),
        ("np", "tt"),
        ("pn", "tt"),
        ("npnpn", "tttTT"),  # behind the last positive: not before the test
        ("ppnp", "tvvT"),  # between validation and test: seen by the test, not by the validation
        ("pnpp", "ttvT"),
        ("pnpnpn", "ttvvTT"),
        ("npnnpnnpnn", "ttttvvvTTT"),
        ("nppn", "ttTT"),
    ],
)
def test_leave_one_out_by_hand(kinds: str, split: str) -> None:
    """p: positive, n: declared negative; t, v, T: learned from, validation, test."""
    events = [(day, "abcd"[day % 4], {"p": "buy", "n": "dislike"}[kind]) for day, kind in enumerate(kinds)]
    assert split_of(events, negative_types=("dislike",)) == split
    # The same between other users.
    block = block_of({"first": [(0, "a", "buy")] * 1 + [(1, "b", "buy")], "u": events, "last": [], "more": events})
    labelled = label_events(block, ITEMS, labelling("leave_one_out", negative_types=("dislike",)))
    assert "".join("tvT"[label] for label in labelled.split) == "tT" + split + split


def test_facts_count_what_can_be_learned_and_tested() -> None:
    events = [(0, "a", "buy"), (1, "b", "dislike"), (2, "c", "buy"), (21, "d", "buy"), (22, "a", "dislike")]
    labelled = label_events(block_of({"u": events, "v": []}), ITEMS, labelling(negative_types=("dislike",)))
    assert labelled.facts == {
        "users": 2,
        "corrected": 0,
        "unknown_items": 0,
        "duplicates": 0,
        "bad_values": 0,
        "values": 0,
        "disliked": 0,
        "beyond_events": 0,
        "beyond_users": 0,
        "events": 5,
        "training_positives": 2,
        "test_positives": 1,
    }
    assert labelled.is_training.tolist() == [True, True, True, False, False]
    assert labelled.is_before_test.tolist() == [True, True, True, False, False]


# --- which events are used


def test_events_of_unknown_items_are_left_out_and_counted() -> None:
    block = block_of({"u": [(0, "a"), (1, "nope"), (2, "ü" * 3000)], "v": [(0, "nope")], "w": [(0, "b")]})
    labelled = label_events(block, ITEMS, labelling())
    assert labelled.item_index.tolist() == [1, 5, 2]
    assert labelled.user.tolist() == [0, 0, 2]
    assert labelled.user_ids.to_pylist() == ["u", "v", "w"]
    assert (labelled.facts["unknown_items"], labelled.facts["users"]) == (2, 3)


def test_only_exact_repeats_are_dropped_and_the_first_is_kept() -> None:
    events: list[Event] = [
        (1, "a", "buy", 1.0),
        (1, "a", "buy", 1.0),  # a repeat
        (1, "a", "buy", 2.0),  # another value
        (1, "a", "view", 1.0),  # another type
        (1, "a", None, 1.0),
        (1, "a", None, 1.0),  # a repeat
        (1, "a", "buy", None),
        (1, "a", "buy", None),  # a repeat
        (1, "b", "buy", 1.0),  # another item
        (1, "a", "buy", 1.0),  # a repeat, not next to its first
        (2, "a", "buy", 1.0),  # another time
    ]
    block = block_of({"u": events, "v": events[:1]})
    labelled = label_events(block, ITEMS, labelling())
    assert labelled.facts["duplicates"] == 4
    assert labelled.row.tolist() == [0, 2, 3, 4, 6, 8, 10, 14]
    assert labelled.table["event_order"].to_pylist() == labelled.row.tolist()


def test_events_of_one_instant_keep_the_order_of_the_source() -> None:
    labelled = label_events(block_of({"u": [(1, "d"), (1, "a"), (1, "c"), (1, "b")]}), ITEMS, labelling())
    assert labelled.item_index.tolist() == [4, 1, 3, 2]


# --- weights


def test_weights_are_by_type_zero_if_negative_and_one_if_unknown() -> None:
    events = [(0, "a", "buy"), (1, "b", "view"), (2, "c", "dislike"), (3, "d", "other"), (4, "a", None)]
    meaning = labelling(weights={"buy": 5.0, "view": 0.5, "dislike": 9.0}, negative_types=("dislike", "hate"))
    assert label_events(block_of({"u": events}), ITEMS, meaning).weight.tolist() == [5, 0.5, 0, 1, 1]


def test_a_rating_scales_the_weight_by_its_share_of_the_largest_and_is_negative_up_to_zero() -> None:
    values = [5.0, 2.5, 0.1, 0.0, -3.0, None, 7.0]
    events = [(day, "abcd"[day % 4], "rate", value) for day, value in enumerate(values)]
    meaning = labelling(weights={"rate": 2.0})
    labelled = label_events(block_of({"u": events}), ITEMS, meaning)
    assert labelled.value_maximum == 7.0
    assert labelled.weight.tolist() == [2, 2, 2, 0, 0, 2, 2]
    scaled = label_events(block_of({"u": events}), ITEMS, meaning.with_value_maximum(5.0))
    np.testing.assert_allclose(scaled.weight, [2, 1, 2 * LEAST_VALUE, 0, 0, 2, 2], rtol=1e-6)
    assert (scaled.facts["values"], scaled.facts["disliked"]) == (6, 2)


def test_the_lowest_positive_value_divides_likes_from_dislikes() -> None:
    stars = [(day, "abcd"[day % 4], "rate", float(value)) for day, value in enumerate([1, 2, 3, 4, 5])]
    labelled = label_events(block_of({"u": stars}), ITEMS, labelling(min_positive_value=3.0, value_maximum=5.0))
    np.testing.assert_allclose(labelled.weight, [0, 0, 0.6, 0.8, 1], rtol=1e-6)
    thumbs = [(0, "a", None, -1.0), (1, "b", None, 0.0), (2, "c", None, 1.0)]
    all_but_thumbs_down = labelling(min_positive_value=0.0)
    assert label_events(block_of({"u": thumbs}), ITEMS, all_but_thumbs_down).weight.tolist() == [0, 1, 1]


def test_a_dislike_is_never_a_target_and_leaves_the_positive_before_it_as_one() -> None:
    events = [(0, "a", None, 1.0), (1, "b", None, 1.0), (2, "c", None, 1.0), (3, "d", None, -1.0)]
    assert split_of(events) == "tvTT"
    labelled = label_events(block_of({"u": events}), ITEMS, labelling("leave_one_out"))
    assert labelled.facts["test_positives"] == 1
    by_time = label_events(block_of({"u": [(25, "a", None, -1.0), (26, "b", None, 1.0)]}), ITEMS, labelling())
    assert by_time.facts["test_positives"] == 1


def test_a_history_tells_dislikes_from_likes_by_their_event_type() -> None:
    events = [(0, "a", "rate", 5.0), (1, "b", "rate", -1.0), (2, "c", None, -1.0), (3, "d", "skip", -1.0)]
    labelled = label_events(block_of({"u": events}), ITEMS, labelling(negative_types=("skip",)))
    assert labelled.table["event_type"].to_pylist() == ["rate", "rate (disliked)", "(disliked)", "skip"]
    assert with_disliked(["rate", ""]) == ["rate", "rate (disliked)", "", "(disliked)"]


def test_values_that_are_not_finite_are_missing_and_counted() -> None:
    values = [float("nan"), float("inf"), -float("inf"), None, 4.0]
    events = [(day, "a", "rate", value) for day, value in enumerate(values)]
    labelled = label_events(block_of({"u": events}), ITEMS, labelling(value_maximum=8.0))
    assert labelled.facts["bad_values"] == 3
    assert labelled.value_maximum == 4.0
    assert labelled.weight.tolist() == [1, 1, 1, 1, 0.5]


@pytest.mark.parametrize("values", [[None, None], [-1.0, -2.0], [0.0, float("nan")]])
def test_ratings_without_a_positive_one_have_no_maximum(values: list[float | None]) -> None:
    events = [(day, "a", "rate", value) for day, value in enumerate(values)]
    assert label_events(block_of({"u": events}), ITEMS, labelling()).value_maximum == 0.0


# --- blocks as they come


def timelines_equal(left: pa.Table, right: pa.Table) -> bool:
    return left.combine_chunks().equals(right.combine_chunks())


def test_chunks_slices_and_large_strings_encode_the_same() -> None:
    users = {"u": [(0, "a", "buy"), (12, "b", "view")], "naïve": [], "x" * 5000: [(3, "c", "view"), (25, "d", "buy")]}
    block = block_of(users, age=[1, 2, 2, 2, 3, 4, 4, 4, 5, 6, 6, 6, 7])
    age = FeatureDeclaration("numeric")
    preprocessor = preprocessor_of(block, age=age)

    def encoded(table: pa.Table) -> pa.Table:
        return encode_timelines(label_events(table, ITEMS, labelling()), preprocessor)

    expected = encoded(block)
    assert expected["user_id"].to_pylist() == list(users)
    more = block_of({"before": [(0, "a", "buy")] * 3}, age=[9] * 6)
    assert timelines_equal(encoded(pa.concat_tables([more, block, more]).slice(6, len(block))), expected)
    whole = pa.concat_tables([more, block, more]).combine_chunks()
    assert timelines_equal(encoded(whole.slice(6, len(block))), expected)
    assert timelines_equal(encoded(pa.concat_tables([block.slice(i, 1) for i in range(len(block))])), expected)
    large = pa.schema([f.with_type(pa.large_string()) if f.type == pa.string() else f for f in block.schema])
    assert timelines_equal(encoded(block.cast(large)), expected)


def test_a_block_without_rows_has_no_timelines() -> None:
    block = block_of({"u": [(0, "a")]}, age=[1, 1, 1, 1])
    table, timelines = encode(block.slice(0, 0), age=FeatureDeclaration("numeric"))
    assert table.num_rows == len(timelines) == 0


def test_rows_that_are_not_one_user_after_another_are_refused() -> None:
    block = block_of({"u": [(0, "a")], "v": [(0, "b")]})
    with pytest.raises(ValueError, match="rows of a user are not adjacent"):
        label_events(pa.concat_tables([block.slice(4), block, block.slice(4)]), ITEMS, labelling())
    with pytest.raises(ValueError, match="expected 3 query rows for each of 2 users, got 5"):
        label_events(block.slice(0, 7), ITEMS, labelling())
    # Two too few of one user and two too many of the other are no six.
    wrong = pa.concat_tables([block.slice(0, 2), block.slice(4), block.slice(6, 2)])
    with pytest.raises(ValueError, match="expected 3 query rows for each of 2 users, got 6"):
        label_events(wrong, ITEMS, labelling())


# --- features as of each event


def test_the_features_of_each_event_and_query_are_those_of_its_row() -> None:
    """Ages: u changes at its second event and for now; v never; w has queries only; -1 marks an unused row."""
    block = block_of(
        {"u": [(0, "a"), (1, "nope"), (12, "b"), (13, "c")], "v": [(5, "d")], "w": []},
        age=[10, -1, 20, 20, 20, 20, 30, 7, 7, 7, 7, 1, 1, 2],
    )
    table, timelines = encode(block, age=FeatureDeclaration("numeric"))
    ages = np.array([10, -1, 20, 20, 20, 20, 30, 7, 7, 7, 7, 1, 1, 2])
    scores = ((ages - ages.mean()) / ages.std()).round(4)
    np.testing.assert_allclose(numbers_as_of(timelines), np.delete(scores, 1), atol=2e-4)
    # Only distinct rows are stored.
    assert table["feature_row"].to_pylist() == [[0, 1, 1, 1, 1, 2], [0, 0, 0, 0], [0, 0, 1]]
    assert len(timelines.user_features) == 3 + 1 + 2


def test_features_that_return_to_an_old_value_are_right_at_each_event() -> None:
    block = block_of({"u": [(0, "a"), (1, "b"), (2, "c")]}, age=[1, 5, 1, 1, 5, 5])
    timelines = encode(block, age=FeatureDeclaration("numeric"))[1]
    assert numbers_as_of(timelines) == [-1, 1, -1, -1, 1, 1]


def test_neighbours_with_the_same_features_do_not_share_a_row() -> None:
    table, timelines = encode(
        block_of({"u": [(0, "a")], "v": [(0, "a")]}, age=[1] * 8), age=FeatureDeclaration("numeric")
    )
    assert table["feature_row"].to_pylist() == [[0, 0, 0, 0], [0, 0, 0, 0]]
    assert len(timelines.user_features) == 2


def test_leave_one_out_asks_with_the_features_as_of_the_held_out_event() -> None:
    """Events at ages 1, 2, 3, 4 and now 9: validated on the third, tested on the fourth."""
    block = block_of(
        {"u": [(day, "abcd"[day]) for day in range(4)], "v": [(1, "a")]}, age=[1, 2, 3, 4, 9, 9, 9, 5, 6, 6, 6]
    )
    declared = FeatureDeclaration("numeric")
    timelines = encode(block, "leave_one_out", age=declared)[1]
    ages = np.array([1, 2, 3, 4, 3, 4, 9, 5, 6, 6, 6])
    fitted = preprocessor_of(block, age=declared).users.scales["age"]
    np.testing.assert_allclose(numbers_as_of(timelines), (ages - fitted[0]) / fitted[1], atol=2e-4)


CATEGORIES, TEXT, NUMBER = FeatureDeclaration("categories"), FeatureDeclaration("text"), FeatureDeclaration("numeric")
CATEGORY, TIME = FeatureDeclaration("categorical"), FeatureDeclaration("timestamp")
PAIRS = [[1, 2], [2, 1], [1, 2], [1, 2], None, [3, 4]]
CHANGES: dict[str, tuple[pa.Array, FeatureDeclaration]] = {
    "lists": (pa.array([["a"], ["b"], ["b"], ["b", "a"], None, []]), CATEGORIES),
    "lists with nulls": (pa.array([["a", None], ["b", None], [None, "b"], None, [None], []]), CATEGORIES),
    "large lists": (pa.array([["a"], ["b"], None, ["a"], [], []], pa.large_list(pa.large_string())), CATEGORIES),
    "fixed lists": (pa.array(PAIRS, pa.list_(pa.int64(), 2)), CATEGORIES),
    "vectors": (pa.array([[1.0], [2.0], [2.0], None, [0.5], [1.0]]), FeatureDeclaration("vector", length=1)),
    "fixed vectors": (pa.array(PAIRS, pa.list_(pa.float32(), 2)), FeatureDeclaration("vector", length=2)),
    "dictionary": (pa.array(["a", "b", None, "", "b", "b"]).dictionary_encode(), CATEGORY),
    "large text": (pa.array(["a b", "b", None, "", "b", "b"], pa.large_string()), TEXT),
    "numbers": (pa.array([1.0, None, float("nan"), 2.0, 2.0, 1.0]), NUMBER),
    "truth": (pa.array([True, False, None, True, True, True]), CATEGORY),
    "times": (pa.array([0, 1, None, 10**15, 1, 1], pa.timestamp("us", "UTC")), TIME),
    "nothing": (pa.nulls(6), CATEGORY),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_of_any_kind_of_feature_is_seen(name: str) -> None:
    """Three events and three queries of one user: what is stored as of each equals encoding each row for itself."""
    column, declared = CHANGES[name]
    block = block_of({"u": [(0, "a"), (1, "b"), (2, "c")]}, f=column)
    preprocessor = preprocessor_of(block, f=declared)
    encoded = encode_timelines(label_events(block, ITEMS, labelling()), preprocessor)
    timelines = Timelines.from_table(encoded, preprocessor.users.shape)
    stored = timelines.user_features.select(torch.from_numpy(timelines.feature_row))
    expected = to_batch(preprocessor.users.encode(block))
    for part in ("numeric", "tokens", "token_counts", "vector"):
        assert getattr(stored, part).tolist() == getattr(expected, part).tolist(), part


def test_several_features_with_tokens_of_users_without_tokens() -> None:
    block = block_of(
        {"u": [(0, "a"), (1, "b")], "v": [], "w": [(0, "a")]},
        city=["x", "y", "y", "y", "y", None, None, None, "x", "x", "x", "y"],
        tags=[["p", "q"], ["p", "q"], [], [], [], None, None, None, [], ["q"], ["q"], ["q"]],
    )
    declared = {"city": FeatureDeclaration("categorical"), "tags": FeatureDeclaration("categories")}
    table, timelines = encode(block, **declared)
    # city: y 1, x 2; tags: q 3, p 4.
    assert table["user_tokens"].to_pylist() == [[2, 4, 3, 1, 4, 3, 1], [], [2, 2, 3, 1, 3]]
    assert table["user_token_counts"].to_pylist() == [[1, 2, 1, 2, 1, 0], [0, 0], [1, 0, 1, 1, 1, 1]]
    assert timelines.feature_row.tolist() == [0, 1, 2, 2, 2, 3, 3, 3, 4, 5, 5, 6]


def test_a_feature_that_the_model_reads_and_the_events_lack_is_named() -> None:
    block = block_of({"u": [(0, "a")]}, age=[1, 1, 1, 1])
    preprocessor = preprocessor_of(block, age=FeatureDeclaration("numeric"))
    with pytest.raises(SchemaError, match="there is no user feature 'age'; the events have 'user_id', 'item_id'"):
        encode_timelines(label_events(block.drop_columns(["age"]), ITEMS, labelling()), preprocessor)


# --- events in the table


def test_times_are_whole_seconds_and_types_by_the_vocabulary() -> None:
    block = block_of({"u": [(-20_000.00001, "d", "view"), (0, "a", "new"), (1, "a", None), (2, "b", "buy")]})
    table, _ = encode(block)
    assert table["item_index"].to_pylist() == [[4, 1, 1, 2]]
    assert table["event_type"].to_pylist() == [[2, 0, 0, 1]]
    zero = int(START.timestamp())
    assert table["event_seconds"].to_pylist() == [[zero - 20_000 * 86_400 - 1, zero, zero + 86_400, zero + 2 * 86_400]]


@pytest.mark.parametrize("types", [130, 40_000])
def test_there_can_be_very_many_event_types(types: int) -> None:
    block = block_of({"u": [(0, "a", f"{types - 1:05}"), (1, "a", "00000")]})
    preprocessor = replace(preprocessor_of(block), event_types=tuple(f"{i:05}" for i in range(types)))
    table = encode_timelines(label_events(block, ITEMS, labelling()), preprocessor)
    assert table["event_type"].to_pylist() == [[types, 1]]


def test_users_without_events_have_timelines_with_features_only() -> None:
    table, timelines = encode(
        block_of({"u": [], "v": [(0, "nope")]}, age=[1, 2, 2, 3, 4, 4, 4]), age=FeatureDeclaration("numeric")
    )
    assert table["item_index"].to_pylist() == [[], []]
    assert table["feature_row"].to_pylist() == [[0, 1, 1], [0, 0, 0]]
    assert timelines.query_row(2).tolist() == [1, 2]


def test_the_meaning_of_events_and_the_times_make_a_labelling() -> None:
    from rec_ray.config import InteractionSettings

    meaning = InteractionSettings(weights={"buy": 3}, negative_types=["dislike"], min_positive_value=2)
    made = Labelling.of(meaning, "time", TIMES).with_events_per_user(7)
    assert made == labelling(
        weights={"buy": 3.0}, negative_types=("dislike",), min_positive_value=2.0, events_per_user=7
    )
    assert made.with_value_maximum(5).value_maximum == 5


def test_lists_longer_than_arrow_can_count_are_refused_and_not_wrapped() -> None:
    from rec_ray.retrieval.ragged import lists_of

    with pytest.raises(pa.ArrowInvalid, match="not in range"):
        lists_of(np.array([2**31]), np.zeros(0), pa.float32())


def test_random_blocks_equal_a_loop_over_users() -> None:
    rng = np.random.default_rng(0)
    kinds = np.array(["buy", "dislike"])
    users = {
        f"u{u}": [
            (int(day), f"{'abcd?'[rng.integers(5)]}", str(rng.choice(kinds, p=[0.7, 0.3])))
            for day in np.sort(rng.integers(0, 30, rng.integers(0, 9)))
        ]
        for u in range(200)
    }
    labelled = label_events(block_of(users), ITEMS, labelling("leave_one_out", negative_types=("dislike",)))
    assert labels_by_user(labelled) == {user: looped(events) for user, events in users.items()}


def labels_by_user(labelled: LabelledEvents) -> dict[str, list[tuple[int, int]]]:
    found: dict[str, list[tuple[int, int]]] = {user: [] for user in labelled.user_ids.to_pylist()}
    names = labelled.user_ids.to_pylist()
    for user, item, split in zip(labelled.user, labelled.item_index, labelled.split, strict=True):
        found[names[user]].append((int(item), int(split)))
    return found


def looped(events: list[Event]) -> list[tuple[int, int]]:
    used = [event for event in dict.fromkeys(events) if event[1] != "?"]
    positive = [place for place, event in enumerate(used) if event[2] == "buy"]
    starts = {VALIDATION: len(used), TEST: len(used)}
    if len(positive) >= 2:
        starts[TEST] = starts[VALIDATION] = positive[-1]
    if len(positive) >= 3:
        starts[VALIDATION] = positive[-2]
    return [
        (
            "abcd".index(event[1]) + 1,
            TEST if place >= starts[TEST] else VALIDATION if place >= starts[VALIDATION] else TRAIN,
        )
        for place, event in enumerate(used)
    ]
