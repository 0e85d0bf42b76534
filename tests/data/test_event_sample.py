"""Which slices a check reads, and what it counts in them."""

from datetime import UTC, datetime

import numpy as np
import pyarrow as pa

from rec_ray.data.event_notes import EventFacts
from rec_ray.data.event_sample import choose_slices, count_events
from rec_ray.feature_store.offline_source import FeatureSource, SourceSlice
from rec_ray.schema import INTERACTIONS

SOURCE = FeatureSource(None, {}, "the events")


def test_slices_of_files_are_spread_over_all_and_of_others_the_newest_stretch_is_read() -> None:
    files = [SourceSlice(SOURCE, first_row=number, path="f") for number in range(10)]
    assert [part.first_row for part in choose_slices(files)] == [0, 3, 6, 9]
    assert choose_slices(files[:2]) == files[:2]
    stretches = [SourceSlice(SOURCE, first_row=number) for number in range(3)]
    assert choose_slices(stretches) == stretches[-1:]
    assert choose_slices([]) == []


def test_events_are_counted_by_type_value_and_user() -> None:
    rows = [
        ("bot", "x", "view", 1.0),
        ("bot", "y", "view", 0.0),
        ("a", "x", None, None),
        ("bot", "x", "cart", float("nan")),
        ("a", "x", "view", -2.0),
    ]
    when = datetime(2024, 1, 1, tzinfo=UTC)
    columns = zip(*[(user, item, when, 0, kind, value) for user, item, kind, value in rows], strict=True)
    events = pa.table([pa.array(column) for column in columns], names=INTERACTIONS.names).cast(INTERACTIONS)
    assert count_events(events, None) == EventFacts(5, {"view": 3, "cart": 1}, 3, 2, ("bot", 3))
    assert count_events(events, 1.5).disliked == 3
    empty = count_events(events.slice(0, 0), None)
    assert (empty.events, empty.largest_user) == (0, ("", 0)) and np.isfinite(empty.values)
