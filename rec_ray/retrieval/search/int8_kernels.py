"""Inner loops of the search over bytes as machine code: products of bytes, and the float32 scores of chosen items.

Input: addresses and sizes. Output: scores, and flags of scores that reach their threshold. Callers must pass memory
that is large enough.

`vpdpbusd` multiplies 64 pairs of bytes and adds them into 16 sums in one instruction: four times the rate of float32.
No available library returns its result without writing all scores to memory, so this module emits the instruction
through LLVM; numba compiles it for the current processor. `is_supported` returns False without AVX-512 VNNI.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba.core import cgutils, config, types
from numba.extending import intrinsic

GROUP_ITEMS = 64
"""Items of a group: four vectors of 16 sums."""
GROUP_QUERIES = 6
"""Queries that are multiplied with a group together: 24 sums stay in the 32 registers."""
CHAIN_ROWS = 8
"""Items whose float32 scores are computed side by side: the latency of a multiply-add in steps, times two units."""

_VECTORS = GROUP_ITEMS // 16
_INT16, _INT32, _INT64, _FLOAT = ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
_SUMS = ir.VectorType(_INT32, 16)


@cache
def is_supported() -> bool:
    """Return True if this processor multiplies vectors of bytes (AVX-512 VNNI) and numba compiles for exactly this
    processor.
    """
    if config.CPU_NAME or config.CPU_FEATURES:
        return False
    features = llvm.get_host_cpu_features()
    return bool(features.get("avx512vnni")) and bool(features.get("avx512bw"))


def _spread(build: Any, number: Any) -> Any:
    """Return a vector of 16 copies of the number."""
    undefined = ir.Constant(_SUMS, ir.Undefined)
    one = build.insert_element(undefined, number, ir.Constant(_INT32, 0))
    return build.shuffle_vector(one, undefined, ir.Constant(_SUMS, [0] * 16))


def _element(build: Any, base: Any, index: Any) -> Any:
    return build.gep(base, [index if not isinstance(index, int) else ir.Constant(_INT64, index)])


@intrinsic
def multiply_group(typing: Any, items: Any, queries: Any, least: Any, steps: Any, flags: Any, sums: Any) -> Any:
    """Multiply a group of items with a group of queries and compare; all arguments but `steps` are addresses.

    items: [steps, 64, 4] unsigned bytes.  queries: [steps, 6, 4] signed bytes.  least: [6] int32.  Returns 0 when no
    sum reaches the least of its query; otherwise writes flags [6] uint64, one bit per item, and sums [6, 64] int32.
    """

    def generate(context: Any, build: Any, signature: Any, arguments: Any) -> Any:
        items, queries, least, steps, flags, sums = arguments
        multiply = cgutils.get_or_insert_function(
            build.module, ir.FunctionType(_SUMS, [_SUMS] * 3), "llvm.x86.avx512.vpdpbusd.512"
        )
        items, sums = (build.inttoptr(address, _SUMS.as_pointer()) for address in (items, sums))
        queries, least = (build.inttoptr(address, _INT32.as_pointer()) for address in (queries, least))
        flags = build.inttoptr(flags, _INT64.as_pointer())
        # The compiler keeps these cells in registers.
        total = [[cgutils.alloca_once(build, _SUMS) for _ in range(_VECTORS)] for _ in range(GROUP_QUERIES)]
        for row in total:
            for cell in row:
                build.store(ir.Constant(_SUMS, [0] * 16), cell)
        with cgutils.for_range(build, steps) as loop:
            at = build.mul(loop.index, ir.Constant(_INT64, _VECTORS))
            vectors = []
            for number in range(_VECTORS):
                vectors.append(build.load(_element(build, items, build.add(at, ir.Constant(_INT64, number))), align=4))
            at = build.mul(loop.index, ir.Constant(_INT64, GROUP_QUERIES))
            for number, row in enumerate(total):
                packed_query = build.load(_element(build, queries, build.add(at, ir.Constant(_INT64, number))))
                query = _spread(build, packed_query)
                for vector, cell in zip(vectors, row, strict=True):
                    build.store(build.call(multiply, [build.load(cell), vector, query]), cell)
        found = [[build.load(cell) for cell in row] for row in total]
        reached, any_reached = [], ir.Constant(_INT64, 0)
        for number, row in enumerate(found):
            threshold = _spread(build, build.load(_element(build, least, number)))
            bits = ir.Constant(_INT64, 0)
            for place, vector in enumerate(row):
                part = build.zext(build.bitcast(build.icmp_signed(">=", vector, threshold), _INT16), _INT64)
                bits = build.or_(bits, build.shl(part, ir.Constant(_INT64, 16 * place)))
            reached.append(bits)
            any_reached = build.or_(any_reached, bits)
        with build.if_then(build.icmp_unsigned("!=", any_reached, ir.Constant(_INT64, 0)), likely=False):
            for number, (bits, row) in enumerate(zip(reached, found, strict=True)):
                build.store(bits, _element(build, flags, number))
                for place, vector in enumerate(row):
                    build.store(vector, _element(build, sums, number * _VECTORS + place), align=4)
        return any_reached

    return types.int64(*[types.int64] * 6), generate


@intrinsic
def multiply_chain(typing: Any, rows: Any, query: Any, size: Any, scores: Any) -> Any:
    """Write the float32 scores of 8 items and a query: the chain of fused multiply-adds over the dimensions in order.

    rows: address of [8] int64 addresses of float32 vectors [size].  query: address of float32 [size].  scores: address
    of [8] float32.
    """

    def generate(context: Any, build: Any, signature: Any, arguments: Any) -> Any:
        rows, query, size, scores = arguments
        rows = build.inttoptr(rows, _INT64.as_pointer())
        query, scores = (build.inttoptr(address, _FLOAT.as_pointer()) for address in (query, scores))
        items = [
            build.inttoptr(build.load(_element(build, rows, row)), _FLOAT.as_pointer()) for row in range(CHAIN_ROWS)
        ]
        sums = [cgutils.alloca_once(build, _FLOAT) for _ in items]
        for cell in sums:
            build.store(ir.Constant(_FLOAT, 0.0), cell)
        with cgutils.for_range(build, size) as loop:
            value = build.load(_element(build, query, loop.index))
            for item, cell in zip(items, sums, strict=True):
                build.store(build.fma(value, build.load(_element(build, item, loop.index)), build.load(cell)), cell)
        for row, cell in enumerate(sums):
            build.store(build.load(cell), _element(build, scores, row))
        return ir.Constant(_INT64, 0)

    return types.int64(*[types.int64] * 4), generate


@intrinsic
def fetch_row(typing: Any, row: Any, size: Any) -> Any:
    """Prefetch the memory of a float32 vector.  row: its address.  size: its dimensions."""

    def generate(context: Any, build: Any, signature: Any, arguments: Any) -> Any:
        row, size = arguments
        byte, flag = ir.IntType(8).as_pointer(), _INT32
        fetch = cgutils.get_or_insert_function(
            build.module, ir.FunctionType(ir.VoidType(), [byte, flag, flag, flag]), "llvm.prefetch.p0"
        )
        lines = build.lshr(build.add(size, ir.Constant(_INT64, 15)), ir.Constant(_INT64, 4))
        with cgutils.for_range(build, lines) as loop:
            address = build.add(row, build.mul(loop.index, ir.Constant(_INT64, 64)))
            build.call(fetch, [build.inttoptr(address, byte), *(ir.Constant(flag, value) for value in (0, 3, 1))])
        return ir.Constant(_INT64, 0)

    return types.int64(types.int64, types.int64), generate


@intrinsic
def lowest_bit(typing: Any, bits: Any) -> Any:
    """Return the place of the lowest bit that is set."""

    def generate(context: Any, build: Any, signature: Any, arguments: Any) -> Any:
        return build.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.uint64(types.uint64), generate
