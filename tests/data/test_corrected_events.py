"""A source with a `created_timestamp_column`: a row that corrects another replaces it, from Feast to timelines."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rec_ray.config import EvaluationSettings, FeastSettings, FeatureSettings, InteractionSettings
from rec_ray.data.events import as_events
from rec_ray.errors import SchemaError
from rec_ray.retrieval.features.timelines import TIMELINES
from rec_ray.schema import INTERACTIONS, REVISIONS, TIMESTAMP
from rec_ray.storage.object_store import open_storage

START = datetime(2024, 1, 1, tzinfo=UTC)
ROWS = [
    # user, item, session, rating, day, created on day
    ("a", "x", 1, 1.0, 0, 0),
    ("a", "y", 1, 2.0, 1, 1),
    ("a", "x", 1, 5.0, 0, 9),  # corrects the first, from another file
    ("a", "x", 2, 3.0, 0, 1),  # another session: another event
    ("b", "x", 1, -1.0, 0, 4),  # the like was withdrawn
    ("b", "x", 1, 4.0, 0, 3),
    ("b", "y", 1, 4.0, 5, 5),
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, make_repo: Any) -> Any:
    from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
    from feast.types import Float64, String

    folder = tmp_path_factory.mktemp("corrected")
    users, items, sessions, ratings, days, created = zip(*ROWS, strict=True)

    def times(numbers: Any) -> pa.Array:
        return pa.array([START + timedelta(days=number) for number in numbers], pa.timestamp("us", "UTC"))

    events = pa.table(
        {
            "user_id": users,
            "item_id": items,
            "session": sessions,
            "rating": ratings,
            "event_timestamp": times(days),
            "written": times(created),
        }
    )
    (folder / "events").mkdir()
    pq.write_table(events.slice(0, 2), folder / "events" / "0.parquet")
    pq.write_table(events.slice(2), folder / "events" / "1.parquet")
    pq.write_table(
        pa.table({"item_id": ["x", "y"], "name": ["X", "Y"], "event_timestamp": times([-1, -1])}), folder / "i"
    )
    pq.write_table(pa.table({"user_id": ["a"], "city": ["Rome"], "event_timestamp": times([-1])}), folder / "u")
    keys = [Entity(name=name, join_keys=[name], value_type=ValueType.STRING) for name in ("user_id", "item_id")]
    session = Entity(name="session", join_keys=["session"], value_type=ValueType.INT64)

    def view(name: str, path: str, entities: list[Any], fields: dict[str, Any], created: str = "") -> Any:
        source = FileSource(
            name=f"{name}_source",
            path=str(folder / path),
            timestamp_field="event_timestamp",
            created_timestamp_column=created,
        )
        schema = [Field(name=field, dtype=kind) for field, kind in fields.items()]
        return FeatureView(name=name, entities=entities, ttl=timedelta(0), schema=schema, source=source)

    rated = view("rated", "events", [*keys, session], {"rating": Float64}, "written")
    people, things = view("people", "u", keys[:1], {"city": String}), view("things", "i", keys[1:], {"name": String})
    services = [
        FeatureService(name=f"{name}_service", features=[features])
        for name, features in (("user", people), ("item", things), ("interaction", rated))
    ]
    return make_repo(folder / "repo", [*keys, session, rated, people, things, *services])


@pytest.mark.usefixtures("processes")
@pytest.mark.usefixtures("local_ray")
def test_a_correction_replaces_the_row_before_it_and_is_counted(
    store: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from rec_ray.data.load_features import load_features
    from rec_ray.data.training_data import prepare_training_data

    features = FeatureSettings(interaction=InteractionSettings(type_field=None, value_field="rating"))
    now = START + timedelta(days=30)
    tables = load_features(store, FeastSettings(join_rows=3), features, EvaluationSettings(), now)
    assert tables.rows.kept == len(ROWS), "rows are counted before users are brought together"
    data = prepare_training_data(tables, features, "leave_one_out", open_storage(str(tmp_path)), "data")
    assert data.facts["corrected"] == 2
    assert "2 interactions are left out, because a row of the same keys and time was created later" in caplog.messages
    timelines = {row["user_id"]: row for row in pq.read_table(data.timelines).select(TIMELINES.names).to_pylist()}
    # Of the largest rating, 5; ties in the order of the files.
    assert timelines["a"]["weight"] == pytest.approx([1.0, 0.6, 0.4])
    assert timelines["a"]["item_index"] == [1, 1, 2]
    assert timelines["b"]["weight"] == pytest.approx([0.0, 0.8])


def test_a_slice_with_times_of_creation_has_two_columns_more() -> None:
    table = pa.table(
        {
            "user_id": ["a", "b"],
            "item_id": ["x", "y"],
            "event_timestamp": pa.array([START, START], TIMESTAMP),
            "event_created": pa.array([START, None], pa.timestamp("ns")),
            "event_key_0": ["x", "y"],
            "event_key_1": pa.array([1, None]),
        }
    )
    events = as_events(table, 0, START)
    assert events.schema.names == [*INTERACTIONS.names, *REVISIONS.names]
    assert events["event_created"].to_pylist() == [int(START.timestamp() * 1e6), None]
    assert events["event_key"].to_pylist() == ["\nx\n1", "\ny\n"]
    place = table.schema.get_field_index("event_created")
    with pytest.raises(SchemaError, match="the created_timestamp_column of the events is string; expected a timestamp"):
        as_events(table.set_column(place, "event_created", pa.array(["now", "then"])), 0, START)
