"""Residuals of one row, from its bits: the inner loop of the ``exact`` decoder.

Quotients are found a byte of the stream at a time, through a table, and joined with remainders four at a time.

Nothing outside ``start:end`` is interpreted, whatever the bits say, and nothing outside the buffer is loaded: a range
is checked before it is read, and the payload's guard words cover the widest load.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from logitstore import layout
from logitstore.codec.intrinsics import count_bits, join_four, load_u64, spread_byte
from logitstore.codec.kernels import inlined

__all__ = ["BROKEN", "ONES", "SPARE", "decode_residuals"]

SPARE = 128
"""Slots by which a row may overrun its buffers: a broken one by a 64-bit word, any by eight lanes."""

BROKEN = {
    1: "needs more bits than it has",
    2: "does not end where its bits do",
    3: "has an id outside the vocabulary",
    4: "has a value outside its type",
    5: "has a residual of more than 32 bits",
    6: "has a parameter above 31",
}

ONES = np.array(
    [[bit + 1 for bit in range(8) if byte >> bit & 1] + [0] * (8 - byte.bit_count()) for byte in range(256)], np.uint8
)
"""For every byte, the places of its set bits, counted from 1."""

_NIBBLE = layout.PARAMETER_BITS
_WINDOW = (1 << layout.PARAMETER_BITS) - 1
_MAX = layout.PARAMETER_MAX
_JOINED_WIDTH = 14
"""Widest remainder of which four, and the seven bits before them, fit a 64-bit load."""


@inlined
def _find_ones(data: Any, start: Any, end: Any, count: Any, table: Any, ones: Any) -> Any:
    """Write the places of the set bits among ``start:end``, counted from 1, to ``ones[1:]``; return how many."""
    ones[0] = 0
    slot = np.int64(1)
    before = np.uint32(0)
    position = start
    while position < end and slot <= count + 1:
        word = load_u64(data, position >> 3) >> np.uint64(position & 7)
        bits = min(np.int64(56), end - position)
        word &= (np.uint64(1) << np.uint64(bits)) - np.uint64(1)
        for _ in range(7):
            byte = word & np.uint64(255)
            # All eight lanes are stored; those beyond the byte's own ones are overwritten by the next byte.
            spread_byte(table, byte, before, ones, slot)
            slot += count_bits(byte)
            word >>= np.uint64(8)
            before += np.uint32(8)
        position += 56
    return slot - 1


@inlined
def _parameter(data: Any, position: Any, base: Any) -> Any:
    return base + np.int64((load_u64(data, position >> 3) >> np.uint64(position & 7)) & np.uint64(_WINDOW))


@inlined
def decode_residuals(
    data: Any, start: Any, end: Any, count: Any, block_log2: int, base: Any, table: Any, ones: Any, out: Any
) -> Any:
    """Fill ``out[:count]`` from bits ``start:end``; return 0 or a key of BROKEN.

    ``ones`` and ``out`` are uint32, with SPARE slots more than a row.
    """
    if start == end:
        for slot in range(count):
            out[slot] = 0
        return 0
    size = np.int64(1) << block_log2
    blocks = (count + size - 1) >> block_log2
    position = start + _NIBBLE * blocks
    if position + count > end:
        return 1
    quotients = position
    for block in range(blocks):
        w = _parameter(data, start + _NIBBLE * block, base)
        if w > _MAX:
            return 6
        quotients += w * min(size, count - (block << block_log2))
    if quotients + count > end:
        return 1
    if _find_ones(data, quotients, end, count, table, ones) != count or ones[count] != end - quotients:
        return 2

    overflow = np.uint64(0)
    for block in range(blocks):
        w = _parameter(data, start + _NIBBLE * block, base)
        w64 = np.uint64(w)
        slot = block << block_log2
        stop = min(slot + size, count)
        if w <= _JOINED_WIDTH and (np.uint64(ones[stop] - ones[slot]) << w64) >> np.uint64(32) == 0:
            # The last block may be read beyond its end: its bits lie within the row, its slots within SPARE.
            while slot < stop:
                join_four(load_u64(data, position >> 3) >> np.uint64(position & 7), w64, ones, slot, out)
                position += 4 * w
                slot += 4
            position -= w * (slot - stop)
            continue
        mask = (np.uint64(1) << w64) - np.uint64(1)
        while slot < stop:
            remainder = (load_u64(data, position >> 3) >> np.uint64(position & 7)) & mask
            residual = (np.uint64(ones[slot + 1] - ones[slot] - np.uint32(1)) << w64) | remainder
            overflow |= residual >> np.uint64(32)
            out[slot] = np.uint32(residual)
            position += w
            slot += 1
    return 0 if overflow == 0 else 5
