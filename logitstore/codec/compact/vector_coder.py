"""The coder of symbols in vector registers: sixteen groups at a time, eight symbols of each between loads and stores.

Numba has no vectors, so this is written in LLVM's language, which knows no processor in particular.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from logitstore import layout
from logitstore.codec.compact.instructions import shuffle_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["IDLE", "LANES", "PACKED_WORDS", "STEPS", "code_blocks"]

LANES = 16
"""Groups that are coded together."""
STEPS = 8
"""Symbols of each group in a block."""
IDLE = np.uint32(1 << layout.TABLE_LOG2)
"""A part that is certain: it neither changes the state nor writes a word."""
PACKED_WORDS = np.array(
    [[0] * (16 - 2 * byte.bit_count()) + [2 * bit + half for bit in range(8) if byte >> bit & 1 for half in (0, 1)]
     for byte in range(256)], np.uint8,
)  # fmt: skip
"""For every byte, the bytes of a vector of eight uint16 that belong to its set bits, at the end."""

_I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_EIGHT = ir.VectorType(_I32, 8)
_WORDS = ir.VectorType(_I16, 8)
_FLOATS = ir.VectorType(ir.FloatType(), 8)


def _all(number: int) -> Any:
    return ir.Constant(_EIGHT, [number] * 8)


def _shuffled(builder: Any, first: Any, second: Any, order: Sequence[int]) -> Any:
    return builder.shuffle_vector(first, second, ir.Constant(ir.VectorType(_I32, len(order)), list(order)))


def _transposed(builder: Any, rows: list[Any]) -> list[Any]:
    """Transpose eight vectors of eight 32-bit numbers, within halves of 128 bits for as long as possible."""
    pairs = []
    for first, second in zip(rows[::2], rows[1::2], strict=True):
        pairs.append(_shuffled(builder, first, second, [0, 8, 1, 9, 4, 12, 5, 13]))
        pairs.append(_shuffled(builder, first, second, [2, 10, 3, 11, 6, 14, 7, 15]))
    fours = []
    for first, second in ((0, 2), (1, 3), (4, 6), (5, 7)):
        fours.append(_shuffled(builder, pairs[first], pairs[second], [0, 1, 8, 9, 4, 5, 12, 13]))
        fours.append(_shuffled(builder, pairs[first], pairs[second], [2, 3, 10, 11, 6, 7, 14, 15]))
    halves = list(zip(fours[:4], fours[4:], strict=True))
    low = [_shuffled(builder, a, b, [0, 1, 2, 3, 8, 9, 10, 11]) for a, b in halves]
    return low + [_shuffled(builder, a, b, [4, 5, 6, 7, 12, 13, 14, 15]) for a, b in halves]


def _transposed_words(builder: Any, rows: list[Any]) -> list[Any]:
    """Transpose eight vectors of eight 16-bit numbers: three perfect shuffles."""
    for _ in range(3):
        shuffled = []
        for first, second in zip(rows[:4], rows[4:], strict=True):
            shuffled.append(_shuffled(builder, first, second, [0, 8, 1, 9, 2, 10, 3, 11]))
            shuffled.append(_shuffled(builder, first, second, [4, 12, 5, 13, 6, 14, 7, 15]))
        rows = shuffled
    return rows


def _transposed_bits(builder: Any, bits: Any) -> Any:
    """Transpose the eight bytes of a number as a matrix of bits, by swapping ever larger squares."""
    for shift, mask in ((7, 0x00AA00AA00AA00AA), (14, 0x0000CCCC0000CCCC), (28, 0x00000000F0F0F0F0)):
        by = ir.Constant(_I64, shift)
        swapped = builder.and_(builder.xor(bits, builder.lshr(bits, by)), ir.Constant(_I64, mask))
        bits = builder.xor(bits, builder.xor(swapped, builder.shl(swapped, by)))
    return bits


def _step(builder: Any, state: Any, part: Any) -> tuple[Any, Any, Any]:
    """Code a symbol of each of eight groups; return states, the words that they may put out, and which of them do."""
    frequency = builder.and_(part, _all(0xFFFF))
    start = builder.lshr(part, _all(16))
    is_high = builder.icmp_signed(">=", builder.lshr(state, _all(32 - layout.TABLE_LOG2)), frequency)
    word = builder.trunc(state, _WORDS)
    state = builder.select(is_high, builder.lshr(state, _all(16)), state)
    # The quotient is below 2^22, where the quotient of rounded floats is off by less than 1.
    quotient = builder.fptosi(builder.fdiv(builder.uitofp(state, _FLOATS), builder.sitofp(frequency, _FLOATS)), _EIGHT)
    rest = builder.sub(state, builder.mul(quotient, frequency))
    one_more = builder.sext(builder.icmp_signed(">=", rest, frequency), _EIGHT)
    one_less = builder.sext(builder.icmp_signed("<", rest, _all(0)), _EIGHT)
    quotient = builder.add(builder.sub(quotient, one_more), one_less)
    others = builder.sub(_all(1 << layout.TABLE_LOG2), frequency)
    return builder.add(builder.add(state, start), builder.mul(quotient, others)), word, is_high


@intrinsic  # type: ignore[untyped-decorator]
def code_blocks(_typing: Any, ends: Any, states: Any, targets: Any, places: Any, blocks: Any) -> Any:  # noqa: ARG001
    """Code ``STEPS · blocks`` symbols of LANES groups, last one first. Nothing is checked.

    ``ends`` (uint64), ``states`` (uint32) and ``targets`` (uint64) are addresses of LANES numbers: where each group's
    parts end, its state, and where its words end, which go below. States and targets are changed; 16 bytes below a
    target are written in any case. ``places`` is the address of PACKED_WORDS.
    """

    def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        ends, states, targets, places, blocks = args
        halves = range(LANES // 8)

        def at(base: Any, offset: int, kind: Any) -> Any:
            return builder.inttoptr(builder.add(base, ir.Constant(_I64, offset)), kind.as_pointer())

        before = builder.basic_block
        check, body, done = (builder.append_basic_block(name) for name in ("check", "body", "done"))
        first = [builder.load(at(states, 32 * half, _EIGHT), align=4) for half in halves]
        builder.branch(check)
        builder.position_at_end(check)
        index, state = builder.phi(_I64), [builder.phi(_EIGHT) for _ in halves]
        for phi, value in zip((index, *state), (ir.Constant(_I64, 0), *first), strict=True):
            phi.add_incoming(value, before)
        builder.cbranch(builder.icmp_unsigned("<", index, blocks), body, done)

        builder.position_at_end(body)
        following = builder.add(index, ir.Constant(_I64, 1))
        back = builder.mul(following, ir.Constant(_I64, 4 * STEPS))
        parts = []
        for half in halves:
            rows = []
            for lane in range(8):
                end = builder.load(at(ends, 8 * (8 * half + lane), _I64), align=8)
                rows.append(builder.load(builder.inttoptr(builder.sub(end, back), _EIGHT.as_pointer()), align=4))
            parts.append(_transposed(builder, rows))
        current: list[Any] = list(state)
        words: list[list[Any]] = [[None] * STEPS for _ in halves]
        masks: list[Any] = [ir.Constant(_I64, 0) for _ in halves]
        for step in reversed(range(STEPS)):
            for half in halves:
                current[half], words[half][step], high = _step(builder, current[half], parts[half][step])
                mask = builder.zext(builder.bitcast(high, _I8), _I64)
                masks[half] = builder.or_(masks[half], builder.shl(mask, ir.Constant(_I64, 8 * step)))
        for half in halves:
            bits = _transposed_bits(builder, masks[half])
            for lane, row in enumerate(_transposed_words(builder, words[half])):
                mask = builder.and_(builder.lshr(bits, ir.Constant(_I64, 8 * lane)), ir.Constant(_I64, 255))
                order = builder.inttoptr(
                    builder.add(places, builder.shl(mask, ir.Constant(_I64, 4))), ir.VectorType(_I8, 16).as_pointer()
                )
                packed = shuffle_bytes(
                    builder, builder.bitcast(row, ir.VectorType(_I8, 16)), builder.load(order, align=1)
                )
                place = at(targets, 8 * (8 * half + lane), _I64)
                target = builder.load(place, align=8)
                builder.store(packed, at(target, -16, ir.VectorType(_I8, 16)), align=1)
                count = builder.shl(builder.ctpop(mask), ir.Constant(_I64, 1))
                builder.store(builder.sub(target, count), place, align=8)
        for phi, value in zip((index, *state), (following, *current), strict=True):
            phi.add_incoming(value, body)
        builder.branch(check)

        builder.position_at_end(done)
        for half in halves:
            builder.store(state[half], at(states, 32 * half, _EIGHT), align=4)
        return context.get_dummy_value()

    return types.void(*[types.uint64] * 5), generate
