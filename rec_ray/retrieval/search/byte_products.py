"""Products of bytes as machine code for each kind of processor: a group of items with a group of queries.

Input: the name of a kernel. Output: the address of its machine code, which LLVM makes in milliseconds, so that no
compiler is needed on the machine.

All kernels read the same layout and write the same 32-bit sums. They differ in the instruction: `vpdpbusd` multiplies
unsigned with signed bytes and adds four products to a 32-bit sum (AVX-512 VNNI in 64 bytes, AVX-VNNI in 32); `sdot`
does so with signed bytes (ARM). AVX2 has no such instruction: `vpmaddubsw` adds two products to 16 bits and saturates,
so its items have seven bits. Its 16-bit sums of a stretch of dimensions may wrap in between; their ends are right,
because queries are scaled until no stretch of an item and a query reaches 16 bits (Cauchy-Schwarz). The plain kernel
runs on every processor; it is slower than float32 products and serves the tests.
"""

from __future__ import annotations

import ctypes
import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir

from rec_ray.errors import DataError

GROUP_ITEMS = 64
"""Items of a group; their flags are the bits of one number."""
STRETCH_STEPS = 16
"""Steps of four dimensions whose products a sum of 16 bits takes."""
GROUP_QUERIES = 6
"""Queries that are multiplied with a block of items together, so that their sums stay in registers."""

_BYTE, _INT16, _INT32, _INT64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_ARM_DOT_PRODUCT = 1 << 20  # of AT_HWCAP, asm/hwcap.h


@dataclass(frozen=True)
class ByteKernel:
    """A kind of product.

    cpu, features: the target in LLVM's names; "native" is the processor itself.  needs: features of the processor, in
    LLVM's names.  lanes: 32-bit sums of a vector.  vectors: vectors of a block of items.  multiply: emits the sums of
    (builder, sums, items, queries).  zero: byte that the product takes as 0.  item_bits: bits of an item's byte.
    is_stretched: sums of 16 bits, two for each item, are widened after each stretch of dimensions.
    """

    name: str
    cpu: str
    features: str
    needs: tuple[str, ...]
    lanes: int
    vectors: int
    multiply: Callable[[Any, Any, Any, Any], Any]
    zero: int = 0
    item_bits: int = 8
    is_stretched: bool = False


def _call(build: Any, name: str, result: Any, *arguments: Any) -> Any:
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    function = build.module.globals.get(name) or ir.Function(build.module, kind, name)
    return build.call(function, arguments)


def _vpdpbusd(bits: int) -> Callable[[Any, Any, Any, Any], Any]:
    def multiply(build: Any, sums: Any, items: Any, queries: Any) -> Any:
        return _call(build, f"llvm.x86.avx512.vpdpbusd.{bits}", sums.type, sums, items, queries)

    return multiply


def _vpmaddubsw(build: Any, sums: Any, items: Any, queries: Any) -> Any:
    of_bytes, of_pairs = ir.VectorType(_BYTE, 32), ir.VectorType(_INT16, 16)
    items, queries = (build.bitcast(part, of_bytes) for part in (items, queries))
    pairs = _call(build, "llvm.x86.avx2.pmadd.ub.sw", of_pairs, items, queries)
    return build.bitcast(build.add(build.bitcast(sums, of_pairs), pairs), sums.type)


def _sdot(build: Any, sums: Any, items: Any, queries: Any) -> Any:
    of_bytes = ir.VectorType(_BYTE, 16)
    items = build.xor(build.bitcast(items, of_bytes), ir.Constant(of_bytes, [128] * 16))
    return _call(build, "llvm.aarch64.neon.sdot.v4i32.v16i8", sums.type, sums, items, build.bitcast(queries, of_bytes))


def _plain(build: Any, sums: Any, items: Any, queries: Any) -> Any:
    of_bytes, wide = ir.VectorType(_BYTE, 16), ir.VectorType(_INT32, 16)
    items = build.zext(build.bitcast(items, of_bytes), wide)
    products = build.mul(items, build.sext(build.bitcast(queries, of_bytes), wide))
    for place in range(4):
        chosen = ir.Constant(ir.VectorType(_INT32, 4), [4 * lane + place for lane in range(4)])
        sums = build.add(sums, build.shuffle_vector(products, ir.Constant(wide, ir.Undefined), chosen))
    return sums


PLAIN = "plain"
FLOAT32 = "float32"
"""Name of the search without products of bytes."""
KERNELS = {
    kernel.name: kernel
    for kernel in (
        ByteKernel(
            "avx512-vnni",
            "x86-64-v4",
            "+avx512vnni,-prefer-256-bit",
            ("avx512vnni", "avx512bw", "avx512dq", "avx512vl", "avx512cd"),
            16,
            4,
            _vpdpbusd(512),
        ),
        ByteKernel("avx-vnni", "x86-64-v3", "+avxvnni", ("avxvnni", "avx2"), 8, 2, _vpdpbusd(256)),
        ByteKernel("avx2", "x86-64-v3", "", ("avx2", "fma", "bmi2"), 8, 2, _vpmaddubsw, item_bits=7, is_stretched=True),
        ByteKernel("neon-dotprod", "generic", "+dotprod", ("dotprod",), 4, 4, _sdot, zero=128),
        ByteKernel(PLAIN, "native", "", (), 4, 2, _plain),
    )
}
"""The kernels, fastest first."""


