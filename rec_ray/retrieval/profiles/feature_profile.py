"""Distribution of one feature in counts that add up over blocks and compare across nights.

Numbers fall into fixed logarithmic bins, so that two nights share their bins without sharing data; values fall into
buckets by a hash, so that no value is stored. Input: an Arrow column and its declaration.
"""

from __future__ import annotations

import zlib
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rec_ray.retrieval.features.columns import as_numbers, as_values, as_vectors
from rec_ray.schema import FeatureDeclaration

Array = npt.NDArray[Any]

BINS_PER_OCTAVE, SMALLEST, LARGEST = 8, -40, 40
"""Bins of numbers: eight per factor of two, between 2 ** SMALLEST and 2 ** LARGEST."""
BUCKETS = 256
"""Buckets of values."""
GROUPS = 10
"""Groups of bins that are compared; ten is the usual number for the population stability index."""
LEAST_ROWS = 50
"""Minimum rows of both nights; with fewer the index is mostly noise."""


@dataclass
class FeatureProfile:
    """Rows, rows without a value, and rows by bin. ordered: bins are numbers, not buckets of a hash."""

    rows: int = 0
    nulls: int = 0
    bins: Counter[int] = field(default_factory=Counter)
    ordered: bool = False

    @property
    def null_share(self) -> float:
        """Share of rows without a value."""
        return self.nulls / max(1, self.rows)

    def merge(self, other: FeatureProfile) -> FeatureProfile:
        """Add the counts of another block."""
        self.rows, self.nulls = self.rows + other.rows, self.nulls + other.nulls
        self.bins.update(other.bins)
        self.ordered = self.ordered or other.ordered
        return self


def profile_feature(table: pa.Table, name: str, declaration: FeatureDeclaration, day: float) -> FeatureProfile:
    """Return the profile of a column. day: time of the rows in days since 1970; timestamps count by their age.

    Raises:
        SchemaError: the column cannot be read as declared.
    """
    rows = table.num_rows
    if declaration.kind in ("numeric", "timestamp", "vector", "text"):
        numbers = _as_size(table, name, declaration, day)
        known = np.isfinite(numbers)
        values, counts = np.unique(number_bins(numbers[known]), return_counts=True)
        bins = Counter(dict(zip(values.tolist(), counts.tolist(), strict=True)))
        return FeatureProfile(rows, rows - int(known.sum()), bins, ordered=True)
    lengths, values = as_values(table, name, declaration)
    bins = Counter()
    for entry in pc.value_counts(values).to_pylist():
        bins[zlib.crc32(entry["values"].encode()) % BUCKETS] += entry["counts"]
    return FeatureProfile(rows, int((lengths == 0).sum()), bins)


def _as_size(table: pa.Table, name: str, declaration: FeatureDeclaration, day: float) -> Array:
    """Return one number per row: the number, the age in days, the norm of a vector, or the length of a text."""
    if declaration.kind == "vector":
        sizes = np.linalg.norm(as_vectors(table, name, declaration), axis=1).astype(np.float64)
        return np.where(sizes > 0, sizes, np.nan)
    if declaration.kind == "text":
        lengths = pc.fill_null(pc.utf8_length(pc.cast(table[name], pa.string())), 0)
        sizes = lengths.to_numpy().astype(np.float64)
        return np.where(sizes > 0, sizes, np.nan)
    numbers = as_numbers(table, name, declaration)
    return day - numbers if declaration.kind == "timestamp" else numbers


def number_bins(numbers: Array) -> Array:
    """Return the bin of each finite number [n] int64; bins grow with the numbers, 0 is that of zero."""
    size = np.abs(numbers)
    with np.errstate(divide="ignore"):
        exponent = np.clip(np.log2(size, where=size > 0, out=np.full(len(size), float(SMALLEST))), SMALLEST, LARGEST)
    bins = np.floor((exponent - SMALLEST) * BINS_PER_OCTAVE).astype(np.int64) + 1
    return np.sign(numbers).astype(np.int64) * bins


def stability_index(new: FeatureProfile, old: FeatureProfile) -> float:
    """Return the population stability index of two nights, less the part that sampling alone explains.

    0.1 and 0.25 are its customary limits of a small and of a large change (Siddiqi, Credit Risk Scorecards, 2006).
    Returns 0 with fewer than `LEAST_ROWS` rows with a value in one of the nights.
    """
    keys = sorted(old.bins.keys() | new.bins.keys())
    before = np.array([old.bins[key] for key in keys], np.float64)
    after = np.array([new.bins[key] for key in keys], np.float64)
    if min(old.rows - old.nulls, new.rows - new.nulls) < LEAST_ROWS:
        return 0.0
    group = _equal_groups(before) if old.ordered else _frequent_groups(before)
    count = int(group.max()) + 1
    return index_of_counts(np.bincount(group, after, count), np.bincount(group, before, count))


def index_of_counts(after: Array, before: Array) -> float:
    """Return the population stability index of counts [g] in the same groups, less its mean under equal shares."""
    used = (after + before) > 0
    after, before = after[used] + 0.5, before[used] + 0.5
    new, old = after / after.sum(), before / before.sum()
    index = float(((new - old) * np.log(new / old)).sum())
    return max(0.0, index - (len(new) - 1) * float(1 / after.sum() + 1 / before.sum()))


def _equal_groups(counts: Array) -> Array:
    """Return the group of each bin in order, with about the same count in every group."""
    middle = (np.cumsum(counts) - counts / 2) / max(1.0, counts.sum())
    return np.minimum((middle * GROUPS).astype(np.int64), GROUPS - 1)


def _frequent_groups(counts: Array) -> Array:
    """Return the group of each bin: the most frequent have one of their own, and all others share the last."""
    group = np.full(len(counts), GROUPS - 1, np.int64)
    first = np.argsort(-counts, kind="stable")[: GROUPS - 1]
    group[first] = np.arange(len(first))
    return group
