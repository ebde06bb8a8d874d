"""Sums of rows of bytes in vector registers, and the largest of many numbers: what scores of classes are made of.

Numba has no vectors, so this is written in LLVM's language, which knows no processor in particular.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

__all__ = [
    "COLUMNS",
    "LANES",
    "MOST_ROWS",
    "ROWS",
    "SMALL",
    "best_of_rows",
    "largest_below",
    "sum_rows_of_32",
    "sum_rows_of_64",
]

LANES = 16
"""Numbers of a vector."""
COLUMNS = 32
"""Columns of a table of `sum_rows_of_32`."""
ROWS = 8
"""Rows are added so many at a time."""
SMALL = 31
"""Numbers so small that ROWS of them fit a byte."""
MOST_ROWS = 1 << 11
"""Rows of such numbers whose sums fit 16 bits."""
_I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))


def _numbers(builder: Any, address: Any, index: Any) -> list[Any]:
    """Load ROWS uint16 from the one at ``index`` on."""
    at = builder.inttoptr(builder.add(address, builder.shl(index, ir.Constant(_I64, 1))), _I16.as_pointer())
    places = (builder.gep(at, [ir.Constant(_I64, number)]) for number in range(ROWS))
    return [builder.zext(builder.load(place, align=2), _I64) for place in places]


def _summer(vectors: int) -> Any:
    """Make an intrinsic that adds ``COLUMNS · vectors`` columns of some rows to 32-bit totals. Nothing is checked.

    All arguments are 64 bits: addresses of the first of the columns (uint8, at most SMALL), of the rows' numbers
    (uint16) and of the totals (int32); bytes of a row; how many rows, a multiple of ROWS, at most MOST_ROWS.
    """

    @intrinsic  # type: ignore[untyped-decorator]
    def add(_typing: Any, table: Any, rows: Any, totals: Any, row_bytes: Any, count: Any) -> Any:  # noqa: ARG001
        def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            table, rows, totals, row_bytes, count = args
            narrow, wide = ir.VectorType(_I8, COLUMNS), ir.VectorType(_I16, COLUMNS)
            before = builder.basic_block
            check, body, done = (builder.append_basic_block(name) for name in ("check", "body", "done"))
            builder.branch(check)
            builder.position_at_end(check)
            index, sums = builder.phi(_I64), [builder.phi(wide) for _ in range(vectors)]
            index.add_incoming(ir.Constant(_I64, 0), before)
            for phi in sums:
                phi.add_incoming(ir.Constant(wide, [0] * COLUMNS), before)
            builder.cbranch(builder.icmp_unsigned("<", index, count), body, done)
            builder.position_at_end(body)
            parts: list[Any] = [ir.Constant(narrow, [0] * COLUMNS)] * vectors
            for row in _numbers(builder, rows, index):
                at = builder.add(table, builder.mul(row, row_bytes))
                for vector in range(vectors):
                    source = builder.add(at, ir.Constant(_I64, COLUMNS * vector))
                    loaded = builder.load(builder.inttoptr(source, narrow.as_pointer()), align=1)
                    parts[vector] = builder.add(parts[vector], loaded)
            for phi, part in zip(sums, parts, strict=True):
                phi.add_incoming(builder.add(phi, builder.zext(part, wide)), body)
            index.add_incoming(builder.add(index, ir.Constant(_I64, ROWS)), body)
            builder.branch(check)
            builder.position_at_end(done)
            for vector, phi in enumerate(sums):
                target = builder.add(totals, ir.Constant(_I64, 4 * COLUMNS * vector))
                pointer = builder.inttoptr(target, ir.VectorType(_I32, COLUMNS).as_pointer())
                whole = builder.zext(phi, ir.VectorType(_I32, COLUMNS))
                builder.store(builder.add(builder.load(pointer, align=4), whole), pointer, align=4)
            return context.get_dummy_value()

        return types.void(*[types.uint64] * 5), generate

    return add


sum_rows_of_32, sum_rows_of_64 = _summer(1), _summer(2)


@intrinsic  # type: ignore[untyped-decorator]
def best_of_rows(_typing: Any, table: Any, places: Any, numbers: Any, count: Any, constants: Any) -> Any:  # noqa: ARG001
    """Add rows of LANES int8 to LANES constants (int32); return 16 times the largest sum plus 15 less its first lane.

    All arguments are addresses but ``count``, a multiple of ROWS. The rows are those that ``places`` (uint16) has for
    ``count`` numbers (uint16). Sums are below 2^27. Nothing is checked.
    """

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        table, places, numbers, count, constants = args
        narrow, wide = ir.VectorType(_I16, LANES), ir.VectorType(_I32, LANES)
        before = builder.basic_block
        check, body, done = (builder.append_basic_block(name) for name in ("check", "body", "done"))
        begin = builder.load(builder.inttoptr(constants, wide.as_pointer()), align=4)
        builder.branch(check)
        builder.position_at_end(check)
        index, totals = builder.phi(_I64), builder.phi(wide)
        index.add_incoming(ir.Constant(_I64, 0), before)
        totals.add_incoming(begin, before)
        builder.cbranch(builder.icmp_unsigned("<", index, count), body, done)
        builder.position_at_end(body)
        sums: Any = ir.Constant(narrow, [0] * LANES)
        for number in _numbers(builder, numbers, index):
            at = builder.add(places, builder.shl(number, ir.Constant(_I64, 1)))
            place = builder.zext(builder.load(builder.inttoptr(at, _I16.as_pointer()), align=2), _I64)
            at = builder.add(table, builder.shl(place, ir.Constant(_I64, 4)))
            row = builder.load(builder.inttoptr(at, ir.VectorType(_I8, LANES).as_pointer()), align=1)
            sums = builder.add(sums, builder.sext(row, narrow))
        index.add_incoming(builder.add(index, ir.Constant(_I64, ROWS)), body)
        totals.add_incoming(builder.add(totals, builder.sext(sums, wide)), body)
        builder.branch(check)
        builder.position_at_end(done)
        found = totals
        found = builder.shl(found, ir.Constant(wide, [4] * LANES))
        found = builder.or_(found, ir.Constant(wide, list(range(LANES - 1, -1, -1))))
        return builder.call(_largest(builder), [found])

    return types.int32(*[types.uint64] * 5), generate


@intrinsic  # type: ignore[untyped-decorator]
def largest_below(_typing: Any, numbers: Any, count: Any, bound: Any) -> Any:  # noqa: ARG001
    """Largest of ``count`` int32 at an address, a multiple of LANES, that are below ``bound``; -2^31 if none is."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        numbers, count, bound = args
        wide, lowest = ir.VectorType(_I32, LANES), ir.Constant(ir.VectorType(_I32, LANES), [-(1 << 31)] * LANES)
        one = builder.insert_element(ir.Constant(wide, ir.Undefined), bound, ir.Constant(_I32, 0))
        bounds = builder.shuffle_vector(one, one, ir.Constant(wide, [0] * LANES))
        before = builder.basic_block
        body, done = builder.append_basic_block("body"), builder.append_basic_block("done")
        builder.branch(body)
        builder.position_at_end(body)
        index, most = builder.phi(_I64), builder.phi(wide)
        index.add_incoming(ir.Constant(_I64, 0), before)
        most.add_incoming(lowest, before)
        at = builder.inttoptr(builder.add(numbers, builder.shl(index, ir.Constant(_I64, 2))), wide.as_pointer())
        found = builder.load(at, align=4)
        found = builder.select(builder.icmp_signed("<", found, bounds), found, lowest)
        larger = builder.select(builder.icmp_signed(">", found, most), found, most)
        following = builder.add(index, ir.Constant(_I64, LANES))
        index.add_incoming(following, body)
        most.add_incoming(larger, body)
        builder.cbranch(builder.icmp_unsigned("<", following, count), body, done)
        builder.position_at_end(done)
        return builder.call(_largest(builder), [larger])

    return types.int32(types.uint64, types.uint64, types.int32), generate


def _largest(builder: Any) -> Any:
    """LLVM's reduction of LANES int32 to the largest."""
    name = "llvm.vector.reduce.smax.v16i32"
    kinds = ir.FunctionType(_I32, [ir.VectorType(_I32, LANES)])
    return builder.module.globals.get(name) or ir.Function(builder.module, kinds, name)
