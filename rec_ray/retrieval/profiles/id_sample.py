"""Sample of ids that two nights share: the ids with the smallest hashes, with a few facts about each.

Because a hash decides, the same ids are in the samples of both nights, so the share of ids that stayed and the share of
values that changed can be measured without the ids or the values. Samples of blocks merge exactly.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Array = npt.NDArray[Any]

SAMPLE = 256
"""Ids of a sample; a share of them has a standard error of at most 3 %."""
Facts = dict[str, int]


def hash_ids(ids: pa.Array | pa.ChunkedArray) -> Array:
    """Return a well-mixed hash of each id: [n] uint64 below 2 ** 53, so that JSON keeps it."""
    found = np.fromiter((zlib.crc32(each.encode()) for each in ids.to_pylist()), np.uint64, len(ids))
    # The finaliser of MurmurHash3: CRC sums of consecutive numbers are not spread evenly.
    for shift, factor in ((33, 0xFF51AFD7ED558CCD), (33, 0xC4CEB9FE1A85EC53), (33, 1)):
        found = (found ^ (found >> np.uint64(shift))) * np.uint64(factor)
    return found >> np.uint64(11)


def hash_value(value: Any) -> int:
    """Return a hash of a feature value; 0 for a missing one."""
    if value is None or value != value or (isinstance(value, list | str) and not value):
        return 0
    text = f"{value:.6g}" if isinstance(value, float) else repr(value)
    return 1 + zlib.crc32(text.encode())


@dataclass
class IdSample:
    """Facts by hash of an id, for the `SAMPLE` smallest hashes. total: number of all ids."""

    total: int = 0
    facts: dict[int, Facts] = field(default_factory=dict)

    def merge(self, other: IdSample, *, distinct: bool = True) -> IdSample:
        """Add another block. distinct: no id is in both; otherwise counts of the same id add up."""
        self.total += other.total
        for key, facts in other.facts.items():
            mine = self.facts.get(key)
            if mine is None or distinct:
                self.facts[key] = facts
            else:
                self.facts[key] = {name: mine.get(name, 0) + value for name, value in facts.items()}
        if len(self.facts) > SAMPLE:
            self.facts = {key: self.facts[key] for key in sorted(self.facts)[:SAMPLE]}
        return self

    def shared(self, other: IdSample) -> tuple[list[int], int]:
        """Return the ids of both samples, and how many of this sample the other one would contain if they existed."""
        below = min(self._bound, other._bound)
        mine = [key for key in self.facts if key <= below]
        return [key for key in mine if key in other.facts], len(mine)

    @property
    def _bound(self) -> int:
        return max(self.facts) if len(self.facts) >= SAMPLE else 2**53


def smallest(hashes: Array) -> Array:
    """Return the places of the `SAMPLE` smallest hashes: [m]."""
    if len(hashes) <= SAMPLE:
        return np.arange(len(hashes))
    return np.argpartition(hashes, SAMPLE)[:SAMPLE]


def kept_share(new: IdSample, old: IdSample) -> tuple[float, int]:
    """Return the share of the ids of the old night that the new night still has, and the ids that it is measured on."""
    both, expected = old.shared(new)
    return (len(both) / expected if expected else 1.0), expected


def changed_shares(new: IdSample, old: IdSample, names: Mapping[str, Any]) -> dict[str, float]:
    """Return, by feature, the share of the ids of both nights whose value differs; ids without a value in both are
    left out, and so is a feature that fewer than 30 ids have."""
    both, _ = old.shared(new)
    shares = {}
    for name in names:
        pairs = [(old.facts[key].get(name, 0), new.facts[key].get(name, 0)) for key in both]
        known = [(before, after) for before, after in pairs if before and after]
        if len(known) >= 30:
            shares[name] = sum(before != after for before, after in known) / len(known)
    return shares
