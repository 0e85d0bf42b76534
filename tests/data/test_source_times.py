"""The time that sources span, from footers or from rows, and views that begin after the events."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rec_ray.data.source_times import TimeSpan, describe_late_rows, first_time, span_in_footers
from rec_ray.feature_store.api import FileSource
from rec_ray.feature_store.offline_source import FeatureSource, slice_source

START = datetime(2024, 1, 1, tzinfo=UTC)


def slices_of(folder: Path, **options: Any) -> Any:
    """Two files of two row groups, with a list in front of the time; the last time is day 7."""
    for number in range(2):
        days = [number * 4 + day for day in range(4)]
        times = pa.array([(START + timedelta(days=day)).replace(tzinfo=None) for day in days], pa.timestamp("us"))
        table = pa.table({"user_id": ["u"] * 4, "tags": [["a"]] * 4, "at": times})
        pq.write_table(table, folder / f"{number}.parquet", row_group_size=2, **options)
    source = FileSource(name="s", path=str(folder), timestamp_field="at")
    config = SimpleNamespace(offline_store=SimpleNamespace(type="duckdb"))
    store: Any = SimpleNamespace(repo_path=str(folder), config=config)
    return slice_source(store, FeatureSource.of(source, {"user_id": "user_id"}, what="view 's'"), 2)


@pytest.mark.parametrize("options", [{}, {"write_statistics": False}, {"use_deprecated_int96_timestamps": True}])
def test_the_span_comes_from_footers_or_else_from_rows(tmp_path: Path, options: dict[str, Any]) -> None:
    slices = slices_of(tmp_path, **options)
    span = TimeSpan(START, START + timedelta(days=7))
    assert len(slices) == 4
    config: Any = None
    assert first_time(config, slices) == span.first
    assert span_in_footers(slices) == (None if options else span)
    assert first_time(config, slices[:0:-1]) == START + timedelta(days=2)
    assert first_time(config, []) is None


def test_a_view_that_begins_after_the_middle_of_the_events_is_named() -> None:
    first = START + timedelta(days=5)
    assert describe_late_rows("view 'users'", first, START + timedelta(days=5)) is None
    said = describe_late_rows("view 'users'", first, START + timedelta(days=4))
    assert said == (
        "view 'users' has no row before 2024-01-06 00:00, and half of the events are older than 2024-01-05 00:00"
    )
