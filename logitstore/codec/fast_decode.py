"""The decoder of the ``exact`` codec in Numba: the same arrays as `reference`, several hundred times as fast.

Every kernel releases the GIL. Kernels never read outside the buffer they are given, whatever its bytes say: a row's bit
range is checked before anything in it is read, and the payload's guard words cover the widest load.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit

from logitstore import layout
from logitstore.codec.intrinsics import load_u64, lowest_set_bit, store_u64
from logitstore.codec.transform import BITS_DTYPE, UNUSED
from logitstore.errors import CorruptDataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from logitstore.codec.header import ChunkHeader

__all__ = ["decode_rows", "row_table"]

_NIBBLE = layout.PARAMETER_BITS
_WINDOW = (1 << layout.PARAMETER_BITS) - 1
_MAX = layout.PARAMETER_MAX
_SPARE = 128
"""Slots by which a broken row may overrun its buffers before that is noticed: a 64-bit word, and eight lanes."""

_BROKEN = {
    1: "needs more bits than it has",
    2: "does not end where its bits do",
    3: "has an id outside the vocabulary",
    4: "has a value outside its type",
    5: "has a residual of more than 32 bits",
    6: "has a parameter above 31",
}


_kernel = njit(nogil=True, cache=True, boundscheck=False, error_model="numpy")
_inlined = njit(nogil=True, cache=True, boundscheck=False, error_model="numpy", inline="always")


@_kernel
def _unpack(data: Any, offset: Any, low: Any, width: Any, out: Any) -> None:
    mask = (np.uint64(1) << np.uint64(width)) - np.uint64(1)
    position = np.int64(offset) * 8
    for row in range(len(out)):
        out[row] = np.int64((load_u64(data, position >> 3) >> np.uint64(position & 7)) & mask) + low
        position += width


def _quotient_table() -> NDArray[np.uint64]:
    """For every byte of a unary stream: its quotients as eight uint16, how many they are, and the zeros behind them."""
    table = np.zeros((256, 4), np.uint64)
    for byte in range(256):
        ones = [bit for bit in range(8) if byte >> bit & 1]
        quotients = [one - previous - 1 for previous, one in zip([-1, *ones], ones, strict=False)]
        low, high = (sum(q << 16 * i for i, q in enumerate(half)) for half in (quotients[:4], quotients[4:]))
        table[byte] = low, high, len(ones), 7 - ones[-1] if ones else 8
    return table


_QUOTIENTS = _quotient_table()


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
def _decode_residuals(  # noqa: PLR0912 - one kernel: a row is decoded in one go
    data: Any, start: Any, end: Any, count: Any, block_log2: int, base: Any, table: Any, short: Any, out: Any
) -> Any:
    """Fill ``out[:count]`` from bits ``start:end``; return 0 or a key of _BROKEN.

    ``short`` (uint16) and ``out`` (uint32) have _SPARE slots more than a row: so far may a broken row run over.
    """
    if start == end:
        out[:count] = 0
        return 0
    size = np.int64(1) << block_log2
    blocks = (count + size - 1) >> block_log2
    remainders = start + _NIBBLE * blocks
    if remainders + count > end:
        return 1
    unary = remainders
    for block in range(blocks):
        w = _parameter(data, start + _NIBBLE * block, base)
        if w > _MAX:
            return 6
        unary += w * min(size, count - (block << block_log2))
    if unary + count > end:
        return 1

    if end - unary - count < 1 << 16:
        found = _short_quotients(data, unary, end, count, table, short)
        if found == count:
            for slot in range(count):
                out[slot] = short[slot]
    else:
        found = _long_quotients(data, unary, end, count, out)
    last = end - 1
    if found != count or not (data[last >> 3] >> np.uint8(last & 7)) & 1:
        return 2

    # Remainders: as many bits as the block's parameter says, four at a time where they fit one load.
    overflow = np.uint32(0)
    slot = np.int64(0)
    for block in range(blocks):
        w = _parameter(data, start + _NIBBLE * block, base)
        stop = min(slot + size, count)
        if w == 0:
            slot = stop
            continue
        w32 = np.uint32(w)
        w64 = np.uint64(w)
        mask = (np.uint64(1) << w64) - np.uint64(1)
        if w <= 14:
            while slot + 4 <= stop:
                word = load_u64(data, remainders >> 3) >> np.uint64(remainders & 7)
                a, b, c, d = out[slot], out[slot + 1], out[slot + 2], out[slot + 3]
                overflow |= (a | b | c | d) >> (np.uint32(32) - w32)
                out[slot] = (a << w32) | np.uint32(word & mask)
                word >>= w64
                out[slot + 1] = (b << w32) | np.uint32(word & mask)
                word >>= w64
                out[slot + 2] = (c << w32) | np.uint32(word & mask)
                word >>= w64
                out[slot + 3] = (d << w32) | np.uint32(word & mask)
                remainders += 4 * w
                slot += 4
        while slot < stop:
            word = load_u64(data, remainders >> 3) >> np.uint64(remainders & 7)
            overflow |= out[slot] >> (np.uint32(32) - w32)
            out[slot] = (out[slot] << w32) | np.uint32(word & mask)
            remainders += w
            slot += 1
    return 0 if overflow == 0 else 5


@_kernel
def _decode_ids(
    data: Any, starts: Any, counts: Any, first: Any, block_log2: int, base: Any, bound: Any, table: Any, out: Any
) -> Any:
    short = np.empty(out.shape[1] + _SPARE, np.uint16)
    scratch = np.empty(out.shape[1] + _SPARE, np.uint32)
    for i in range(out.shape[0]):
        row = first + i
        count = counts[row]
        status = _decode_residuals(data, starts[row], starts[row + 1], count, block_log2, base, table, short, scratch)
        if status:
            return row * 8 + status
        token = np.uint64(0)
        for slot in range(count):
            token += np.uint64(scratch[slot])
            out[i, slot] = np.uint32(token)
            token += np.uint64(1)
        if token > np.uint64(bound):
            return row * 8 + 3
        for slot in range(count, out.shape[1]):
            out[i, slot] = np.uint32(0xFFFFFFFF)
    return -1


@_kernel
def _decode_bits(
    data: Any, starts: Any, counts: Any, bases: Any, first: Any, block_log2: int, base: Any,
    is_float: bool, shift: Any, unused: Any, table: Any, out: Any,
) -> Any:  # fmt: skip
    short = np.empty(out.shape[1] + _SPARE, np.uint16)
    scratch = np.empty(out.shape[1] + _SPARE, np.uint32)
    bits = np.uint64(8 * out.itemsize - shift)
    limit = np.uint64(1) << bits
    half = np.uint32(limit >> np.uint64(1))
    for i in range(out.shape[0]):
        row = first + i
        count = counts[row]
        status = _decode_residuals(data, starts[row], starts[row + 1], count, block_log2, base, table, short, scratch)
        if status:
            return row * 8 + status
        low = np.uint32(bases[row])
        high = np.uint32(0)
        for slot in range(count):
            high = max(high, scratch[slot])
        if count and np.uint64(low) + np.uint64(high) >= limit:
            return row * 8 + 4
        if is_float:
            for slot in range(count):
                key = low + scratch[slot]
                key = key ^ half if key & half else half + (half - np.uint32(1)) - key
                out[i, slot] = key << np.uint32(shift)
        else:
            for slot in range(count):
                out[i, slot] = (low + scratch[slot]) << np.uint32(shift)
        for slot in range(count, out.shape[1]):
            out[i, slot] = unused
    return -1


def row_table(
    header: ChunkHeader, data: NDArray[np.uint8]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Read and check the row table.

    Returns
    -------
    tuple
        Entries of each row ``(rows,)``, first bit of each row counted from the start of ``data`` with the end of the
        last row behind ``(rows + 1,)``, and each row's smallest key ``(rows,)``.
    """
    counts = np.empty(header.rows, np.int64)
    starts = np.empty(header.rows + 1, np.int64)
    bases = np.empty(header.rows, np.int64)
    offset = layout.CHUNK_HEADER_BYTES
    for column, out in ((header.counts, counts), (header.lengths, starts[1:]), (header.bases, bases)):
        if column.width:
            _unpack(data, offset, column.minimum, column.width, out)
        else:
            out[:] = column.minimum
        offset += 4 * column.words(header.rows)
    if header.kind == layout.KIND_FLAT and header.rows:
        counts[-1] = header.entries - layout.FLAT_GROUP * (header.rows - 1)
    entries = int(counts.sum())
    if entries != header.entries or (header.rows and int(counts.max()) > header.slots):
        raise CorruptDataError(f"the rows' counts give {entries} entries, the header says {header.entries}")
    starts[0] = 8 * offset
    np.cumsum(starts, out=starts)
    if -(-(int(starts[-1]) - 8 * offset) // 32) + layout.GUARD_WORDS != header.payload_words:
        raise CorruptDataError(f"the rows' lengths do not fill the payload of {header.payload_words} words")
    return counts, starts, bases


def decode_rows(header: ChunkHeader, data: NDArray[np.uint8], start: int, stop: int) -> NDArray[Any]:
    """Decode rows ``start:stop`` of a checked chunk.

    Parameters
    ----------
    header
        The chunk's header, from `read_header`.
    data
        All bytes of the chunk, contiguous.

    Returns
    -------
    NDArray
        ``(stop - start, slots)`` of the chunk's bit type; unused slots filled.
    """
    counts, starts, bases = row_table(header, data)
    out = np.empty((stop - start, header.slots), BITS_DTYPE[header.dtype])
    base = np.int64(header.parameter_base)
    if header.kind == layout.KIND_IDS:
        status = _decode_ids(data, starts, counts, start, header.block_log2, base, header.bound, _QUOTIENTS, out)
    else:
        is_float = header.dtype in (layout.DTYPE_FLOAT16, layout.DTYPE_FLOAT32)
        unused = out.dtype.type(UNUSED.get(header.dtype, 0))
        status = _decode_bits(
            data, starts, counts, bases, start, header.block_log2, base, is_float, np.int64(header.shift), unused,
            _QUOTIENTS, out,
        )  # fmt: skip
    if status >= 0:
        raise CorruptDataError(f"row {status // 8} of the chunk {_BROKEN[status % 8]}")
    return out
