import contextlib
import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rec_ray.config import EvaluationSettings, FeastSettings, FeatureSettings
from rec_ray.config.loading import load_settings
from rec_ray.contracts import RowCounts
from rec_ray.errors import ConfigError, EmptyDataError
from rec_ray.schema import FeatureDeclaration, SplitTimes

pytestmark = [pytest.mark.usefixtures("processes"), pytest.mark.usefixtures("local_ray")]

START = datetime(2024, 1, 1, tzinfo=UTC)
NOW = datetime(2025, 1, 1, tzinfo=UTC)


def day(number):
    return START + timedelta(days=number)


def load(store, features, evaluation=None, as_of=NOW, **feast):
    from rec_ray.data.load_features import load_features

    return load_features(store, FeastSettings(**feast), features, evaluation or EvaluationSettings(), as_of)


def load_project(project):
    from rec_ray.runs.context import open_feature_store

    settings = load_settings(project / "rec_ray.yaml", environ={})
    return load(open_feature_store(settings), settings.features, settings.evaluation)


def blocks_of(dataset):
    import ray

    return [block for block in ray.get(dataset.to_arrow_refs()) if block.num_rows]


@contextlib.contextmanager
def blocks_of_at_most(size):
    """Ray Data cuts blocks that are larger than so many bytes, as it does from 192 MB on by default."""
    import ray.data

    context = ray.data.DataContext.get_current()
    before, context.target_max_block_size = context.target_max_block_size, size
    try:
        yield
    finally:
        context.target_max_block_size = before


