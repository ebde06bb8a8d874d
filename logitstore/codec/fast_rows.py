"""Residuals of one row, from its bits: the inner loops of the ``exact`` decoder.

A row whose residuals all fit 16 bits, as nearly all do, takes the short path: quotients a byte of the stream at a time,
and remainders four to a 64-bit word. Any other row takes the long path, one residual at a time.

Nothing outside ``start:end`` is interpreted, whatever the bits say, and nothing outside the buffer is loaded: a range
is checked before it is read, and the payload's guard words cover the widest load.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit

from logitstore import layout
from logitstore.codec.intrinsics import load_u64, lowest_set_bit, store_u64

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["BROKEN", "NOT_SHORT", "QUOTIENTS", "SPARE", "long_residuals", "short_residuals"]

SPARE = 128
"""Slots by which a broken row may overrun its buffers before that is noticed: a 64-bit word, and eight lanes."""

NOT_SHORT = -1
"""The row needs the long path."""

BROKEN = {
    1: "needs more bits than it has",
    2: "does not end where its bits do",
    3: "has an id outside the vocabulary",
    4: "has a value outside its type",
    5: "has a residual of more than 32 bits",
    6: "has a parameter above 31",
}

_NIBBLE = layout.PARAMETER_BITS
_WINDOW = (1 << layout.PARAMETER_BITS) - 1
_MAX = layout.PARAMETER_MAX
_LANES = np.uint64(0x0001_0001_0001_0001)
_SHORT_WIDTH = 14
"""Widest remainder of which four, and the seven bits before them, fit a 64-bit load."""

_inlined = njit(nogil=True, cache=True, boundscheck=False, error_model="numpy", inline="always")


def _quotient_table() -> NDArray[np.uint64]:
    """For every byte of a unary stream: its quotients as eight uint16, how many they are, and the zeros behind them."""
    table = np.zeros((256, 4), np.uint64)
    for byte in range(256):
        ones = [bit for bit in range(8) if byte >> bit & 1]
        quotients = [one - previous - 1 for previous, one in zip([-1, *ones], ones, strict=False)]
        low, high = (sum(q << 16 * i for i, q in enumerate(half)) for half in (quotients[:4], quotients[4:]))
        table[byte] = low, high, len(ones), 7 - ones[-1] if ones else 8
    return table


QUOTIENTS = _quotient_table()


@_inlined
def _short_quotients(data: Any, start: Any, end: Any, count: Any, table: Any, out: Any) -> Any:
    """Read quotients that are all below 2^16, a byte of the stream at a time; return how many there are."""
    slot = np.int64(0)
    zeros = np.uint64(0)
    position = start
    while position < end and slot <= count:
        word = load_u64(data, position >> 3) >> np.uint64(position & 7)
        bits = min(np.int64(56), end - position)
        if bits < 56:
            word &= (np.uint64(1) << np.uint64(bits)) - np.uint64(1)
        for _ in range((bits + 7) >> 3):
            byte = word & np.uint64(255)
            word >>= np.uint64(8)
            # All eight lanes are stored; those beyond the byte's own quotients are overwritten by the next byte.
            store_u64(out, 2 * slot, table[byte, 0] + zeros)
            store_u64(out, 2 * slot + 8, table[byte, 1])
            found = table[byte, 2]
            zeros = table[byte, 3] + (zeros if found == 0 else np.uint64(0))
            slot += np.int64(found)
        position += 56
    return slot


@_inlined
def _long_quotients(data: Any, start: Any, end: Any, count: Any, out: Any) -> Any:
    """Read quotients of any size, one at a time; return how many there are."""
    slot = np.int64(0)
    expected = np.int64(0)
    position = start
    while position < end and slot <= count:
        word = load_u64(data, position >> 3) >> np.uint64(position & 7)
        bits = min(np.int64(64 - (position & 7)), end - position)
        if bits < 64:
            word &= (np.uint64(1) << np.uint64(bits)) - np.uint64(1)
        while word != np.uint64(0):
            one = position - start + np.int64(lowest_set_bit(word))
            out[slot] = np.uint32(one - expected)
            expected = one + 1
            word &= word - np.uint64(1)
            slot += 1
        position += bits
    return slot


@_inlined
def _parameter(data: Any, position: Any, base: Any) -> Any:
    return base + np.int64((load_u64(data, position >> 3) >> np.uint64(position & 7)) & np.uint64(_WINDOW))


@_inlined
def _start_of_quotients(data: Any, start: Any, end: Any, count: Any, block_log2: int, base: Any) -> Any:
    """Return the first bit of the quotients, or a key of BROKEN, negated."""
    size = np.int64(1) << block_log2
    blocks = (count + size - 1) >> block_log2
    position = start + _NIBBLE * blocks
    if position + count > end:
        return np.int64(-1)
    for block in range(blocks):
        w = _parameter(data, start + _NIBBLE * block, base)
        if w > _MAX:
            return np.int64(-6)
        position += w * min(size, count - (block << block_log2))
    return position if position + count <= end else np.int64(-1)


@_inlined
def _ends_with_one(data: Any, end: Any) -> Any:
    last = end - 1
    return (data[last >> 3] >> np.uint8(last & 7)) & 1


@_inlined
def short_residuals(
    data: Any, start: Any, end: Any, count: Any, block_log2: int, base: Any, table: Any, out: Any
) -> Any:
    """Fill ``out[:count]`` (uint16, SPARE slots more than a row) from bits ``start:end``.

    Returns 0, NOT_SHORT, or a key of BROKEN.
    """
    if start == end:
        for slot in range(count):
            out[slot] = 0
        return 0
    quotients = _start_of_quotients(data, start, end, count, block_log2, base)
    if quotients < 0:
        return -quotients
    if end - quotients - count >= 1 << 16:
        return NOT_SHORT
    if _short_quotients(data, quotients, end, count, table, out) != count or not _ends_with_one(data, end):
        return 2
    size = np.int64(1) << block_log2
    blocks = (count + size - 1) >> block_log2
    position = start + _NIBBLE * blocks
    too_wide = np.uint64(0)
    for block in range(blocks):
        w = _parameter(data, start + _NIBBLE * block, base)
        if w == 0:
            continue
        if w > _SHORT_WIDTH:
            return NOT_SHORT
        first = block << block_log2
        n = min(size, count - first)
        w1 = np.uint64(w)
        lane = (np.uint64(1) << w1) - np.uint64(1)
        pair = lane | (lane << w1)
        even = lane | (lane << np.uint64(32))
        far = np.uint64(32) - w1 - w1
        near = np.uint64(16) - w1
        overflow = (np.uint64(0xFFFF) & ~(np.uint64(0xFFFF) >> w1)) * _LANES
        # The last block may be read beyond its end: its bits lie within the row, its slots within SPARE.
        for group in range((n + 3) >> 2):
            word = load_u64(data, position >> 3) >> np.uint64(position & 7)
            # Spread four remainders of w bits over four lanes of 16: first two and two, then one and one.
            word = (word & pair) | ((word << far) & (pair << np.uint64(32)))
            word = (word & even) | ((word << near) & (even << np.uint64(16)))
            offset = 2 * (first + 4 * group)
            quotient = load_u64(out, offset)
            too_wide |= quotient & overflow
            store_u64(out, offset, word | (quotient << w1))
            position += 4 * w
        position -= w * (((n + 3) & ~3) - n)
    return 0 if too_wide == 0 else NOT_SHORT


@_inlined
def long_residuals(data: Any, start: Any, end: Any, count: Any, block_log2: int, base: Any, out: Any) -> Any:
    """Fill ``out[:count]`` (uint32, SPARE slots more than a row) from bits ``start:end``; 0 or a key of BROKEN."""
    quotients = _start_of_quotients(data, start, end, count, block_log2, base)
    if quotients < 0:
        return -quotients
    if _long_quotients(data, quotients, end, count, out) != count or not _ends_with_one(data, end):
        return 2
    size = np.int64(1) << block_log2
    blocks = (count + size - 1) >> block_log2
    position = start + _NIBBLE * blocks
    overflow = np.uint64(0)
    for block in range(blocks):
        w = _parameter(data, start + _NIBBLE * block, base)
        mask = (np.uint64(1) << np.uint64(w)) - np.uint64(1)
        first = block << block_log2
        for slot in range(first, min(count, first + size)):
            remainder = (load_u64(data, position >> 3) >> np.uint64(position & 7)) & mask
            residual = (np.uint64(out[slot]) << np.uint64(w)) | remainder
            overflow |= residual >> np.uint64(32)
            out[slot] = np.uint32(residual)
            position += w
    return 0 if overflow == 0 else 5
