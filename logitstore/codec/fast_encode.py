"""The encoder of the ``exact`` codec in Numba: the same bytes as `reference`, several hundred times as fast.

Every kernel releases the GIL.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from logitstore import layout
from logitstore.codec.header import Column
from logitstore.codec.intrinsics import highest_set_bit, store_u64
from logitstore.codec.kernels import inlined, kernel
from logitstore.codec.transform import UNUSED
from logitstore.errors import InvalidArgumentError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["encode_rows", "gaps_of_ids", "pack_column", "residuals_of_bits"]

_NIBBLE = layout.PARAMETER_BITS
_WINDOW = (1 << layout.PARAMETER_BITS) - 1
_MAX = layout.PARAMETER_MAX

_SMALL = np.uint32(1 << 26)
"""Sums of 64 residuals below it fit 32 bits."""
_SHORT_WIDTH = 14
"""Widest remainder of which four go into one store."""
_WIDEST = 56
"""Bits of one store: 64 less up to seven that are there already, less what keeps shifts below 64."""


@kernel
def _gaps(ids: Any, bound: Any, counts: Any, gaps: Any) -> int:
    """Fill counts and gaps; return the first bad row or -1."""
    rows, slots = ids.shape
    for row in range(rows):
        count = slots
        while count and ids[row, count - 1] == np.uint32(0xFFFFFFFF):
            count -= 1
        counts[row] = count
        previous = np.int64(-1)
        bad = False
        for slot in range(count):
            token = np.int64(ids[row, slot])
            bad |= token <= previous
            gaps[row, slot] = np.uint32(token - previous - 1)
            previous = token
        if bad or previous >= bound:
            return row
        gaps[row, count:] = 0
    return -1


@kernel
def _residuals(
    bits: Any, unused: Any, ragged: bool, is_float: bool, shifts: Any, counts: Any, bases: Any, out: Any
) -> None:
    rows, slots = bits.shape
    for row in range(rows):
        shift = np.uint32(shifts[row])
        half = np.uint32(1) << np.uint32(8 * bits.itemsize - 1 - shift)
        count = slots
        if ragged:
            while count and bits[row, count - 1] == unused:
                count -= 1
        counts[row] = count
        low = np.uint32(0xFFFFFFFF)
        for slot in range(count):
            key = np.uint32(bits[row, slot]) >> shift
            if is_float:
                key = half + (half - np.uint32(1)) - key if key & half else key | half
            out[row, slot] = key
            low = min(low, key)
        bases[row] = low if count else np.uint32(0)
        for slot in range(count):
            out[row, slot] -= low
        out[row, count:] = 0


# Kernels index rows of residuals by their place in the flat array: a slice costs two atomic counts of its references,
# more than a block of 16. Unsigned indexes spare the test for negative ones, without which there are no vectors.


@kernel
def _choose(residuals: Any, slots: Any, counts: Any, block_log2: int, parameters: Any, lengths: Any) -> Any:
    """Best parameter of every block and the bits of every row; returns the largest parameter."""
    size = np.int64(1) << block_log2
    largest = np.int64(0)
    for row in range(len(counts)):
        first = row * slots
        end = first + counts[row]
        union = np.uint32(0)
        for slot in range(first, end):
            union |= residuals[np.uint64(slot)]
        length = np.int64(0)
        # A row of zeros has no bits, and its parameters stay 0.
        for block in range((end - first + size - 1) >> block_log2 if union else 0):
            low = first + (block << block_log2)
            high = min(low + size, end)
            if union < _SMALL:
                w, cost = _best_of_small(residuals, low, high)
            else:
                w, cost = _best(residuals, low, high, np.int64(0))
            parameters[row, block] = w
            largest = max(largest, w)
            length += _NIBBLE + cost
        lengths[row] = length
    return largest


@inlined
def _best_of_small(residuals: Any, low: Any, high: Any) -> Any:
    """As `_best`, for up to 64 residuals below 2^26, whose sums fit 32 bits."""
    n = high - low
    full = low + (n & ~np.int64(15))
    total = np.uint32(0)
    for first in range(low, full, 16):
        for lane in range(16):  # a constant number of turns becomes vector instructions
            total = np.uint32(total + residuals[np.uint64(first + lane)])
    for slot in range(full, high):
        total = np.uint32(total + residuals[np.uint64(slot)])
    # The best parameter is mostly the logarithm of the mean: try it and its neighbours in one pass, else walk.
    w = max(np.int64(1), highest_set_bit(np.uint64(total) | np.uint64(1)) - highest_set_bit(np.uint64(n)))
    shift = np.uint32(w - 1)
    a = b = c = np.uint32(0)
    for first in range(low, full, 16):
        for lane in range(16):
            y = residuals[np.uint64(first + lane)] >> shift
            a = np.uint32(a + y)
            b = np.uint32(b + (y >> np.uint32(1)))
            c = np.uint32(c + (y >> np.uint32(2)))
    for slot in range(full, high):
        y = residuals[np.uint64(slot)] >> shift
        a = np.uint32(a + y)
        b = np.uint32(b + (y >> np.uint32(1)))
        c = np.uint32(c + (y >> np.uint32(2)))
    below, cost, above = np.int64(a) + n * w, np.int64(b) + n * (w + 1), np.int64(c) + n * (w + 2)
    if below > cost and cost <= above:
        return w, cost
    return _best(residuals, low, high, w)


@inlined
def _best(residuals: Any, low: Any, high: Any, w: Any) -> Any:
    """Smallest parameter that costs the fewest bits, and these bits. The cost is convex: walk from ``w``."""
    cost = _cost(residuals, low, high, w)
    while w < _MAX:
        above = _cost(residuals, low, high, w + 1)
        if above >= cost:
            break
        cost = above
        w += 1
    while w > 0:
        below = _cost(residuals, low, high, w - 1)
        if below > cost:
            break
        cost = below
        w -= 1
    return w, cost


@inlined
def _cost(residuals: Any, low: Any, high: Any, w: Any) -> Any:
    bits = np.uint64(0)
    for slot in range(low, high):
        bits += np.uint64(residuals[np.uint64(slot)] >> np.uint32(w))
    return np.int64(bits) + (high - low) * (w + 1)


@kernel
def _raise_parameters(
    residuals: Any, slots: Any, counts: Any, block_log2: int, base: int, parameters: Any, lengths: Any
) -> None:
    """Lift parameters below ``base`` to it; only needed where a chunk's parameters span more than 16."""
    size = np.int64(1) << block_log2
    for row in range(len(counts)):
        first = row * slots
        end = first + counts[row]
        for block in range((end - first + size - 1) >> block_log2 if lengths[row] else 0):
            w = np.int64(parameters[row, block])
            if w < base:
                low = first + (block << block_log2)
                high = min(low + size, end)
                lengths[row] += _cost(residuals, low, high, base) - _cost(residuals, low, high, w)
                parameters[row, block] = base


