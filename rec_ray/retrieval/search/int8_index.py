"""The items of a search as bytes, in the layout and with the bounds that the first pass reads.

In comes a float32 item matrix, out goes a frozen object of plain arrays that can lie in shared memory. It knows nothing
of queries or of the search.

Items go in random order (the same for every run), so that the first ones are a fair sample, and within a stretch of
that order by the size of their largest number, so that the 64 of a group share a scale that suits each of them.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rec_ray.errors import DataError

GROUP_ITEMS = 64
_STRETCH = 4096


class QuantisedItems(NamedTuple):
    """Items as bytes: x = scale * (byte - 128) + rest.

    packed: [groups, ceil(d / 4), 64, 4] unsigned bytes.  item_of: [groups * 64] int32 item index, -1 for padding.
    scale, error, norm: [groups] float64; the scale, the largest norm of a rest, the largest norm of an item.
    """

    packed: NDArray[np.uint8]
    item_of: NDArray[np.int32]
    scale: NDArray[np.float64]
    error: NDArray[np.float64]
    norm: NDArray[np.float64]

    def allow_bits(self, allowed: NDArray[np.bool_] | None) -> NDArray[np.uint64]:
        """Return [groups] the bits of the items that may be returned; padding never."""
        may = self.item_of >= 0
        if allowed is not None and len(allowed):
            may &= allowed[self.item_of]
        return np.packbits(may, bitorder="little").view("<u8").astype(np.uint64)


def quantise_items(items: NDArray[np.float32], order: NDArray[np.integer] | None = None) -> QuantisedItems:
    """Return the items [n, d] as bytes: d + 4 bytes an item, and some MB while it works.

    order: the items in the order in which stretches are filled; None is a random one.

    Raises DataError when an item holds NaN or infinity.
    """
    largest_norm(items, "item")
    count, size = items.shape
    groups, steps = -(-count // GROUP_ITEMS), -(-size // 4)
    packed = np.full((groups, steps, GROUP_ITEMS, 4), 128, np.uint8)
    item_of = np.full(groups * GROUP_ITEMS, -1, np.int32)
    scale, error, norm = np.ones(groups), np.zeros(groups), np.zeros(groups)
    if order is None:
        order = np.random.default_rng(0).permutation(count)
    start, end = 0, min(GROUP_ITEMS, count)
    while start < count:
        chosen = order[start:end]
        largest = np.abs(items[chosen]).max(axis=1, initial=0.0)
        by_size = np.argsort(largest, kind="stable")
        chosen, largest = chosen[by_size], largest[by_size].astype(np.float64)
        item_of[start:end] = chosen
        first, last = start // GROUP_ITEMS, -(-end // GROUP_ITEMS)
        padded = np.zeros(((last - first) * GROUP_ITEMS, steps * 4))
        padded[: len(chosen), :size] = items[chosen]
        vectors = padded.reshape(last - first, GROUP_ITEMS, steps * 4)
        step = np.abs(vectors).max(axis=(1, 2)) / 127
        # a scale that is no normal number would make the bytes meaningless; then all of an item is its rest
        meaningful = step > 1e-32
        step = np.where(meaningful, step, 1.0)
        numbers = np.where(meaningful[:, None, None], np.rint(vectors / step[:, None, None]), 0.0)
        packed[first:last] = (numbers + 128).reshape(-1, GROUP_ITEMS, steps, 4).transpose(0, 2, 1, 3)
        rest = vectors - numbers * step[:, None, None]
        scale[first:last] = step
        error[first:last] = np.sqrt(np.einsum("gid,gid->gi", rest, rest).max(axis=1)) * (1 + 1e-9)
        norm[first:last] = np.sqrt(np.einsum("gid,gid->gi", vectors, vectors).max(axis=1)) * (1 + 1e-9)
        start, end = end, min(4 * end if end < _STRETCH else end + _STRETCH, count)
    return QuantisedItems(packed, item_of, scale, error, norm)


def largest_norm(matrix: NDArray[np.float32], what: str) -> float:
    """Return the largest Euclidean norm of the rows; refuse NaN and infinity."""
    largest = 0.0
    for start in range(0, len(matrix), 8192):
        block = matrix[start : start + 8192].astype(np.float64)
        squares = np.einsum("ij,ij->i", block, block)
        if not np.isfinite(squares).all():
            row = start + int(np.flatnonzero(~np.isfinite(squares))[0])
            raise DataError(f"the vector of {what} {row} holds NaN or infinity; was the model trained without a fault?")
        largest = max(largest, float(squares.max(initial=0.0)))
    return math.sqrt(largest)
