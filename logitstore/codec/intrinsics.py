"""Instructions that Numba does not offer: count bits, load and store 64 bits at any byte, and two on short vectors.

LLVM does not find the vectors in scalar code; written as such, every target gets the best that it has.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

__all__ = [
    "address_of",
    "count_bits",
    "highest_set_bit",
    "join_four",
    "load_byte_at",
    "load_u16_at",
    "load_u32_at",
    "load_u64",
    "load_u64_at",
    "spread_byte",
    "store_byte_at",
    "store_u16_at",
    "store_u32_at",
    "store_u64",
    "store_u64_at",
]


@intrinsic
def count_bits(_typing: Any, word: Any) -> Any:  # noqa: ARG001 - Numba reads the parameter's name
    """Count the set bits of a ``uint64``."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.ctpop(args[0])

    return types.int64(types.uint64), generate


@intrinsic
def highest_set_bit(_typing: Any, word: Any) -> Any:  # noqa: ARG001
    """Position of the highest set bit of a non-zero ``uint64``."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        zeros = builder.ctlz(args[0], ir.Constant(ir.IntType(1), 1))
        return builder.sub(ir.Constant(ir.IntType(64), 63), zeros)

    return types.int64(types.uint64), generate


@intrinsic
def load_u64(_typing: Any, array: Any, offset: Any) -> Any:  # noqa: ARG001
    """Little-endian ``uint64`` at byte ``offset`` of a contiguous ``uint8`` array. Nothing is checked."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        address = builder.gep(builder.bitcast(data, ir.IntType(8).as_pointer()), [args[1]])
        return builder.load(builder.bitcast(address, ir.IntType(64).as_pointer()), align=1)

    return types.uint64(array, types.int64), generate


@intrinsic
def address_of(_typing: Any, array: Any) -> Any:
    """Address of the first byte of a contiguous array.

    An array that is handed to an inlined function is counted as a reference and given back, atomically, which takes
    longer than decoding a symbol; an address is not. Who takes it keeps the array alive.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.ptrtoint(data, ir.IntType(64))

    return types.uint64(array), generate


def _loader(bits: int) -> Any:
    """Make an intrinsic that loads an unsigned number at ``address`` plus ``offset`` bytes. Nothing is checked."""

    @intrinsic
    def load(_typing: Any, address: Any, offset: Any) -> Any:  # noqa: ARG001
        def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            pointer = builder.inttoptr(builder.add(args[0], args[1]), ir.IntType(bits).as_pointer())
            number = builder.load(pointer, align=1)
            return number if bits == 64 else builder.zext(number, ir.IntType(64))

        return types.uint64(types.uint64, types.uint64), generate

    return load


def _storer(bits: int) -> Any:
    """Make an intrinsic that stores the low bits of ``number`` at ``address`` plus ``offset`` bytes."""

    @intrinsic
    def store(_typing: Any, address: Any, offset: Any, number: Any) -> Any:  # noqa: ARG001
        def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            pointer = builder.inttoptr(builder.add(args[0], args[1]), ir.IntType(bits).as_pointer())
            builder.store(args[2] if bits == 64 else builder.trunc(args[2], ir.IntType(bits)), pointer, align=1)
            return context.get_dummy_value()

        return types.void(types.uint64, types.uint64, types.uint64), generate

    return store


load_byte_at, load_u16_at, load_u32_at, load_u64_at = _loader(8), _loader(16), _loader(32), _loader(64)
store_byte_at, store_u16_at, store_u32_at, store_u64_at = _storer(8), _storer(16), _storer(32), _storer(64)


@intrinsic
def store_u64(_typing: Any, array: Any, offset: Any, value: Any) -> Any:  # noqa: ARG001
    """Store a ``uint64``, little-endian, at byte ``offset`` of a contiguous array. Nothing is checked."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        address = builder.gep(builder.bitcast(data, ir.IntType(8).as_pointer()), [args[1]])
        builder.store(args[2], builder.bitcast(address, ir.IntType(64).as_pointer()), align=1)
        return context.get_dummy_value()

    return types.void(array, types.int64, types.uint64), generate


@intrinsic
def spread_byte(_typing: Any, table: Any, byte: Any, before: Any, out: Any, slot: Any) -> Any:  # noqa: ARG001
    """Store the eight numbers of ``table[byte]`` (uint8) plus ``before`` to ``out[slot : slot + 8]`` (uint32)."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        row = _pointer(context, builder, signature, args, 0, builder.shl(args[1], ir.Constant(_I64, 3)), (_I8, 8))
        numbers = builder.zext(builder.load(row, align=1), ir.VectorType(_I32, 8))
        target = _pointer(context, builder, signature, args, 3, args[4], (_I32, 8))
        builder.store(builder.add(numbers, _splat(builder, args[2], 8)), target, align=4)
        return context.get_dummy_value()

    return types.void(table, types.uint64, types.uint32, out, types.int64), generate


@intrinsic
def join_four(_typing: Any, word: Any, width: Any, ones: Any, slot: Any, out: Any) -> Any:  # noqa: ARG001
    """Store four residuals to ``out[slot : slot + 4]``.

    Remainders are the low numbers of ``width`` bits of ``word``; quotients lie between ``ones[slot : slot + 5]``.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word, width, _, slot, _ = args
        shifts = builder.mul(_splat(builder, width, 4), ir.Constant(ir.VectorType(_I64, 4), [0, 1, 2, 3]))
        shifted = builder.trunc(builder.lshr(_splat(builder, word, 4), shifts), ir.VectorType(_I32, 4))
        width32 = builder.trunc(width, _I32)
        mask = builder.sub(builder.shl(ir.Constant(_I32, 1), width32), ir.Constant(_I32, 1))
        remainders = builder.and_(shifted, _splat(builder, mask, 4))
        here = builder.load(_pointer(context, builder, signature, args, 2, slot, (_I32, 4)), align=4)
        following = builder.add(slot, ir.Constant(_I64, 1))
        there = builder.load(_pointer(context, builder, signature, args, 2, following, (_I32, 4)), align=4)
        quotients = builder.sub(builder.sub(there, here), ir.Constant(ir.VectorType(_I32, 4), [1] * 4))
        residuals = builder.or_(builder.shl(quotients, _splat(builder, width32, 4)), remainders)
        builder.store(residuals, _pointer(context, builder, signature, args, 4, slot, (_I32, 4)), align=4)
        return context.get_dummy_value()

    return types.void(types.uint64, types.uint64, ones, types.int64, out), generate


_I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))


def _pointer(
    context: Any, builder: Any, signature: Any, args: Any, number: int, item: Any, lanes: tuple[Any, int]
) -> Any:
    """Address of ``item`` of the contiguous array that is argument ``number``, as a vector."""
    data = context.make_array(signature.args[number])(context, builder, args[number]).data
    kind, count = lanes
    return builder.bitcast(builder.gep(data, [item]), ir.VectorType(kind, count).as_pointer())


def _splat(builder: Any, value: Any, lanes: int) -> Any:
    empty = ir.Constant(ir.VectorType(value.type, lanes), ir.Undefined)
    first = builder.insert_element(empty, value, ir.Constant(_I32, 0))
    return builder.shuffle_vector(first, empty, ir.Constant(ir.VectorType(_I32, lanes), [0] * lanes))
