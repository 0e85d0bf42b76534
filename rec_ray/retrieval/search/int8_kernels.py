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

CHAIN_ROWS = 16
"""Items whose float32 scores are computed side by side: two vectors of eight, which hide a half of the latency."""

_INT32, _INT64, _FLOAT = ir.IntType(32), ir.IntType(64), ir.FloatType()
_FLOATS = ir.VectorType(_FLOAT, 8)


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


def _columns(build: Any, rows: list[Any]) -> list[Any]:
    """Return the 8 columns of 8 vectors of 8 numbers, by shuffles that are one instruction each with AVX."""

    def shuffle(one: Any, other: Any, *chosen: int) -> Any:
        return build.shuffle_vector(one, other, ir.Constant(ir.VectorType(_INT32, 8), chosen))

    quarters = []
    for at in (0, 4):
        first, second, third, fourth = rows[at : at + 4]
        low = [shuffle(one, other, 0, 8, 1, 9, 4, 12, 5, 13) for one, other in ((first, second), (third, fourth))]
        high = [shuffle(one, other, 2, 10, 3, 11, 6, 14, 7, 15) for one, other in ((first, second), (third, fourth))]
        quarters.append(
            [
                shuffle(*pair, *chosen)
                for pair in (low, high)
                for chosen in ((0, 1, 8, 9, 4, 5, 12, 13), (2, 3, 10, 11, 6, 7, 14, 15))
            ]
        )
    pairs = list(zip(*quarters, strict=True))
    return [shuffle(*pair, 0, 1, 2, 3, 8, 9, 10, 11) for pair in pairs] + [
        shuffle(*pair, 4, 5, 6, 7, 12, 13, 14, 15) for pair in pairs
    ]


@intrinsic
def multiply_chain(typing: Any, rows: Any, query: Any, size: Any, scores: Any) -> Any:
    """Write the float32 scores of 16 items and a query: the chain of fused multiply-adds over the dimensions in order.

    rows: address of [16] int64 addresses of float32 vectors [size].  query: address of float32 [size].  scores: address
    of [16] float32.
    """

    def generate(context: Any, build: Any, signature: Any, arguments: Any) -> Any:
        rows, query, size, scores = arguments
        rows = build.inttoptr(rows, _INT64.as_pointer())
        query = build.inttoptr(query, _FLOAT.as_pointer())
        scores = build.inttoptr(scores, _FLOATS.as_pointer())
        halves = [
            [build.inttoptr(build.load(_element(build, rows, row)), _FLOAT.as_pointer()) for row in range(at, at + 8)]
            for at in range(0, CHAIN_ROWS, 8)
        ]
        multiply = cgutils.get_or_insert_function(
            build.module, ir.FunctionType(_FLOATS, [_FLOATS] * 3), "llvm.fma.v8f32"
        )
        sums = [cgutils.alloca_once(build, _FLOATS) for _ in halves]
        for cell in sums:
            build.store(ir.Constant(_FLOATS, [0.0] * 8), cell)
        undefined = ir.Constant(_FLOATS, ir.Undefined)

        def add(index: Any, columns: list[Any]) -> None:
            one = build.insert_element(undefined, build.load(_element(build, query, index)), ir.Constant(_INT32, 0))
            value = build.shuffle_vector(one, undefined, ir.Constant(ir.VectorType(_INT32, 8), [0] * 8))
            for column, cell in zip(columns, sums, strict=True):
                build.store(build.call(multiply, [value, column, build.load(cell)]), cell)

        blocks = build.lshr(size, ir.Constant(_INT64, 3))
        with cgutils.for_range(build, blocks) as loop:
            start = build.shl(loop.index, ir.Constant(_INT64, 3))
            loaded = [
                [
                    build.load(build.bitcast(_element(build, item, start), _FLOATS.as_pointer()), align=4)
                    for item in half
                ]
                for half in halves
            ]
            columns = [_columns(build, half) for half in loaded]
            for place in range(8):
                add(build.add(start, ir.Constant(_INT64, place)), [half[place] for half in columns])
        with cgutils.for_range(build, size, start=build.shl(blocks, ir.Constant(_INT64, 3))) as loop:
            rest = []
            for half in halves:
                column = undefined
                for place, item in enumerate(half):
                    value = build.load(_element(build, item, loop.index))
                    column = build.insert_element(column, value, ir.Constant(_INT32, place))
                rest.append(column)
            add(loop.index, rest)
        for place, cell in enumerate(sums):
            build.store(build.load(cell), _element(build, scores, place), align=4)
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