def test_events_are_joined_point_in_time_and_no_block_is_cut_within_a_user(hand_worked):
    """Joins of 4 rows and hashed blocks: the rows are those worked out by hand, users whole, ties as in the files."""
    with blocks_of_at_most(64):
        tables = load(hand_worked.store, hand_worked.features, hand_worked.evaluation, hand_worked.as_of, join_rows=4)
        blocks = blocks_of(tables.interactions)
        items = blocks_of(tables.items)
    assert tables.split_times == SplitTimes(day(5), day(12), day(30))
    assert tables.rows == RowCounts(read=10, kept=10)
    assert max(block.nbytes for block in blocks) > 128, "no block would have been cut"
    instant = {2**62: "validation", 2**62 + 1: "test", 2**62 + 2: "now"}
    found = {}
    for block in blocks:
        for user in set(block["user_id"].to_pylist()):
            assert user not in found, f"the rows of user {user} lie in several blocks"
        for row in block.to_pylist():
            when = instant.get(row["event_order"], (row["event_timestamp"] - START).days)
            found.setdefault(row["user_id"], []).append((when, row["item_id"], row["city"], row["plan"]))
    assert found == hand_worked.expected
    times = {row["event_order"]: row["event_timestamp"] for block in blocks for row in block.to_pylist()}
    assert [times[2**62 + number] for number in range(3)] == [day(5), day(12), day(30)]

    columns = ("item_id", "as_of", "price")
    catalogue = [list(zip(*(block[name].to_pylist() for name in columns), strict=True)) for block in items]
    for rows in catalogue:
        names = [name for name, *_ in rows[: len(rows) // 2]]
        expected = [(name, instant) for instant in (day(12), day(30)) for name in names]
        assert [row[:2] for row in rows] == expected, "a block holds both instants of its items"
    prices = {row[:2]: row[2] for rows in catalogue for row in rows}
    assert sum(len(rows) for rows in catalogue) == len(prices) == 8
    for instant, price in ((day(12), None), (day(30), 4.0)):
        assert [prices[name, instant] for name in ("x", "y", "z", "new")] == [7.0, 2.0, 3.0, price]


def test_more_partitions_than_users(hand_worked):
    """Blocks without a row are no fault."""
    tables = load(hand_worked.store, hand_worked.features, hand_worked.evaluation, hand_worked.as_of, join_rows=2)
    assert sum(block.num_rows for block in blocks_of(tables.interactions)) == 10 + 3 * 4


def test_a_service_that_does_not_exist_is_named_beside_those_there_are(hand_worked):
    for setting in ("user_service", "item_service", "interaction_service"):
        with pytest.raises(ConfigError, match=r"no feature service 'nope' .* it has '\w+_service', '\w+_service'"):
            load(hand_worked.store, hand_worked.features, **{setting: "nope"})


def test_a_declared_feature_that_a_service_lacks_is_named(hand_worked):
    lacking = FeatureSettings(user={"age": FeatureDeclaration("numeric")})
    with pytest.raises(ConfigError, match=r"service 'user_service' has no field 'age'; there are 'city', "):
        load(hand_worked.store, lacking)
    with pytest.raises(ConfigError, match="service 'item_service' has no field 'title'"):
        load(hand_worked.store, FeatureSettings(item_name="title"))
    with pytest.raises(ConfigError, match=r"view 'happened' has no field 'interaction_type'; it has 'kind'"):
        load(hand_worked.store, FeatureSettings())


def test_only_active_users_are_read_and_nothing_is_held_out(hand_worked):
    """`a` has an event on day 17, `b` on days 12 and 13; all their events are read, with their features."""
    from rec_ray.data.load_features import find_active_users, load_features

    store, features = hand_worked.store, hand_worked.features

    def active(as_of, since):
        return find_active_users(store, FeastSettings(), features, as_of, since)

    import ray

    found = active(hand_worked.as_of, day(12))
    assert (found.count, sorted(ray.get(found.ids).to_pylist())) == (2, ["a", "b"])
    assert found.rows == RowCounts(read=10, kept=10)
    assert active(hand_worked.as_of, day(17) + timedelta(seconds=1)).count == 0
    assert ray.get(active(day(16), day(13)).ids).to_pylist() == ["b"]

    tables = load_features(
        store, FeastSettings(), features, hand_worked.evaluation, hand_worked.as_of, active=active(NOW, day(17))
    )
    assert tables.split_times == SplitTimes(*[hand_worked.as_of] * 3)
    rows = [row for block in blocks_of(tables.interactions) for row in block.to_pylist()]
    assert {row["user_id"] for row in rows} == {"a"}
    events = [(row["item_id"], row["city"], row["plan"]) for row in rows if row["item_id"] is not None]
    assert events == [(item, city, plan) for _, item, city, plan in hand_worked.expected["a"] if item is not None]
    assert [(row["city"], row["plan"]) for row in rows if row["item_id"] is None] == [("Bern", None)] * 3


def test_fields_that_filters_name_are_read_though_no_model_reads_them(hand_worked, tmp_path):
    from rec_ray.config import CandidateSettings, FilterSettings
    from rec_ray.data.load_features import load_features
    from rec_ray.data.training_data import prepare_training_data
    from rec_ray.storage.object_store import open_storage

    rule = {"item": "price", "must_be": "at_most", "user": "plan"}
    candidates = CandidateSettings(filters=FilterSettings(rules=[rule]), segment="city", fresh_share=0.1)
    features = hand_worked.features.model_copy(
        update={"item": {}, "user": {"city_number": FeatureDeclaration("numeric")}}
    )
    tables = load_features(
        hand_worked.store,
        FeastSettings(),
        features,
        hand_worked.evaluation,
        hand_worked.as_of,
        candidates=candidates,
    )
    assert tables.raw_items.names == ["price", "first_seen"] and tables.raw_users.names == ["plan", "city"]
    data = prepare_training_data(tables, features, "time", open_storage(str(tmp_path)), "data")
    prices = {}
    for name in ("catalogue", "catalogue_now"):
        rows = pq.read_table(getattr(data, name)).to_pylist()
        prices[name] = {row["item_id"]: row["raw_price"] for row in rows}
    assert prices["catalogue"] == {"x": 7.0, "y": 2.0, "z": 3.0, "new": None}, "as of day 12"
    assert prices["catalogue_now"] == {"x": 7.0, "y": 2.0, "z": 3.0, "new": 4.0}
    users = {row["user_id"]: row for row in pq.read_table(data.timelines).to_pylist()}
    for user, rows in hand_worked.expected.items():
        (test,) = [row for row in rows if row[0] == "test"]
        (now,) = [row for row in rows if row[0] == "now"]
        assert (users[user]["raw_test_city"], users[user]["raw_test_plan"]) == test[2:]
        assert (users[user]["raw_now_city"], users[user]["raw_now_plan"]) == now[2:]


def test_services_that_lack_the_wanted_keys_are_an_error_that_shows_their_views(hand_worked):
    with pytest.raises(ConfigError, match=r"'user_service' has no view with 'user_id' and 'item_id' as join keys"):
        load(hand_worked.store, hand_worked.features, interaction_service="user_service")
    with pytest.raises(ConfigError, match=r"'user_service' has no view keyed by 'item_id' alone"):
        load(
            hand_worked.store,
            hand_worked.features.model_copy(update={"item": {}}),
            item_service="user_service",
        )


def test_no_event_or_no_item_up_to_now_is_an_error(hand_worked):
    with pytest.raises(EmptyDataError, match="no usable interaction among 10 rows"):
        load(hand_worked.store, hand_worked.features, as_of=day(-1))
    # Events that are older than every item.
    early = Path(hand_worked.store.get_feature_view("happened").batch_source.path) / "early.parquet"
    row = {"user_id": ["a"], "item_id": ["x"], "kind": ["buy"], "event_timestamp": [day(-9)]}
    pq.write_table(pa.table(row), early)
    try:
        with pytest.raises(EmptyDataError, match=r"'item_service' has no item as of 2023-12-2\d"):
            load(hand_worked.store, hand_worked.features, as_of=day(-8))
    finally:
        early.unlink()


def test_odd_rows_are_counted_and_said_and_the_others_are_all_kept(tmp_path, make_project, caplog):
    """Null keys and times, events to come, times without a zone, numbers as ids, repeats, blank users and items."""
    times = [day(0), day(1), None, day(2), day(2), day(2), day(900), day(3)]
    naive = pa.array([time and time.replace(tzinfo=None) for time in times], pa.timestamp("ms"))
    project = make_project(
        tmp_path,
        interactions={
            "user_id": pa.array([1, None, 1, 2, 2, 2, 2, 99]),
            "item_id": pa.array([10, 10, 10, 11, 11, 12, 10, 4]),
            "event_timestamp": naive,
        },
        users={"user_id": ["1", "2", None, "", "3"], "age": [1.0, 2.0, 3.0, 4.0, 5.0]},
        items={"item_id": ["10", None, "11", "12", ""], "price": [1.0, 2.0, 3.0, 4.0, 5.0]},
    )
    caplog.set_level(logging.INFO, "rec_ray")
    tables = load_project(project)
    assert tables.rows == RowCounts(read=8, kept=5, null_keys=1, null_timestamps=1, in_the_future=1)
    said = "of 8 interactions 3 are left out: 1 with null keys, 1 with null timestamps, 1 with a future time"
    assert caplog.messages.count(said) == 1
    assert "2 items with a null or empty id are left out" in caplog.messages
    (block,) = blocks_of(tables.interactions)
    events = block.filter(pa.compute.is_valid(block["item_id"])).select(["user_id", "item_id", "age"])
    assert [tuple(row.values()) for row in events.to_pylist()] == [
        ("1", "10", 1.0),
        ("2", "11", 2.0),
        ("2", "11", 2.0),
        ("2", "12", 2.0),
        ("99", "4", None),
    ]
    assert set(block["user_id"].to_pylist()) == {"1", "2", "3", "99"}
    (catalogue,) = blocks_of(tables.items)
    assert catalogue["item_id"].to_pylist() == ["10", "11", "12"] * 2
