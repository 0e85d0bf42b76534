"""Items as bytes, in the layout and with the bounds that the first pass of a search reads.

Input: a float32 item matrix. Output: a frozen object of plain arrays that can lie in shared memory.

Items are in random order (the same in every run), so that the first ones are a fair sample, and within a stretch of
that order sorted by their largest absolute value, so that the 64 items of a group share a scale that fits each of them.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rec_ray.errors import DataError
from rec_ray.retrieval.search.byte_products import GROUP_ITEMS, KERNELS, STRETCH_STEPS, available_kernels
from rec_ray.retrieval.search.float32 import as_tensor

_STRETCH = 4096


class QuantisedItems(NamedTuple):
    """Items as bytes: x = scale * (byte - zero) + residual.

    packed: [groups, ceil(d / 4), 64, 4] unsigned bytes.  item_of: [groups * 64] int32 item index, -1 for padding.
    scale, error, norm: [groups] float64; the scale, the largest norm of a residual, the largest norm of an item.
    zero: byte of the number 0: 128, or 64 for kernels that need items of seven bits.  reach: largest norm of the bytes
    that one 16-bit sum multiplies: two of four dimensions in `STRETCH_STEPS` steps.
    """

    packed: NDArray[np.uint8]
    item_of: NDArray[np.int32]
    scale: NDArray[np.float64]
    error: NDArray[np.float64]
    norm: NDArray[np.float64]
    zero: int
    reach: float

    def writable(self) -> QuantisedItems:
        """Return the same memory as arrays that are writable, so that all indexes have one type for numba."""
        packed, item_of, scale, error, norm = (as_tensor(part).numpy() for part in self[:5])
        return QuantisedItems(packed, item_of, scale, error, norm, self.zero, self.reach)

    def fits(self, kernel: str) -> bool:
        """Return True if the kernel multiplies these bytes without overflow."""
        return self.zero <= 1 << (KERNELS[kernel].item_bits - 1)

    def allow_bits(self, allowed: NDArray[np.bool_] | None) -> NDArray[np.uint64]:
        """Return [groups] bits of the items that may be returned; padding is never set."""
        bits = self.item_of >= 0
        if allowed is not None and len(allowed):
            bits &= allowed[self.item_of]
        return np.packbits(bits, bitorder="little").view("<u8").astype(np.uint64)


def quantise_items(
    items: NDArray[np.float32], order: NDArray[np.integer] | None = None, bits: int | None = None
) -> QuantisedItems:
    """Return the items [n, d] as bytes: d + 4 bytes per item, and some MB during the work.

    order: items in the order in which stretches are filled; None takes a random order.  bits: 8 or 7 bits of a byte;
    None takes those that the fastest kernel of this processor needs.

    Raises DataError when an item holds NaN or infinity.
    """
    largest_norm(items, "item")
    count, size = items.shape
    groups, steps = -(-count // GROUP_ITEMS), -(-size // 4)
    bits = KERNELS[available_kernels()[0]].item_bits if bits is None else bits
    zero, reach = 1 << (bits - 1), 0.0
    packed = np.full((groups, steps, GROUP_ITEMS, 4), zero, np.uint8)
    item_of = np.full(groups * GROUP_ITEMS, -1, np.int32)
    scale, error, norm = np.ones(groups), np.zeros(groups), np.zeros(groups)
    if order is None:
        order = np.random.default_rng(0).permutation(count)
    start, end = 0, min(GROUP_ITEMS, count)
    while start < count:
        chosen = order[start:end]
        largest = np.abs(items[chosen]).max(axis=1, initial=0.0)
        ascending = np.argsort(largest, kind="stable")
        chosen, largest = chosen[ascending], largest[ascending].astype(np.float64)
        item_of[start:end] = chosen
        first, last = start // GROUP_ITEMS, -(-end // GROUP_ITEMS)
        padded = np.zeros(((last - first) * GROUP_ITEMS, steps * 4))
        padded[: len(chosen), :size] = items[chosen]
        vectors = padded.reshape(last - first, GROUP_ITEMS, steps * 4)
        step = np.abs(vectors).max(axis=(1, 2)) / (zero - 1)
        # A subnormal scale makes bytes meaningless; the residual then holds the complete item.
        meaningful = step > 1e-32
        step = np.where(meaningful, step, 1.0)
        numbers = np.where(meaningful[:, None, None], np.rint(vectors / step[:, None, None]), 0.0)
        packed[first:last] = (numbers + zero).reshape(-1, GROUP_ITEMS, steps, 4).transpose(0, 2, 1, 3)
        reach = max(reach, _longest_stretch(numbers))
        rest = vectors - numbers * step[:, None, None]
        scale[first:last] = step
        error[first:last] = np.sqrt(np.einsum("gid,gid->gi", rest, rest).max(axis=1)) * (1 + 1e-9)
        norm[first:last] = np.sqrt(np.einsum("gid,gid->gi", vectors, vectors).max(axis=1)) * (1 + 1e-9)
        start, end = end, min(4 * end if end < _STRETCH else end + _STRETCH, count)
    return QuantisedItems(packed, item_of, scale, error, norm, zero, reach)


def _longest_stretch(numbers: NDArray[np.float64]) -> float:
    """Return the largest norm of the numbers that one 16-bit sum multiplies.  numbers: [groups, 64, steps * 4]."""
    largest = 0.0
    pairs = np.square(numbers).reshape(*numbers.shape[:2], -1, 2, 2).sum(axis=4)
    for start in range(0, pairs.shape[2], STRETCH_STEPS):
        squares = pairs[:, :, start : start + STRETCH_STEPS].sum(axis=2)
        largest = max(largest, float(squares.max(initial=0.0)))
    return math.sqrt(largest)


def largest_norm(matrix: NDArray[np.float32], row_name: str) -> float:
    """Return the largest Euclidean norm of the rows [n, d].

    Raises DataError when a row holds NaN or infinity. row_name: noun of a row in the message.
    """
    largest = 0.0
    for start in range(0, len(matrix), 8192):
        block = matrix[start : start + 8192].astype(np.float64)
        squares = np.einsum("ij,ij->i", block, block)
        if not np.isfinite(squares).all():
            row = start + int(np.flatnonzero(~np.isfinite(squares))[0])
            raise DataError(
                f"the vector of {row_name} {row} holds NaN or infinity; was the model trained without a fault?"
            )
        largest = max(largest, float(squares.max(initial=0.0)))
    return math.sqrt(largest)
