"""Instructions that Numba does not offer: packing of what a mask chooses, and a few on single words."""

from __future__ import annotations

from typing import Any

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

__all__ = ["PACKED_PLACES", "lowest_set_bit", "pack_eight", "prefetch", "shuffle_bytes", "store_like"]

PACKED_PLACES = np.array(
    [[2 * bit + half for bit in range(8) if byte >> bit & 1 for half in (0, 1)] + [0] * (16 - 2 * byte.bit_count())
     for byte in range(256)], np.uint8,
)  # fmt: skip
"""For every byte, the bytes of a vector of eight uint16 that belong to its set bits."""
_I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))


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


def shuffle_bytes(builder: Any, data: Any, order: Any) -> Any:
    """Emit a look-up of 16 places (0 to 15) in a vector of 16 bytes, as an instruction where the processor has one."""
    kind = ir.VectorType(_I8, 16)
    if llvmlite.binding.get_host_cpu_features().get("ssse3"):
        name = "llvm.x86.ssse3.pshuf.b.128"
    elif llvmlite.binding.get_process_triple().startswith(("aarch64", "arm64")):
        name = "llvm.aarch64.neon.tbl1.v16i8"
    else:
        found = ir.Constant(kind, ir.Undefined)
        for lane in range(16):
            at = ir.Constant(_I32, lane)
            byte = builder.extract_element(data, builder.zext(builder.extract_element(order, at), _I32))
            found = builder.insert_element(found, byte, at)
        return found
    function = builder.module.globals.get(name) or ir.Function(
        builder.module, ir.FunctionType(kind, [kind, kind]), name
    )
    return builder.call(function, [data, order])


@intrinsic  # type: ignore[untyped-decorator]
def pack_eight(_typing: Any, keys: Any, first: Any, table: Any, wanted: Any, places: Any, target: Any) -> Any:  # noqa: ARG001
    """Look up eight of ``keys`` in a table of uint16, and store those that are not 0, less 1, side by side.

    ``keys`` is an array, ``first`` the first one's place in it. Only the bits of ``wanted`` count. Addresses are those
    of the table, of PACKED_PLACES, and of where numbers go, eight in any case. Returns a bit for each that was stored.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        keys, first, table, wanted, places, target = args
        eight, sixteen = ir.VectorType(_I16, 8), ir.VectorType(_I8, 16)
        data = context.make_array(signature.args[0])(context, builder, keys).data
        numbers = ir.Constant(eight, ir.Undefined)
        for lane in range(8):
            place = builder.gep(data, [builder.add(first, ir.Constant(_I64, lane))])
            at = builder.add(table, builder.shl(builder.zext(builder.load(place), _I64), ir.Constant(_I64, 1)))
            number = builder.load(builder.inttoptr(at, _I16.as_pointer()), align=2)
            numbers = builder.insert_element(numbers, number, ir.Constant(_I32, lane))
        there = builder.icmp_unsigned("!=", numbers, ir.Constant(eight, [0] * 8))
        mask = builder.and_(builder.zext(builder.bitcast(there, _I8), _I64), wanted)
        row = builder.inttoptr(builder.add(places, builder.shl(mask, ir.Constant(_I64, 4))), sixteen.as_pointer())
        order = builder.load(row, align=1)
        numbers = builder.bitcast(builder.sub(numbers, ir.Constant(eight, [1] * 8)), sixteen)
        packed = shuffle_bytes(builder, numbers, order)
        builder.store(packed, builder.inttoptr(target, sixteen.as_pointer()), align=1)
        return mask

    return types.uint64(keys, *[types.uint64] * 5), generate


@intrinsic  # type: ignore[untyped-decorator]
def lowest_set_bit(_typing: Any, word: Any) -> Any:  # noqa: ARG001
    """Position of the lowest set bit of a non-zero ``uint64``."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return types.uint64(types.uint64), generate