@cache
def available_kernels() -> tuple[str, ...]:
    """Return the kernels that this processor runs, fastest first; the last one is the plain one."""
    features = _processor_features()
    return tuple(name for name, kernel in KERNELS.items() if features.issuperset(kernel.needs))


def fastest_kernel() -> str:
    """Return the kernel that searches use: `FLOAT32`, no product of bytes, if this processor has the plain one only."""
    name = available_kernels()[0]
    return FLOAT32 if name == PLAIN else name


def check_kernel(name: str) -> str:
    """Return the name.

    Raises DataError if this processor has no such kernel.
    """
    if name not in (*available_kernels(), FLOAT32):
        names = ", ".join((*available_kernels(), FLOAT32))
        raise DataError(f"this processor has no search kernel {name}; it has {names}")
    return name


def _processor_features() -> set[str]:
    if platform.machine().lower() in ("aarch64", "arm64"):
        # LLVM has the features of Apple's processors under their names only; each has the products.
        if sys.platform == "darwin":
            return {"dotprod"}
        if sys.platform == "linux":
            return {"dotprod"} if ctypes.CDLL(None).getauxval(16) & _ARM_DOT_PRODUCT else set()
    try:
        return {name for name, has_it in llvm.get_host_cpu_features().items() if has_it}
    except RuntimeError:  # LLVM has no names for the features of this kind of processor
        return set()


_ENGINES: list[Any] = []  # machine code lives as long as its engine


@cache
def kernel_address(name: str) -> int:
    """Return the address of a kernel of `available_kernels` in this process.

    The code is a C function of addresses and a count (items, queries, starts, below, steps, flags, sums), as
    `multiply_group` in `int8_kernels` calls it.
    """
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = _target_machine(KERNELS[name], llvm.Target.from_default_triple(), jit=True)
    module = _optimised(KERNELS[name], machine)
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    _ENGINES.append(engine)
    return int(engine.get_function_address("multiply"))


def _target_machine(kernel: ByteKernel, target: Any, jit: bool) -> Any:
    cpu = llvm.get_host_cpu_name() if kernel.cpu == "native" else kernel.cpu
    return target.create_target_machine(cpu=cpu, features=kernel.features, opt=3, jit=jit)


def _optimised(kernel: ByteKernel, machine: Any) -> Any:
    module = llvm.parse_assembly(_emit(kernel))
    module.data_layout = str(machine.target_data)
    module.verify()
    options = llvm.create_pipeline_tuning_options(speed_level=3)
    passes = llvm.create_pass_builder(machine, options)
    passes.getModulePassManager().run(module, passes)
    return module


@contextmanager
def _loop(build: Any, stop: Any) -> Iterator[Any]:
    """Emit a loop over 0 <= index < stop, at least once."""
    before, body = build.block, build.append_basic_block()
    build.branch(body)
    build.position_at_end(body)
    index = build.phi(_INT64)
    index.add_incoming(ir.Constant(_INT64, 0), before)
    yield index
    following = build.add(index, ir.Constant(_INT64, 1))
    index.add_incoming(following, build.block)
    after = build.append_basic_block()
    build.cbranch(build.icmp_signed("<", following, stop), body, after)
    build.position_at_end(after)


