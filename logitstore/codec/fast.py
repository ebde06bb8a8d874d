"""The ``exact`` codec in Numba: the same bytes and arrays as `reference`, several hundred times as fast.

Every kernel releases the GIL. Kernels never read outside the buffer they are given, whatever its bytes say: a row's
bit range is checked before anything in it is read, and the payload's guard words cover the widest load.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit

from logitstore import layout
from logitstore.codec.header import ChunkHeader, Column
from logitstore.codec.intrinsics import load_u64, lowest_set_bit
from logitstore.codec.transform import BITS_DTYPE, UNUSED
from logitstore.errors import CorruptDataError, InvalidArgumentError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["decode_rows", "encode_rows", "gaps_of_ids", "pack_column", "residuals_of_bits", "row_table"]

_NIBBLE = layout.PARAMETER_BITS
_WINDOW = (1 << layout.PARAMETER_BITS) - 1
_MAX = layout.PARAMETER_MAX

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


# --- encoding ------------------------------------------------------------------------------------------------------


@_kernel
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


@_kernel
def _residuals(
    bits: Any, unused: Any, ragged: bool, is_float: bool, shift: Any, counts: Any, bases: Any, out: Any
) -> None:
    rows, slots = bits.shape
    half = np.uint32(1) << np.uint32(8 * bits.itemsize - 1 - shift)
    for row in range(rows):
        count = slots
        if ragged:
            while count and bits[row, count - 1] == unused:
                count -= 1
        counts[row] = count
        low = np.uint32(0xFFFFFFFF)
        for slot in range(count):
            key = np.uint32(bits[row, slot]) >> np.uint32(shift)
            if is_float:
                key = half + (half - np.uint32(1)) - key if key & half else key | half
            out[row, slot] = key
            low = min(low, key)
        bases[row] = low if count else np.uint32(0)
        for slot in range(count):
            out[row, slot] -= low
        out[row, count:] = 0


@_kernel
def _choose(residuals: Any, counts: Any, block_log2: int, parameters: Any, lengths: Any) -> Any:
    """Best parameter of every block and the bits of every row; returns the largest parameter."""
    rows = residuals.shape[0]
    size = 1 << block_log2
    largest = 0
    for row in range(rows):
        count = counts[row]
        length = np.int64(0)
        union = np.uint32(0)
        for block in range((count + size - 1) >> block_log2):
            first = block << block_log2
            values = residuals[row, first : min(count, first + size)]
            n = np.int64(len(values))
            total = np.uint64(0)
            for x in values:
                total += np.uint64(x)
                union |= x
            # The cost is convex in the parameter: walk from the parameter the mean suggests to the first minimum.
            mean = total // np.uint64(n)
            w = 0
            while w < _MAX and (mean >> np.uint64(w + 1)) > 0:
                w += 1
            cost = _cost(values, n, w)
            while w > 0:
                lower = _cost(values, n, w - 1)
                if lower > cost:
                    break
                cost = lower
                w -= 1
            while w < _MAX:
                upper = _cost(values, n, w + 1)
                if upper >= cost:
                    break
                cost = upper
                w += 1
            parameters[row, block] = w
            length += _NIBBLE + cost
        if union == 0:
            length = 0
        else:
            for block in range((count + size - 1) >> block_log2):
                largest = max(largest, parameters[row, block])
        lengths[row] = length
    return largest


@_inlined
def _cost(values: Any, n: Any, w: Any) -> Any:
    bits = np.uint64(0)
    for x in values:
        bits += np.uint64(x >> np.uint32(w))
    return np.int64(bits) + n * (w + 1)


@_kernel
def _raise_parameters(residuals: Any, counts: Any, block_log2: int, base: int, parameters: Any, lengths: Any) -> None:
    """Lift parameters below ``base`` to it; only needed where a chunk's parameters span more than 16."""
    for row in range(residuals.shape[0]):
        count = counts[row]
        if lengths[row] == 0:
            continue
        for block in range((count + (1 << block_log2) - 1) >> block_log2):
            w = parameters[row, block]
            if w < base:
                first = block << block_log2
                values = residuals[row, first : min(count, first + (1 << block_log2))]
                n = np.int64(len(values))
                lengths[row] += _cost(values, n, base) - _cost(values, n, np.int64(w))
                parameters[row, block] = base


@_inlined
def _put(words: Any, position: Any, value: Any, width: Any) -> None:
    index = position >> 6
    offset = position & 63
    words[index] |= value << np.uint64(offset)
    if offset + width > 64:
        words[index + 1] |= value >> np.uint64(64 - offset)


