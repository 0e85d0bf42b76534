"""Time spans of sources, and warnings if user or item rows begin after the events that need them.

Input: slices of `offline_source`. Output: the first and the last time, and messages. Footers of Parquet files give the
span without reading a row; from any other source the oldest time interval is read.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray

from rec_ray.config import FeatureSettings
from rec_ray.data.feature_coverage import describe_now
from rec_ray.feature_store.api import RepoConfig
from rec_ray.feature_store.offline_source import SourceSlice, read_slice
from rec_ray.logs import LOGGER
from rec_ray.schema import EVENT_TIMESTAMP


@dataclass(frozen=True)
class TimeSpan:
    """The first and the last time of the rows of a source, in UTC."""

    first: datetime
    last: datetime

    @property
    def middle(self) -> datetime:
        """Midpoint of the span."""
        return self.first + (self.last - self.first) / 2


def span_in_footers(slices: Sequence[SourceSlice]) -> TimeSpan | None:
    """Return the span from the statistics of Parquet footers; None if a part has none."""
    found: list[TimeSpan] = []
    for path, parts in _by_path(slices).items():
        filesystem, time = parts[0].filesystem, parts[0].source.time
        if path is None or filesystem is None:
            return None
        with filesystem.open_input_file(path) as handle:
            metadata = pq.read_metadata(handle)
        leaves = [metadata.schema.column(number).path for number in range(metadata.num_columns)]
        column = leaves.index(time) if time in leaves else None
        for group in (number for part in parts for number in part.row_groups):
            statistics = None if column is None else metadata.row_group(group).column(column).statistics
            if statistics is None or not statistics.has_min_max:
                return None
            found.append(TimeSpan(_as_utc(statistics.min), _as_utc(statistics.max)))
    return _whole(found)


def first_time(config: RepoConfig, slices: Sequence[SourceSlice]) -> datetime | None:
    """Return the first time of a source, from rows if no footer has it; None if no row has a time.

    Raises:
        FeatureStoreError: the offline store does not respond.
    """
    span = span_in_footers(slices)
    if span is not None:
        return span.first
    # Time intervals are sorted; parts of files are not.
    in_order = bool(slices) and slices[0].path is None
    found: list[datetime] = []
    for part in slices:
        earliest = pc.min(read_slice(config, part)[EVENT_TIMESTAMP])
        if earliest.is_valid:
            found.append(_as_utc(earliest.as_py()))
            if in_order:
                break
    return min(found, default=None)


def describe_late_rows(what: str, first: datetime, middle: datetime) -> str | None:
    """Return a message if the first row of a view is later than the middle of the events; None otherwise."""
    if first <= middle:
        return None
    begun, half = (f"{time:%Y-%m-%d %H:%M}" for time in (first, middle))
    return f"{what} has no row before {begun}, and half of the events are older than {half}"


def note_times(
    config: RepoConfig,
    features: FeatureSettings,
    event_times: npt.NDArray[np.int64],
    users: Sequence[SourceSlice],
    items: Sequence[SourceSlice],
) -> tuple[tuple[str, ...], dict[str, int]]:
    """Compare the times of user and item rows with those of the events; log and return warnings.

    Returns also the second of the newest row of each view whose files have it in their footers.

    event_times: [n] a sample of event times in microseconds, n at least 1.
    """
    middle = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=int(np.median(event_times)))
    notes: list[str] = []
    by_view: dict[str, list[SourceSlice]] = {}
    all_views: dict[str, list[SourceSlice]] = {}
    for side, declared, history, slices in (
        ("user", features.user, features.user_history, users),
        ("item", features.item, features.item_history, items),
    ):
        if declared and history == "as_of_now":
            notes.append(describe_now(side))
        for part in slices if declared else ():
            all_views.setdefault(part.source.what, []).append(part)
            if history != "as_of_now":
                by_view.setdefault(part.source.what, []).append(part)
    newest = [_newest_second.remote(slices) for slices in all_views.values()]
    begun = ray.get([_first_time.remote(config, slices) for slices in by_view.values()])
    for what, first in zip(by_view, begun, strict=True):
        if first is not None and (said := describe_late_rows(what, first, middle)):
            notes.append(said)
    for note in notes:
        LOGGER.warning("%s", note)
    found = dict(zip(all_views, ray.get(newest), strict=True))
    return tuple(notes), {what: second for what, second in found.items() if second is not None}


@ray.remote(num_cpus=1)
def _first_time(config: RepoConfig, slices: Sequence[SourceSlice]) -> datetime | None:
    return first_time(config, slices)


@ray.remote(num_cpus=1)
def _newest_second(slices: Sequence[SourceSlice]) -> int | None:
    span = span_in_footers(slices)
    return None if span is None else int(span.last.timestamp())


def _by_path(slices: Sequence[SourceSlice]) -> dict[str | None, list[SourceSlice]]:
    by_path: dict[str | None, list[SourceSlice]] = {}
    for part in slices:
        by_path.setdefault(part.path, []).append(part)
    return by_path


def _whole(spans: Iterable[TimeSpan]) -> TimeSpan | None:
    spans = list(spans)
    return TimeSpan(min(span.first for span in spans), max(span.last for span in spans)) if spans else None


def _as_utc(value: Any) -> datetime:
    if not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day)  # a date
    time: datetime = value.to_pydatetime(warn=False) if hasattr(value, "to_pydatetime") else value
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
