"""Instructions that Numba does not offer: sums of rows of bytes in vector registers, and a few on single words."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

__all__ = [
    "LANES",
    "MOST_ROWS",
    "best_lane",
    "lanes_from",
    "lowest_set_bit",
    "prefetch",
    "store_like",
    "sum_rows_of_16",
    "sum_rows_of_64",
]

LANES = 16
"""Numbers of a vector."""
MOST_ROWS = 256
"""Rows whose bytes' sums fit 16 bits."""
_I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))


def _summer(vectors: int) -> Any:
    """Make an intrinsic that adds ``16 · vectors`` columns of some rows to 32-bit totals. Nothing is checked.

    All arguments are 64 bits: addresses of the first of the columns (int8), of the rows' numbers (uint32) and of the
    totals (int32); bytes of a row; how many rows, at most MOST_ROWS; the number of the row that all above it stand for.
    """

    @intrinsic  # type: ignore[untyped-decorator]
    def add(_typing: Any, table: Any, rows: Any, totals: Any, row_bytes: Any, count: Any, last: Any) -> Any:  # noqa: ARG001
        def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            table, rows, totals, row_bytes, count, last = args
            sums = ir.VectorType(_I16, LANES)
            before = builder.basic_block
            check, body, done = (builder.append_basic_block(name) for name in ("check", "body", "done"))
            builder.branch(check)
            builder.position_at_end(check)
            index = builder.phi(_I64)
            index.add_incoming(ir.Constant(_I64, 0), before)
            state = [builder.phi(sums) for _ in range(vectors)]
            for phi in state:
                phi.add_incoming(ir.Constant(sums, [0] * LANES), before)
            builder.cbranch(builder.icmp_unsigned("<", index, count), body, done)
            builder.position_at_end(body)
            at = builder.add(rows, builder.shl(index, ir.Constant(_I64, 2)))
            row = builder.zext(builder.load(builder.inttoptr(at, _I32.as_pointer()), align=4), _I64)
            row = builder.select(builder.icmp_unsigned("<", row, last), row, last)
            at = builder.add(table, builder.mul(row, row_bytes))
            for vector, phi in enumerate(state):
                source = builder.add(at, ir.Constant(_I64, LANES * vector))
                pointer = builder.inttoptr(source, ir.VectorType(_I8, LANES).as_pointer())
                phi.add_incoming(builder.add(phi, builder.sext(builder.load(pointer, align=1), sums)), body)
            index.add_incoming(builder.add(index, ir.Constant(_I64, 1)), body)
            builder.branch(check)
            builder.position_at_end(done)
            for vector, phi in enumerate(state):
                target = builder.add(totals, ir.Constant(_I64, 4 * LANES * vector))
                pointer = builder.inttoptr(target, ir.VectorType(_I32, LANES).as_pointer())
                wide = builder.sext(phi, ir.VectorType(_I32, LANES))
                builder.store(builder.add(builder.load(pointer, align=4), wide), pointer, align=4)
            return context.get_dummy_value()

        return types.void(*[types.uint64] * 6), generate

    return add


sum_rows_of_16, sum_rows_of_64 = _summer(1), _summer(4)


@intrinsic  # type: ignore[untyped-decorator]
def prefetch(_typing: Any, address: Any) -> Any:  # noqa: ARG001
    """Ask for the cache line of an address."""

    def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[0], _I8.as_pointer())
        name = f"llvm.prefetch.{'p0' if not hasattr(pointer.type, 'is_opaque') or pointer.type.is_opaque else 'p0i8'}"
        kinds = ir.FunctionType(ir.VoidType(), [pointer.type, _I32, _I32, _I32])
        function = builder.module.globals.get(name) or ir.Function(builder.module, kinds, name)
        builder.call(function, [pointer, ir.Constant(_I32, 0), ir.Constant(_I32, 3), ir.Constant(_I32, 1)])
        return context.get_dummy_value()

    return types.void(types.uint64), generate


@intrinsic  # type: ignore[untyped-decorator]
def store_like(_typing: Any, array: Any, address: Any, number: Any) -> Any:  # noqa: ARG001
    """Store a number at an address, with as many bytes as an array's elements have."""
    bits = array.dtype.bitwidth

    def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        number = args[2] if bits == 64 else builder.trunc(args[2], ir.IntType(bits))
        builder.store(number, builder.inttoptr(args[1], ir.IntType(bits).as_pointer()), align=1)
        return context.get_dummy_value()

    return types.void(array, types.uint64, types.uint64), generate


@intrinsic  # type: ignore[untyped-decorator]
def lanes_from(_typing: Any, totals: Any, least: Any) -> Any:  # noqa: ARG001
    """Bit mask of those of the LANES totals (int32) at an address that are at least ``least``."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        wide = ir.VectorType(_I32, LANES)
        found = builder.load(builder.inttoptr(args[0], wide.as_pointer()), align=4)
        one = builder.insert_element(ir.Constant(wide, ir.Undefined), args[1], ir.Constant(_I32, 0))
        bound = builder.shuffle_vector(one, one, ir.Constant(wide, [0] * LANES))
        mask = builder.bitcast(builder.icmp_signed(">=", found, bound), _I16)
        return builder.zext(mask, _I64)

    return types.uint64(types.uint64, types.int32), generate


@intrinsic  # type: ignore[untyped-decorator]
def best_lane(_typing: Any, totals: Any) -> Any:  # noqa: ARG001
    """16 times the largest of the LANES totals (int32, below 2^27) at an address, plus 15 less its first lane."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        wide = ir.VectorType(_I32, LANES)
        found = builder.load(builder.inttoptr(args[0], wide.as_pointer()), align=4)
        found = builder.shl(found, ir.Constant(wide, [4] * LANES))
        found = builder.or_(found, ir.Constant(wide, list(range(LANES - 1, -1, -1))))
        name = "llvm.vector.reduce.smax.v16i32"
        reduce = builder.module.globals.get(name) or ir.Function(builder.module, ir.FunctionType(_I32, [wide]), name)
        return builder.call(reduce, [found])

    return types.int32(types.uint64), generate


@intrinsic  # type: ignore[untyped-decorator]
def lowest_set_bit(_typing: Any, word: Any) -> Any:  # noqa: ARG001
    """Position of the lowest set bit of a non-zero ``uint64``."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return types.uint64(types.uint64), generate
