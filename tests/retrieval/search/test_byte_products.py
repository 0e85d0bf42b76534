"""Each product of bytes that this processor has, against the same sums in plain integers."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from rec_ray.errors import DataError
from rec_ray.retrieval.search import ExactTopK
from rec_ray.retrieval.search.byte_products import (
    FLOAT32,
    GROUP_ITEMS,
    GROUP_QUERIES,
    KERNELS,
    PLAIN,
    STRETCH_STEPS,
    available_kernels,
    fastest_kernel,
    kernel_address,
)


def run(kernel, items, queries, below):
    """Return flags [6, 64] and sums [6, 64] of signed bytes: items [64, d], queries [6, d], d a multiple of four."""
    product, steps = KERNELS[kernel], items.shape[1] // 4
    zero = 1 << (product.item_bits - 1)
    packed = np.ascontiguousarray((items + zero).astype(np.uint8).reshape(GROUP_ITEMS, steps, 4).swapaxes(0, 1))
    query_bytes = np.ascontiguousarray(queries.astype(np.int8).reshape(GROUP_QUERIES, steps, 4).swapaxes(0, 1))
    if product.is_stretched:
        stretches = [queries[:, at : at + 4 * STRETCH_STEPS] for at in range(0, 4 * steps, 4 * STRETCH_STEPS)]
        pairs = [stretch.reshape(GROUP_QUERIES, -1, 2, 2).sum(axis=(1, 3)) for stretch in stretches]
        starts = (-zero * np.array(pairs)).astype(np.uint16).astype(np.uint32)
        starts = (starts[:, :, 1] << 16 | starts[:, :, 0]).view(np.int32)
    else:
        starts = ((product.zero - zero) * queries.sum(axis=1)).astype(np.int32)
    below = np.asarray(below, np.int32)
    flags, sums = np.empty(GROUP_QUERIES, np.uint64), np.zeros((GROUP_QUERIES, GROUP_ITEMS), np.int32)
    arrays = [packed, query_bytes, np.ascontiguousarray(starts), below]
    multiply = ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * 7)(kernel_address(kernel))
    reached = multiply(*[array.ctypes.data for array in arrays], steps, flags.ctypes.data, sums.ctypes.data)
    bits = np.unpackbits(flags.astype("<u8").view(np.uint8), bitorder="little").reshape(GROUP_QUERIES, GROUP_ITEMS)
    assert bool(reached) == bits.any()
    return bits.astype(bool), sums


def bytes_of(kernel, steps, kind):
    """Return items and queries as signed bytes up to the limits of the kernel."""
    rng = np.random.default_rng(steps)
    most = (1 << (KERNELS[kernel].item_bits - 1)) - 1
    items, queries = rng.integers(-most, most + 1, (64, 4 * steps)), rng.integers(-127, 128, (6, 4 * steps))
    if kind == "largest":  # each pair of products as large as bytes allow, of both signs
        items, queries = np.where(items < 0, -most, most), np.where(queries < 0, -127, 127)
        items[:6] = np.sign(queries) * most
        items[6:12] = -items[:6]
    if kind == "one dimension":
        items[:, 1:], queries[:, 1:] = 0, 0
        items[:, 0], queries[:, 0] = np.where(items[:, 0] < 0, -most, most), 127
    if KERNELS[kernel].is_stretched:  # Cauchy-Schwarz in 16 bits, as the search scales its queries
        reach = 0.0
        for at in range(0, 4 * steps, 4 * STRETCH_STEPS):
            parts = items[:, at : at + 4 * STRETCH_STEPS].reshape(64, -1, 2, 2)
            reach = max(reach, np.sqrt((parts**2).sum(axis=(1, 3)).max()))
            norms = np.sqrt((queries[:, at : at + 4 * STRETCH_STEPS].reshape(6, -1, 2, 2) ** 2).sum(axis=(1, 3)).max())
            queries = np.trunc(queries * min(1.0, 32766 / max(1.0, reach * norms))).astype(int)
    return items, queries


@pytest.mark.parametrize("kind", ["random", "largest", "one dimension"])
@pytest.mark.parametrize("steps", [1, 2, 15, 16, 17, 33, 64])
@pytest.mark.parametrize("kernel", available_kernels())
def test_sums_and_flags_are_those_of_integers(kernel, steps, kind):
    items, queries = bytes_of(kernel, steps, kind)
    expected = queries @ items.T
    flags, sums = run(kernel, items, queries, [-(2**31)] * 6)
    assert flags.all()
    np.testing.assert_array_equal(sums, expected)
    below = np.sort(expected, axis=1)[:, [63, 62, 40, 5, 0, 63]].diagonal()
    flags, sums = run(kernel, items, queries, below)
    np.testing.assert_array_equal(flags, expected > below[:, None])
    np.testing.assert_array_equal(sums[flags], expected[flags])
    assert not run(kernel, items, queries, expected.max(axis=1))[0].any()


def test_the_plain_kernel_runs_everywhere_and_is_not_chosen():
    assert available_kernels()[-1] == PLAIN
    assert fastest_kernel() in {*available_kernels()[:-1], FLOAT32}
    assert ExactTopK(np.zeros((5, 4), np.float32)).kernel == fastest_kernel()


def test_a_kernel_of_another_processor_is_refused():
    with pytest.raises(DataError, match=f"no search kernel sse9; it has .*{PLAIN}, {FLOAT32}"):
        ExactTopK(np.zeros((5, 4), np.float32), kernel="sse9")
