"""Sample of the events, read without Ray, for the checks before a run.

Input: a Feast store and the settings. Output: the suspicious findings of `event_notes` about some slices of the event
source, read in this process. A sample can miss findings of a run, which counts all events.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rec_ray.config import FeastSettings, FeatureSettings
from rec_ray.data.event_notes import EventFacts, event_notes
from rec_ray.data.events import as_events, combine_chunks
from rec_ray.data.user_events import count_users
from rec_ray.feature_store.api import FeatureStore
from rec_ray.feature_store.offline_source import SourceSlice, event_source, read_slice, slice_source
from rec_ray.feature_store.point_in_time import portable_config
from rec_ray.feature_store.registry import read_registry
from rec_ray.retrieval.features.dislikes import is_disliked
from rec_ray.retrieval.features.user_share import usual_bound
from rec_ray.schema import EVENT_TYPE, EVENT_VALUE, USER_ID

SAMPLED_SLICES = 4
"""Slices of `feast.join_rows` rows that are read from files; from another source the newest time interval is read."""


def examine_events(store: FeatureStore, feast: FeastSettings, features: FeatureSettings) -> tuple[int, list[str]]:
    """Return the number of events read and the suspicious findings about them.

    Raises:
        As `load_features`, for events.
    """
    source = event_source(read_registry(store), feast, features)
    config, now = portable_config(store), datetime.now(UTC)
    exclude = features.interaction.exclude_users
    parts = choose_slices(slice_source(store, source, feast.join_rows))
    tables = [as_events(read_slice(config, part), part.first_row, now, exclude) for part in parts]
    if not tables:
        return 0, []
    events = pa.concat_tables(tables)
    meaning = features.interaction
    facts = count_events(events, meaning.min_positive_value)
    most = meaning.events_per_user if meaning.events_per_user != "auto" else usual_bound(count_users(events[USER_ID]))
    return events.num_rows, event_notes(facts, meaning, most)


def choose_slices(slices: Sequence[SourceSlice]) -> list[SourceSlice]:
    """Return at most `SAMPLED_SLICES` slices of files, spread over all, or the newest time interval."""
    if not slices or slices[-1].path is None:
        return list(slices[-1:])
    places = np.unique(np.linspace(0, len(slices) - 1, SAMPLED_SLICES).round().astype(int))
    return [slices[place] for place in places]


def count_events(events: pa.Table, min_positive_value: float | None) -> EventFacts:
    """Count a table of events. events: `schema.INTERACTIONS`."""
    values = events[EVENT_VALUE].to_numpy().astype(float)
    values = np.where(np.isfinite(values), values, np.nan)
    users = _counted(events[USER_ID])
    largest = max(users.items(), key=lambda user: (user[1], user[0])) if users else ("", 0)
    return EventFacts(
        events=events.num_rows,
        types=_counted(events[EVENT_TYPE]),
        values=int(np.isfinite(values).sum()),
        disliked=int(is_disliked(values, min_positive_value).sum()),
        largest_user=largest,
    )


def _counted(column: pa.ChunkedArray) -> dict[str, int]:
    counted = pc.value_counts(combine_chunks(column.drop_null()))
    return dict(zip(counted.field("values").to_pylist(), counted.field("counts").to_pylist(), strict=True))