@inlined
def _put(data: Any, position: Any, pending: Any, value: Any, width: Any) -> Any:
    """Append up to 56 bits at bit ``position``; ``pending`` are the bits of its byte below it. Returns both anew."""
    word = pending | (value << np.uint64(position & 7))
    store_u64(data, position >> 3, word)
    end = position + width
    return end, word >> np.uint64(8 * ((end >> 3) - (position >> 3)))


@kernel
def _write(
    residuals: Any, slots: Any, counts: Any, block_log2: int, base: int, parameters: Any, lengths: Any, data: Any
) -> None:
    size = np.int64(1) << block_log2
    position = np.int64(0)
    pending = np.uint64(0)
    one = np.uint64(1)
    for row in range(len(counts)):
        first = row * slots
        end = first + counts[row]
        blocks = (end - first + size - 1) >> block_log2 if lengths[row] else 0
        for block in range(blocks):
            position, pending = _put(data, position, pending, np.uint64(parameters[row, block] - base), _NIBBLE)
        for block in range(blocks):
            w = np.int64(parameters[row, block])
            w64 = np.uint64(w)
            mask = (one << w64) - one
            slot = first + (block << block_log2)
            last = min(slot + size, end)
            while w <= _SHORT_WIDTH and slot + 4 <= last:
                word = np.uint64(residuals[np.uint64(slot)]) & mask
                word |= (np.uint64(residuals[np.uint64(slot + 1)]) & mask) << w64
                word |= (np.uint64(residuals[np.uint64(slot + 2)]) & mask) << (w64 + w64)
                word |= (np.uint64(residuals[np.uint64(slot + 3)]) & mask) << (w64 + w64 + w64)
                position, pending = _put(data, position, pending, word, 4 * w)
                slot += 4
            while slot < last:
                position, pending = _put(data, position, pending, np.uint64(residuals[np.uint64(slot)]) & mask, w)
                slot += 1
        for block in range(blocks):
            w64 = np.uint64(parameters[row, block])
            slot = first + (block << block_log2)
            last = min(slot + size, end)
            while slot < last:
                # Four quotients in one store where they fit, else one, behind as many zeros as it needs.
                if slot + 4 <= last:
                    a = np.uint64(residuals[np.uint64(slot)]) >> w64
                    b = (np.uint64(residuals[np.uint64(slot + 1)]) >> w64) + a + one
                    c = (np.uint64(residuals[np.uint64(slot + 2)]) >> w64) + b + one
                    d = (np.uint64(residuals[np.uint64(slot + 3)]) >> w64) + c + one
                    if d < np.uint64(_WIDEST):
                        word = (one << a) | (one << b) | (one << c) | (one << d)
                        position, pending = _put(data, position, pending, word, np.int64(d) + 1)
                        slot += 4
                        continue
                quotient = np.int64(np.uint64(residuals[np.uint64(slot)]) >> w64)
                while quotient >= _WIDEST:
                    position, pending = _put(data, position, pending, np.uint64(0), _WIDEST)
                    quotient -= _WIDEST
                position, pending = _put(data, position, pending, one << np.uint64(quotient), quotient + 1)
                slot += 1