@_kernel
def _write(residuals: Any, counts: Any, block_log2: int, base: int, parameters: Any, lengths: Any, words: Any) -> None:
    position = np.int64(0)
    for row in range(residuals.shape[0]):
        if lengths[row] == 0:
            continue
        count = counts[row]
        blocks = (count + (1 << block_log2) - 1) >> block_log2
        for block in range(blocks):
            _put(words, position, np.uint64(parameters[row, block] - base), _NIBBLE)
            position += _NIBBLE
        for block in range(blocks):
            w = np.int64(parameters[row, block])
            mask = (np.uint64(1) << np.uint64(w)) - np.uint64(1)
            first = block << block_log2
            for slot in range(first, min(count, first + (1 << block_log2))):
                _put(words, position, np.uint64(residuals[row, slot]) & mask, w)
                position += w
        for block in range(blocks):
            w = np.uint32(parameters[row, block])
            first = block << block_log2
            for slot in range(first, min(count, first + (1 << block_log2))):
                position += np.int64(residuals[row, slot] >> w)
                words[position >> 6] |= np.uint64(1) << np.uint64(position & 63)
                position += 1


@_kernel
def _pack(values: Any, low: Any, width: Any, words: Any) -> None:
    position = np.int64(0)
    for value in values:
        _put(words, position, np.uint64(value) - np.uint64(low), width)
        position += width


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
    bits: NDArray[Any], dtype: int, shift: int, *, ragged: bool
) -> tuple[NDArray[np.int64], NDArray[np.uint32], NDArray[np.uint32]]:
    """Return entries per row, each row's smallest key, and the keys less that."""
    counts = np.empty(len(bits), np.int64)
    bases = np.empty(len(bits), np.uint32)
    out = np.empty(bits.shape, np.uint32)
    is_float = dtype in (layout.DTYPE_FLOAT16, layout.DTYPE_FLOAT32)
    unused = bits.dtype.type(UNUSED.get(dtype, 0))
    _residuals(bits, unused, ragged, is_float, np.int64(shift), counts, bases, out)
    return counts, bases, out


