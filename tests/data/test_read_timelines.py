"""A summary of a timeline is that of its events in any order and any slices, and of no others."""

from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest

from rec_ray.data.read_timelines import changed_users, merge_summaries, summarise_events
from rec_ray.schema import INTERACTIONS, USER_TIMELINES

START = datetime(2024, 1, 1, tzinfo=UTC)


def events(*rows: tuple[str, str | None, int, str | None, float | None]) -> pa.Table:
    """Return events (user, item, hour, type, value)."""
    columns = zip(*rows, strict=True)
    users, items, hours, types, values = columns
    times = [START + timedelta(hours=hour) for hour in hours]
    return pa.table([users, items, times, range(len(rows)), types, values], schema=INTERACTIONS)


ROWS = [
    ("u1", "i1", 1, "view", None),
    ("u1", "i2", 2, "buy", 5.0),
    ("u2", "i1", 3, None, None),
    ("u1", "i1", 4, "view", None),
]


def test_count_and_newest_event_of_each_user() -> None:
    found = {row["user_id"]: row for row in summarise_events(events(*ROWS, ("u3", None, 9, None, None))).to_pylist()}
    assert set(found) == {"u1", "u2"}, "a row without an item is no event"
    assert (found["u1"]["events"], found["u1"]["newest"]) == (3, START + timedelta(hours=4))
    assert (found["u2"]["events"], found["u2"]["newest"]) == (1, START + timedelta(hours=3))
    assert summarise_events(INTERACTIONS.empty_table()).equals(USER_TIMELINES.empty_table())


@pytest.mark.parametrize("cut", range(5))
def test_order_and_slices_do_not_matter(cut: int) -> None:
    whole = summarise_events(events(*ROWS)).sort_by("user_id")
    parts = [summarise_events(events(*part)) for part in (ROWS[:cut][::-1], ROWS[cut:][::-1]) if part]
    assert merge_summaries(parts[::-1]).sort_by("user_id").equals(whole)


CHANGES = {
    "a late event": [*ROWS, ("u1", "i9", 1, "view", None)],
    "a removed event": ROWS[1:],
    "another item": [("u1", "i3", 1, "view", None), *ROWS[1:]],
    "another time of an old event": [("u1", "i1", 0, "view", None), *ROWS[1:]],
    "another type": [("u1", "i1", 1, "cart", None), *ROWS[1:]],
    "a corrected value": [ROWS[0], ("u1", "i2", 2, "buy", 1.0), *ROWS[2:]],
    "a value that was missing": [("u1", "i1", 1, "view", 0.0), *ROWS[1:]],
    "items of two events exchanged": [("u1", "i2", 1, "view", None), ("u1", "i1", 2, "buy", 5.0), *ROWS[2:]],
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_timeline_shows_and_others_do_not(change: str) -> None:
    recorded = summarise_events(events(*ROWS))
    assert changed_users(summarise_events(events(*CHANGES[change])), [recorded]).to_pylist() == ["u1"]
    assert changed_users(recorded, [recorded]).to_pylist() == []


def test_a_user_without_record_is_changed_and_the_last_record_of_a_user_counts() -> None:
    first, second = summarise_events(events(*ROWS)), summarise_events(events(*CHANGES["a late event"]))
    newer = second.filter(pa.array([name == "u1" for name in second["user_id"].to_pylist()]))
    assert changed_users(second, []).to_pylist() == ["u1", "u2"]
    assert changed_users(second, [first, newer]).to_pylist() == []
    assert changed_users(first, [first, newer]).to_pylist() == ["u1"]
