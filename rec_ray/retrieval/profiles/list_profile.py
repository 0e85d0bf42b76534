"""Profile of the recommendation lists of a version, and its comparison with that of the live version.

Input: blocks of users with the indices of their items. Output: counts of lists, coverage and concentration of the first
ten places, and the first ten items of a sample of users as hashes, small enough for JSON.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rec_ray.errors import DataError
from rec_ray.retrieval.profiles.checks import WARNED, Check, at_least, at_most
from rec_ray.retrieval.profiles.id_sample import SAMPLE, hash_ids, smallest
from rec_ray.schema import ITEM_IDS, USER_ID

Array = npt.NDArray[Any]

TOP = 10
"""Places that are profiled: those that a page shows."""
HALF = 0.5
"""Share of the live version's coverage, and of its distance from full concentration, that must be left."""
CHURN = 0.95
"""Share of other items in the first ten places above which lists warn if no churn of earlier versions is known."""
LEAST_USERS = 30
FORMAT_VERSION = 1
LISTS = "lists.json"
"""File of the profile, beside the manifest of the candidates."""


@dataclass
class ListProfile:
    """Lists of one version.

    users, empty, short: all, without any item, and with fewer than `k`. items: size of the catalogue. coverage: share
    of the catalogue in the first ten places. gini: concentration of these places on items, 0 to 1. top: hash of a user
    -> hashes of its first ten items. churn: share of other items in these than in the version before, if measured.
    counts: [items or fewer] places of each item, while blocks are added up.
    """

    users: int = 0
    empty: int = 0
    short: int = 0
    items: int = 0
    coverage: float = 0.0
    gini: float = 0.0
    churn: float | None = None
    top: dict[int, list[int]] = field(default_factory=dict)
    counts: Array = field(default_factory=lambda: np.zeros(0, np.int32))

    def merge(self, other: ListProfile) -> ListProfile:
        """Add other users."""
        for name in ("users", "empty", "short"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        longer, shorter = sorted((self.counts, other.counts), key=len, reverse=True)
        self.counts = longer.copy()
        self.counts[: len(shorter)] += shorter
        self.top |= other.top
        self.top = {key: self.top[key] for key in sorted(self.top)[:SAMPLE]}
        return self

    def finish(self, items: int) -> ListProfile:
        """Turn the counts of all blocks into coverage and concentration. items: size of the catalogue."""
        counts = np.zeros(items, np.int64)
        counts[: len(self.counts)] = self.counts
        self.items, self.counts = items, self.counts[:0]
        self.coverage = round(float(np.count_nonzero(counts)) / max(1, items), 4)
        self.gini = round(gini(counts), 4)
        return self

    def without(self, users: pa.Array) -> ListProfile:
        """Return the profile without the sampled lists of some users."""
        for key in hash_ids(users).tolist():
            self.top.pop(key, None)
        return self

    def to_json(self) -> bytes:
        """Return the content of `lists.json`."""
        values = {name: value for name, value in vars(self).items() if name != "counts"}
        return json.dumps({"format_version": FORMAT_VERSION, **values}, separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, data: bytes, where: str) -> ListProfile:
        """Read a stored profile. where: its address, for errors.

        Raises:
            DataError: it is damaged, or another program wrote it.
        """
        try:
            values = json.loads(data)
            found = values.pop("format_version")
            if found != FORMAT_VERSION:
                raise DataError(f"{where} has format version {found!r}, this program reads {FORMAT_VERSION}")
            return cls(**{**values, "top": {int(key): items for key, items in values["top"].items()}})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{where} is damaged: {type(error).__name__}: {error}") from None


def gini(counts: Array) -> float:
    """Return the Gini coefficient of counts [n]: 0 if all are equal, nearly 1 if one has everything."""
    total, n = counts.sum(), len(counts)
    if not total or n < 2:
        return 0.0
    ranks = np.arange(1, n + 1)
    return float((2 * (ranks * np.sort(counts)).sum() / total - (n + 1)) / n)


def profile_lists(rows: pa.Table, *, column: str, k: int, name_items: Callable[[pa.Table], pa.Table]) -> ListProfile:
    """Return the profile of a block of users.

    column: lists of item indices, best first. k: length of a full list. name_items: adds the lists of item ids.
    """
    lists = rows[column].combine_chunks()
    offsets, flat = lists.offsets.to_numpy(), lists.values.to_numpy(zero_copy_only=False)
    lengths = np.diff(offsets)
    place = np.arange(offsets[0], offsets[-1]) - np.repeat(offsets[:-1], lengths)
    hashes = hash_ids(rows[USER_ID])
    chosen = smallest(hashes)
    named = name_items(rows.take(pa.array(chosen)))[ITEM_IDS].to_pylist()
    top = {int(hashes[row]): _hashes(ids[:TOP]) if ids else [] for row, ids in zip(chosen.tolist(), named, strict=True)}
    return ListProfile(
        users=rows.num_rows,
        empty=int((lengths == 0).sum()),
        short=int((lengths < k).sum()),
        top=top,
        counts=np.bincount(flat[offsets[0] : offsets[-1]][place < TOP]).astype(np.int32),
    )


def _hashes(ids: list[str]) -> list[int]:
    # 32 bits, so that the file stays small.
    return [int(each) for each in hash_ids(pa.array(ids, pa.string())) >> np.uint64(21)]


def measure_churn(new: ListProfile, live: ListProfile) -> float | None:
    """Return the mean share of the first ten items that the live version did not list; None with few shared users."""
    both = [key for key in live.top if live.top[key] and new.top.get(key)]
    if len(both) < LEAST_USERS:
        return None
    other = [len(set(new.top[key]) - set(live.top[key])) / len(new.top[key]) for key in both]
    return round(float(np.mean(other)), 4)


def compare_lists(new: ListProfile, live: ListProfile, *, loss: float) -> Iterator[Check]:
    """Yield the checks of the lists. loss: share of users that may be without a list, or without a full one."""
    if not live.users or not live.items:
        return
    full, before = new.users - new.empty, live.users - live.empty
    said = f"{full:,} users have a list, {before:,} in the live version"
    yield at_least("lists.users", full / max(1, before), 1 - loss, said)
    for name, what in (("empty", "no item"), ("short", "fewer items than candidates.k")):
        share, usual = getattr(new, name) / max(1, new.users), getattr(live, name) / live.users
        said = f"{share:.1%} of the lists have {what}, {usual:.1%} in the live version"
        yield at_most(f"lists.{name}", share - usual, loss, said)
    said = f"the first {TOP} places show {new.coverage:.1%} of the items, {live.coverage:.1%} in the live version"
    yield at_least("lists.coverage", new.coverage / max(1e-9, live.coverage), HALF, said)
    said = f"the first {TOP} places have a Gini coefficient of {new.gini:.3f}, {live.gini:.3f} in the live version"
    yield at_most("lists.concentration", new.gini, 1 - HALF * (1 - live.gini), said)
    bound = max(new.top, default=0) if len(new.top) >= SAMPLE else 2**53
    expected = [key for key in live.top if live.top[key] and key <= bound]
    if len(expected) >= LEAST_USERS:
        share = sum(bool(new.top.get(key)) for key in expected) / len(expected)
        said = f"{share:.0%} of the users with a list in the live version still have one, of {len(expected)}"
        yield at_least("lists.users_kept", share, 1 - loss, said)
    churn = measure_churn(new, live)
    if churn is not None:
        limit = CHURN if live.churn is None else min(1.0, 1.5 * live.churn + 0.2)
        said = f"{churn:.0%} of the first {TOP} items of a user are others than in the live version"
        yield at_most("lists.churn", churn, limit, said, WARNED)