def encode_rows(
    residuals: NDArray[np.uint32], counts: NDArray[np.int64], block_log2: int
) -> tuple[int, NDArray[np.int64], bytes]:
    """Code rows of residuals: parameter base, bits of each row, and the payload with its guard words."""
    blocks = -(-residuals.shape[1] // (1 << block_log2))
    parameters = np.zeros((len(residuals), blocks), np.uint8)
    lengths = np.empty(len(residuals), np.int64)
    base = max(0, int(_choose(residuals, counts, block_log2, parameters, lengths)) - _WINDOW)
    if base:
        _raise_parameters(residuals, counts, block_log2, base, parameters, lengths)
    words32 = -(-int(lengths.sum()) // 32) + layout.GUARD_WORDS
    words = np.zeros(words32 // 2 + 1, np.uint64)
    _write(residuals, counts, block_log2, base, parameters, lengths, words)
    return base, lengths, words.astype("<u8", copy=False).tobytes()[: 4 * words32]


def pack_column(values: NDArray[Any]) -> tuple[Column, bytes]:
    """Pack one value per row against their minimum."""
    if not len(values):
        return Column(0, 0), b""
    low = int(values.min())
    column = Column(low, (int(values.max()) - low).bit_length())
    words32 = column.words(len(values))
    words = np.zeros(words32 // 2 + 1, np.uint64)
    if column.width:
        _pack(values, low, column.width, words)
    return column, words.astype("<u8", copy=False).tobytes()[: 4 * words32]


# --- decoding ------------------------------------------------------------------------------------------------------


@_kernel
def _unpack(data: Any, offset: Any, low: Any, width: Any, out: Any) -> None:
    mask = (np.uint64(1) << np.uint64(width)) - np.uint64(1)
    position = np.int64(offset) * 8
    for row in range(len(out)):
        out[row] = np.int64((load_u64(data, position >> 3) >> np.uint64(position & 7)) & mask) + low
        position += width


@_inlined
def _decode_residuals(  # noqa: PLR0912, PLR0915 - one kernel: Numba inlines it, and a row is decoded in one go
    data: Any, start: Any, end: Any, count: Any, block_log2: int, base: Any, out: Any
) -> Any:
    """Fill ``out[:count]`` from bits ``start:end``. ``out`` has 64 slots to spare. Returns 0 or a key of _BROKEN."""
    if start == end:
        for slot in range(count):
            out[slot] = 0
        return 0
    size = np.int64(1) << block_log2
    blocks = (count + size - 1) >> block_log2
    nibbles = start
    remainders = start + _NIBBLE * blocks
    if remainders + count > end:
        return 1
    unary = remainders
    for block in range(blocks):
        position = nibbles + _NIBBLE * block
        w = base + np.int64((load_u64(data, position >> 3) >> np.uint64(position & 7)) & np.uint64(_WINDOW))
        if w > _MAX:
            return 6
        unary += w * min(size, count - (block << block_log2))
    if unary + count > end:
        return 1

    # Quotients: the distances between the set bits of the unary part.
    origin = unary
    expected = np.int64(0)
    slot = np.int64(0)
    while unary < end and slot <= count:
        word = load_u64(data, unary >> 3) >> np.uint64(unary & 7)
        available = 64 - (unary & 7)
        if end - unary < available:
            available = end - unary
            word &= (np.uint64(1) << np.uint64(available)) - np.uint64(1)
        first = unary - origin
        while word != np.uint64(0):
            position = first + np.int64(lowest_set_bit(word))
            out[slot] = np.uint32(position - expected)
            expected = position + 1
            word &= word - np.uint64(1)
            slot += 1
        unary += available
    if slot != count or origin + expected != end:
        return 2

    # Remainders: as many bits as the block's parameter says, four at a time where they fit one load.
    overflow = np.uint32(0)
    slot = np.int64(0)
    for block in range(blocks):
        position = nibbles + _NIBBLE * block
        w = base + np.int64((load_u64(data, position >> 3) >> np.uint64(position & 7)) & np.uint64(_WINDOW))
        last = min(slot + size, count)
        if w == 0:
            slot = last
            continue
        w32 = np.uint32(w)
        w64 = np.uint64(w)
        above = np.uint32(32) - w32
        mask = (np.uint64(1) << w64) - np.uint64(1)
        if w <= 14:
            while slot + 4 <= last:
                word = load_u64(data, remainders >> 3) >> np.uint64(remainders & 7)
                a, b, c, d = out[slot], out[slot + 1], out[slot + 2], out[slot + 3]
                overflow |= (a | b | c | d) >> above
                out[slot] = (a << w32) | np.uint32(word & mask)
                word >>= w64
                out[slot + 1] = (b << w32) | np.uint32(word & mask)
                word >>= w64
                out[slot + 2] = (c << w32) | np.uint32(word & mask)
                word >>= w64
                out[slot + 3] = (d << w32) | np.uint32(word & mask)
                remainders += 4 * w
                slot += 4
        while slot < last:
            word = load_u64(data, remainders >> 3) >> np.uint64(remainders & 7)
            overflow |= out[slot] >> above
            out[slot] = (out[slot] << w32) | np.uint32(word & mask)
            remainders += w
            slot += 1
    return 0 if overflow == 0 else 5


@_kernel
def _decode_ids(
    data: Any, starts: Any, counts: Any, first: Any, block_log2: int, base: Any, bound: Any, scratch: Any, out: Any
) -> Any:
    for i in range(out.shape[0]):
        row = first + i
        count = counts[row]
        status = _decode_residuals(data, starts[row], starts[row + 1], count, block_log2, base, scratch)
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
    is_float: bool, shift: Any, unused: Any, scratch: Any, out: Any,
) -> Any:  # fmt: skip
    bits = np.uint64(8 * out.itemsize - shift)
    limit = np.uint64(1) << bits
    half = np.uint32(limit >> np.uint64(1))
    for i in range(out.shape[0]):
        row = first + i
        count = counts[row]
        status = _decode_residuals(data, starts[row], starts[row + 1], count, block_log2, base, scratch)
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
    scratch = np.empty(header.slots + 64, np.uint32)
    base = np.int64(header.parameter_base)
    if header.kind == layout.KIND_IDS:
        status = _decode_ids(data, starts, counts, start, header.block_log2, base, header.bound, scratch, out)
    else:
        is_float = header.dtype in (layout.DTYPE_FLOAT16, layout.DTYPE_FLOAT32)
        unused = out.dtype.type(UNUSED.get(header.dtype, 0))
        status = _decode_bits(
            data, starts, counts, bases, start, header.block_log2, base, is_float, np.int64(header.shift), unused,
            scratch, out,
        )  # fmt: skip
    if status >= 0:
        raise CorruptDataError(f"row {status // 8} of the chunk {_BROKEN[status % 8]}")
    return out