@kernel
def _pack(values: Any, low: Any, width: Any, data: Any) -> None:
    position = np.int64(0)
    pending = np.uint64(0)
    for value in values:
        position, pending = _put(data, position, pending, np.uint64(value) - np.uint64(low), width)


def gaps_of_ids(ids: NDArray[np.uint32], bound: int) -> tuple[NDArray[np.int64], NDArray[np.uint32]]:
    """Return entries per row and the gaps between ascending ids, both checked.

    Raises
    ------
    InvalidArgumentError
        A row is not strictly ascending with unused slots last, or has an id outside the vocabulary.
    """
    counts = np.empty(len(ids), np.int64)
    gaps = np.empty(ids.shape, np.uint32)
    row = _gaps(ids, bound, counts, gaps)
    if row >= 0:
        raise InvalidArgumentError(
            f"ids of a row are ascending, unique, below the vocabulary size {bound}, with unused slots last; "
            f"row {row} of the chunk is {ids[row].tolist()[:8]}…"
        )
    return counts, gaps


def residuals_of_bits(
    bits: NDArray[Any], dtype: int, shifts: NDArray[np.int64], *, ragged: bool
) -> tuple[NDArray[np.int64], NDArray[np.uint32], NDArray[np.uint32]]:
    """Return entries per row, each row's smallest key, and the keys less that."""
    counts = np.empty(len(bits), np.int64)
    bases = np.empty(len(bits), np.uint32)
    out = np.empty(bits.shape, np.uint32)
    is_float = dtype in (layout.DTYPE_FLOAT16, layout.DTYPE_FLOAT32)
    unused = bits.dtype.type(UNUSED.get(dtype, 0))
    _residuals(bits, unused, ragged, is_float, shifts, counts, bases, out)
    return counts, bases, out


def encode_rows(
    residuals: NDArray[np.uint32], counts: NDArray[np.int64], block_log2: int
) -> tuple[int, NDArray[np.int64], memoryview]:
    """Code rows of residuals: parameter base, bits of each row, and the payload with its guard words."""
    lengths = np.empty(len(residuals), np.int64)
    slots = residuals.shape[1]
    flat = residuals.reshape(-1)
    parameters = np.zeros((len(residuals), -(-slots // (1 << block_log2))), np.uint8)
    base = max(0, int(_choose(flat, slots, counts, block_log2, parameters, lengths)) - _WINDOW)
    if base:
        _raise_parameters(flat, slots, counts, block_log2, base, parameters, lengths)
    words32 = -(-int(lengths.sum()) // 32) + layout.GUARD_WORDS
    payload = _buffer(words32)
    _write(flat, slots, counts, block_log2, base, parameters, lengths, payload)
    return base, lengths, payload.data[: 4 * words32]


@kernel
def _range(values: Any) -> Any:
    low, high = values[0], values[0]
    for value in values:
        low, high = min(low, value), max(high, value)
    return low, high


def pack_column(values: NDArray[Any]) -> tuple[Column, memoryview]:
    """Pack one value per row against their minimum."""
    if not len(values):
        return Column(0, 0), memoryview(b"")
    low, high = _range(values)
    column = Column(low, (high - low).bit_length())
    words32 = column.words(len(values))
    packed = _buffer(words32)
    if column.width:
        _pack(values, low, column.width, packed)
    return column, packed.data[: 4 * words32]


def _buffer(words32: int) -> NDArray[np.uint8]:
    """Room for so many 32-bit words and the widest store at their end. Only what no store reaches is zeroed."""
    data = np.empty(4 * words32 + 8, np.uint8)
    data[-24:] = 0
    return data
