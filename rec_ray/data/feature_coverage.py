"""Coverage of events by user and item rows: features unknown when events happened, and ids without a match.

Input: Arrow tables with the features as of the events and as of now. Output: sums that merge over blocks, and messages.
All functions are pure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

MOST = 0.5
"""Features unknown in a greater share of rows are late; a greater share of unmatched ids is reported."""
WRITINGS = "Write the ids in one way in both (as text, zeros in front, no '7.0' for 7)"


@dataclass
class Coverage:
    """Sums over the training rows of one side; blocks add up with `merge`.

    rows: compared rows. known_now: feature -> rows whose entity has a value now. unknown_then: feature -> those of
        them without a value when the event happened.
    known_then: feature -> rows with a value when the event happened. unknown_now: those of them without one today.
    ids: distinct ids in the events. unmatched: those of them without a row in the feature store.
    unmatched_id: the smallest of them. idle_id: the smallest id of the feature store that no event has.
    """

    rows: int = 0
    known_now: Counter[str] = field(default_factory=Counter)
    unknown_then: Counter[str] = field(default_factory=Counter)
    known_then: Counter[str] = field(default_factory=Counter)
    unknown_now: Counter[str] = field(default_factory=Counter)
    ids: int = 0
    unmatched: int = 0
    unmatched_id: str | None = None
    idle_id: str | None = None

    def merge(self, other: Coverage) -> Coverage:
        """Add the sums of another block to these."""
        self.rows += other.rows
        self.known_now.update(other.known_now)
        self.unknown_then.update(other.unknown_then)
        self.known_then.update(other.known_then)
        self.unknown_now.update(other.unknown_now)
        self.ids += other.ids
        self.unmatched += other.unmatched
        self.unmatched_id = _smaller(self.unmatched_id, other.unmatched_id)
        self.idle_id = _smaller(self.idle_id, other.idle_id)
        return self

    def add(self, name: str, then: npt.NDArray[np.bool_], now: npt.NDArray[np.bool_]) -> None:
        """Count the rows in which a feature is known. then, now: [n] bool."""
        self.known_now[name] += int(now.sum())
        self.unknown_then[name] += int((now & ~then).sum())
        self.known_then[name] += int(then.sum())
        self.unknown_now[name] += int((then & ~now).sum())

    def late(self) -> dict[str, float]:
        """Return the late features: name -> share of the rows with a value now in which it was unknown then."""
        return _large_shares(self.unknown_then, self.known_now)

    def expired(self) -> dict[str, float]:
        """Return the expired features: name -> share of the rows with a value then in which it is unknown now."""
        return _large_shares(self.unknown_now, self.known_then)

    def match_ids(self, in_events: pa.Array, in_store: pa.Array) -> None:
        """Compare the distinct ids of events with those of the feature store. Both: [n] strings, each once."""
        unmatched = in_events.filter(pc.invert(pc.is_in(in_events, value_set=in_store)))
        idle = in_store.filter(pc.invert(pc.is_in(in_store, value_set=in_events)))
        self.ids += len(in_events)
        self.unmatched += len(unmatched)
        self.unmatched_id = _smaller(self.unmatched_id, pc.min(unmatched).as_py())
        self.idle_id = _smaller(self.idle_id, pc.min(idle).as_py())


def _large_shares(unknown: Counter[str], known: Counter[str]) -> dict[str, float]:
    shares = {name: unknown[name] / rows for name, rows in known.items() if rows}
    return {name: share for name, share in sorted(shares.items()) if share > MOST}


def _smaller(one: str | None, other: str | None) -> str | None:
    return min((each for each in (one, other) if each is not None), default=None)


def compare_features(then: pa.Table, now: pa.Table, fields: Iterable[str]) -> Coverage:
    """Count the rows whose features are known now but were unknown then. then, now: [n] rows of the same entities."""
    coverage = Coverage(rows=then.num_rows)
    for name in fields:
        coverage.add(name, known_values(then[name]), known_values(now[name]))
    return coverage


def cover_users(
    rows: pa.Table,
    events: npt.NDArray[Any],
    user: npt.NDArray[Any],
    now: npt.NDArray[Any],
    user_ids: pa.Array,
    fields: Sequence[str],
) -> Coverage:
    """Compare the user features of events with those of today, and the users of events with users that have features.

    rows: a block. events: [E] row indices in it. user: [E] index of each event's user in `user_ids`. now: [u] row index
    in `rows` of each user as of now.
    """
    coverage = Coverage(rows=len(events))
    known = np.zeros(len(user_ids), bool)
    for name in fields:
        # Masks instead of values, because `take` on lists and texts is slow.
        known_in_row = known_values(rows[name])
        then, today = known_in_row[events], known_in_row[now]
        coverage.add(name, then, today[user])
        known |= today
        known[user[then]] = True
    if fields:
        in_events = np.zeros(len(user_ids), bool)
        in_events[user] = True
        coverage.match_ids(user_ids.filter(pa.array(in_events)), user_ids.filter(pa.array(known)))
    return coverage


def cover_items(block: pa.Table, in_events: pa.Array, id_column: str, fields: Sequence[str]) -> Coverage:
    """Compare item features as of the first instant with those as of the last, for the items of events.

    block: rows of the first instant, then those of the last for the same items in the same order.
    """
    half = block.num_rows // 2
    then, now = block.slice(0, half), block.slice(half)
    used = pc.is_in(then[id_column], value_set=in_events)
    return compare_features(then.filter(used), now.filter(used), fields)


def known_values(column: Any) -> npt.NDArray[np.bool_]:
    """Return [n] bool: the value is neither null nor NaN."""
    known: npt.NDArray[np.bool_] = pc.invert(pc.is_null(column, nan_is_null=True)).to_numpy(zero_copy_only=False)
    return known.astype(bool)


def describe_late(side: str, late: Mapping[str, float], views: Sequence[str] = ()) -> str:
    """Return a message with the late features of a side ("user" or "item") and both remedies. views: notes on views."""
    names = ", ".join(f"{name!r} ({share:.0%})" for name, share in late.items())
    because = f" ({'; '.join(views)})" if views else ""
    return (
        f"{side} features known today were unknown at the time of most events{because}: {names}; date their rows when "
        f"they became true, or set features.{side}_history: as_of_now, which takes today's values for the past too "
        f"(values that changed since then leak into training), or remove them from features.{side}"
    )


def describe_expired(side: str, expired: Mapping[str, float]) -> list[str]:
    """Name the expired features of a side ("user" or "item") and the remedies; nothing without any."""
    names = ", ".join(f"{name!r} ({share:.0%})" for name, share in expired.items())
    said = (
        f"{side} features known at the time of most events are unknown today, so the published model gets no values: "
        f"{names}; write newer rows, lengthen the ttl of their views (0: for ever), or take them out of features.{side}"
    )
    return [said] if expired else []


def describe_unmatched(side: str, coverage: Coverage) -> str | None:
    """Return a message if most ids of the events have no match, with an id of each side; None otherwise."""
    if coverage.unmatched <= MOST * coverage.ids:
        return None
    other = f", the feature store has {coverage.idle_id!r}" if coverage.idle_id is not None else ""
    return (
        f"{coverage.unmatched:,} of {coverage.ids:,} {side} ids in the events have nothing in the feature store: "
        f"events have {coverage.unmatched_id!r}{other}. {WRITINGS}"
    )


def describe_now(side: str) -> str:
    """Return a message about the leak that `as_of_now` causes."""
    return (
        f"features.{side}_history: as_of_now takes today's {side} features for the past too; a value that an event "
        "changed leaks into training and evaluation, so metrics may be too good"
    )