def _emit(kernel: ByteKernel) -> str:
    """Return the kernel in LLVM's language.

    items: [steps, 64, 4] bytes.  queries: [steps, 6, 4] signed bytes.  starts: [stretches, 6] int32, from which the
    sums of a stretch begin.  below: [6] int32.  Returns 0 when no sum is above that of its query; otherwise writes
    flags [6] uint64, one bit per item, and the sums [6, 64] int32 of each block of items that has a flag.
    """
    module = ir.Module(name=kernel.name)
    of_sums = ir.VectorType(_INT32, kernel.lanes)
    vector, int32, int64 = of_sums.as_pointer(), _INT32.as_pointer(), _INT64.as_pointer()
    kind = ir.FunctionType(_INT64, [vector, int32, int32, int32, _INT64, int64, vector])
    function = ir.Function(module, kind, "multiply")
    items, queries, starts, below, steps, flags, sums = function.args
    build = ir.IRBuilder(function.append_basic_block())
    rows, vectors, lanes = range(GROUP_QUERIES), range(kernel.vectors), kernel.lanes
    of_group = GROUP_ITEMS // lanes

    def const(number: int) -> Any:
        return ir.Constant(_INT64, number)

    def cells(kind: Any) -> list[list[Any]]:
        return [[build.alloca(kind) for _ in vectors] for _ in rows]

    def at(base: Any, *terms: Any) -> Any:
        index = terms[0]
        for term in terms[1:]:
            index = build.add(index, term)
        return build.gep(base, [index])

    def spread(number: Any) -> Any:
        one = build.insert_element(ir.Constant(of_sums, ir.Undefined), number, ir.Constant(_INT32, 0))
        return build.shuffle_vector(one, ir.Constant(of_sums, ir.Undefined), ir.Constant(of_sums, [0] * lanes))

    totals, parts, reached = cells(of_sums), cells(of_sums), build.alloca(_INT64)
    build.store(const(0), reached)
    for row in rows:
        build.store(const(0), at(flags, const(row)))

    def multiply(first: Any, stretch: Any, count: Any) -> None:
        """Add the products of `count` steps from `stretch` * STRETCH_STEPS on to the parts."""
        for row in rows:
            start = spread(build.load(at(starts, build.mul(stretch, const(GROUP_QUERIES)), const(row))))
            for cell in parts[row]:
                build.store(start, cell)
        begin = build.mul(stretch, const(STRETCH_STEPS))
        with _loop(build, count) as index:
            step = build.add(begin, index)
            base = build.add(build.mul(step, const(of_group)), first)
            loaded = [build.load(at(items, base, const(place)), align=4) for place in vectors]
            for row in rows:
                query = spread(build.load(at(queries, build.mul(step, const(GROUP_QUERIES)), const(row))))
                for item, cell in zip(loaded, parts[row], strict=True):
                    build.store(kernel.multiply(build, build.load(cell), item, query), cell)

    def widen(row: int) -> list[Any]:
        """Return the sums of the pairs of 16 bits in the parts."""
        of_pairs = ir.VectorType(_INT16, 2 * lanes)
        ones = ir.Constant(of_pairs, [1] * (2 * lanes))
        pairs = [build.bitcast(build.load(cell), of_pairs) for cell in parts[row]]
        return [_call(build, "llvm.x86.avx2.pmadd.wd", of_sums, part, ones) for part in pairs]

    def compare(first: Any, found: list[list[Any]]) -> None:
        """Compare the sums of a block of items; nearly always all of them are too small for large catalogues."""
        bars, any_pass = [], None
        for row in rows:
            bars.append(spread(build.load(at(below, const(row)))))
            largest = found[row][0]
            for part in found[row][1:]:
                largest = build.select(build.icmp_signed(">", part, largest), part, largest)
            flag = build.icmp_signed(">", largest, bars[row])
            any_pass = flag if any_pass is None else build.or_(any_pass, flag)
        mask = ir.IntType(lanes)
        with build.if_then(build.icmp_unsigned("!=", build.bitcast(any_pass, mask), ir.Constant(mask, 0))):
            build.store(const(1), reached)
            for row in rows:
                bits = const(0)
                for place, part in enumerate(found[row]):
                    flag = build.bitcast(build.icmp_signed(">", part, bars[row]), mask)
                    bits = build.or_(bits, build.shl(build.zext(flag, _INT64), const(lanes * place)))
                    build.store(part, at(sums, first, const(row * of_group + place)), align=4)
                bits = build.shl(bits, build.mul(first, const(lanes)))
                cell = at(flags, const(row))
                build.store(build.or_(build.load(cell), bits), cell)

    def loaded(of_rows: list[list[Any]]) -> list[list[Any]]:
        return [[build.load(cell) for cell in row] for row in of_rows]

    blocks = const(of_group // kernel.vectors)
    if not kernel.is_stretched:
        with _loop(build, blocks) as block:
            first = build.mul(block, const(kernel.vectors))
            multiply(first, const(0), steps)
            compare(first, loaded(parts))
    else:
        with build.if_else(build.icmp_signed("<=", steps, const(STRETCH_STEPS))) as (one, several):
            with one, _loop(build, blocks) as block:
                first = build.mul(block, const(kernel.vectors))
                multiply(first, const(0), steps)
                compare(first, [widen(row) for row in rows])
            with several, _loop(build, blocks) as block:
                first = build.mul(block, const(kernel.vectors))
                for row in rows:
                    for cell in totals[row]:
                        build.store(ir.Constant(of_sums, [0] * lanes), cell)
                stretches = build.udiv(build.add(steps, const(STRETCH_STEPS - 1)), const(STRETCH_STEPS))
                with _loop(build, stretches) as stretch:
                    left = build.sub(steps, build.mul(stretch, const(STRETCH_STEPS)))
                    is_last = build.icmp_signed("<", left, const(STRETCH_STEPS))
                    multiply(first, stretch, build.select(is_last, left, const(STRETCH_STEPS)))
                    for row in rows:
                        for wide, total in zip(widen(row), totals[row], strict=True):
                            build.store(build.add(build.load(total), wide), total)
                compare(first, loaded(totals))
    build.ret(build.load(reached))
    return str(module)
