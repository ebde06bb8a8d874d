"""Machine instructions that Numba does not offer: find the lowest set bit, load and store 64 bits at any byte."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

__all__ = ["load_u64", "lowest_set_bit", "store_u64"]


@intrinsic
def lowest_set_bit(_typing: Any, word: Any) -> Any:  # noqa: ARG001 - Numba reads the parameter's name
    """Position of the lowest set bit of a non-zero ``uint64``."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return types.uint64(types.uint64), generate


@intrinsic
def load_u64(_typing: Any, array: Any, offset: Any) -> Any:  # noqa: ARG001
    """Little-endian ``uint64`` at byte ``offset`` of a contiguous ``uint8`` array. Nothing is checked."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        address = builder.gep(builder.bitcast(data, ir.IntType(8).as_pointer()), [args[1]])
        return builder.load(builder.bitcast(address, ir.IntType(64).as_pointer()), align=1)

    return types.uint64(array, types.int64), generate


@intrinsic
def store_u64(_typing: Any, array: Any, offset: Any, value: Any) -> Any:  # noqa: ARG001
    """Store a ``uint64``, little-endian, at byte ``offset`` of a contiguous array. Nothing is checked."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        address = builder.gep(builder.bitcast(data, ir.IntType(8).as_pointer()), [args[1]])
        builder.store(args[2], builder.bitcast(address, ir.IntType(64).as_pointer()), align=1)
        return context.get_dummy_value()

    return types.void(array, types.int64, types.uint64), generate
