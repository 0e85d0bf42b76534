"""Inner loops of the search over bytes that numba has no words for: float32 scores of chosen items, prefetches, and
calls of the products of bytes.

Input: addresses and sizes. Output: scores and flags. Callers must pass memory that is large enough. LLVM compiles them
with the search that they are part of, for the current processor.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

CHAIN_ROWS = 8
"""Items whose float32 scores are computed side by side: the latency of a multiply-add in steps, times two units."""

_INT32, _INT64, _FLOAT = ir.IntType(32), ir.IntType(64), ir.FloatType()


def _element(build: Any, base: Any, index: Any) -> Any:
    return build.gep(base, [index if not isinstance(index, int) else ir.Constant(_INT64, index)])


@intrinsic
def multiply_group(
    typing: Any, kernel: Any, items: Any, queries: Any, starts: Any, below: Any, steps: Any, flags: Any, sums: Any
) -> Any:
    """Call a kernel of `byte_products`, which describes the arguments; all but `steps` are addresses."""

    def generate(context: Any, build: Any, signature: Any, arguments: Any) -> Any:
        kernel, *rest = arguments
        kind = ir.FunctionType(_INT64, [_INT64] * 7)
        return build.call(build.inttoptr(kernel, kind.as_pointer()), rest)

    return types.int64(*[types.int64] * 8), generate


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
