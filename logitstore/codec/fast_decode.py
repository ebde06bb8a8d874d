"""The decoder of the ``exact`` codec in Numba: the same arrays as `reference`, several hundred times as fast.

Every kernel releases the GIL and never reads outside the buffer it is given, whatever the bytes say; see `fast_rows`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from logitstore import layout
from logitstore.codec.fast_rows import BROKEN, ONES, SPARE, decode_residuals
from logitstore.codec.header import DTYPE_BITS
from logitstore.codec.intrinsics import load_u64
from logitstore.codec.kernels import inlined, kernel
from logitstore.codec.transform import BITS_DTYPE, UNUSED
from logitstore.errors import CorruptDataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from logitstore.codec.header import ChunkHeader

__all__ = ["decode_rows", "ids_from_gaps", "row_table"]


@kernel
def _unpack(data: Any, offset: Any, low: Any, width: Any, out: Any) -> None:
    mask = (np.uint64(1) << np.uint64(width)) - np.uint64(1)
    position = np.int64(offset) * 8
    for row in range(len(out)):
        out[row] = np.int64((load_u64(data, position >> 3) >> np.uint64(position & 7)) & mask) + low
        position += width


@kernel
def _accumulate(first: Any, out: Any) -> None:
    """Turn lengths in ``out[1:]`` into ends, behind ``first``. NumPy's cumsum in place takes four times as long."""
    total = np.int64(first)
    out[0] = total
    for row in range(1, len(out)):
        total += out[row]
        out[row] = total


@inlined
def ids_from_gaps(gaps: Any, count: Any, out: Any) -> Any:
    """Fill ``out[:count]``; return the last id plus one. Four at a time: one addition in the chain."""
    token = np.uint64(0)
    for four in range(count >> 2):
        slot = 4 * four
        a = np.uint64(gaps[slot])
        b = a + np.uint64(gaps[slot + 1])
        c = b + np.uint64(gaps[slot + 2])
        d = c + np.uint64(gaps[slot + 3])
        out[slot] = np.uint32(token + a)
        out[slot + 1] = np.uint32(token + b + np.uint64(1))
        out[slot + 2] = np.uint32(token + c + np.uint64(2))
        out[slot + 3] = np.uint32(token + d + np.uint64(3))
        token += d + np.uint64(4)
    for slot in range(count & ~3, count):
        token += np.uint64(gaps[slot])
        out[slot] = np.uint32(token)
        token += np.uint64(1)
    return token


@kernel
def _decode_ids(
    data: Any, starts: Any, counts: Any, first: Any, block_log2: int, base: Any, bound: Any, table: Any, out: Any
) -> Any:
    """Return -1, or eight times the number of the first broken row plus a key of BROKEN."""
    ones = np.empty(out.shape[1] + SPARE, np.uint32)
    gaps = np.empty(out.shape[1] + SPARE, np.uint32)
    for i in range(out.shape[0]):
        row = first + i
        count = counts[row]
        status = decode_residuals(data, starts[row], starts[row + 1], count, block_log2, base, table, ones, gaps)
        if status:
            return row * 8 + status
        if ids_from_gaps(gaps, count, out[i]) > np.uint64(bound):
            return row * 8 + 3
        for slot in range(count, out.shape[1]):
            out[i, slot] = np.uint32(0xFFFFFFFF)
    return -1


@kernel
def _decode_bits(
    data: Any, starts: Any, counts: Any, bases: Any, first: Any, block_log2: int, base: Any,
    is_float: bool, shifts: Any, unused: Any, table: Any, out: Any,
) -> Any:  # fmt: skip
    """As `_decode_ids`. Keys become bits as in `transform.bits_from_keys`."""
    ones = np.empty(out.shape[1] + SPARE, np.uint32)
    residuals = np.empty(out.shape[1] + SPARE, np.uint32)
    for i in range(out.shape[0]):
        row = first + i
        count = counts[row]
        shift = np.uint32(shifts[row])
        limit = np.uint64(1) << np.uint64(8 * out.itemsize - shift)
        half = np.uint32(limit >> np.uint64(1))
        if np.uint64(bases[row]) >= limit and count:
            return row * 8 + 4
        status = decode_residuals(data, starts[row], starts[row + 1], count, block_log2, base, table, ones, residuals)
        if status:
            return row * 8 + status
        low = np.uint32(bases[row])
        high = np.uint32(0)
        for slot in range(count):
            high = max(high, residuals[slot])
        if count and np.uint64(low) + np.uint64(high) >= limit:
            return row * 8 + 4
        if is_float:
            for slot in range(count):
                key = np.uint32(low + residuals[slot])
                key = key ^ half if key & half else half + (half - np.uint32(1)) - key
                out[i, slot] = key << shift
        else:
            for slot in range(count):
                out[i, slot] = (low + residuals[slot]) << shift
        for slot in range(count, out.shape[1]):
            out[i, slot] = unused
    return -1


def row_table(
    header: ChunkHeader, data: NDArray[np.uint8]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Read and check the row table.

    Returns
    -------
    tuple
        Entries of each row ``(rows,)``, first bit of each row counted from the start of ``data`` with the end of the
        last row behind ``(rows + 1,)``, each row's smallest key ``(rows,)``, and each row's shift ``(rows,)``.
    """
    counts = np.empty(header.rows, np.int64)
    starts = np.empty(header.rows + 1, np.int64)
    bases = np.empty(header.rows, np.int64)
    offset = layout.CHUNK_HEADER_BYTES
    shifts = np.empty(header.rows, np.int64)
    for column, out in zip(header.columns, (counts, starts[1:], bases, shifts), strict=True):
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
    _accumulate(8 * offset, starts)
    if -(-(int(starts[-1]) - 8 * offset) // 32) + layout.GUARD_WORDS != header.payload_words:
        raise CorruptDataError(f"the rows' lengths do not fill the payload of {header.payload_words} words")
    if header.shift_width and int(shifts.max()) >= DTYPE_BITS[header.dtype]:
        raise CorruptDataError(f"a row's shift is below {DTYPE_BITS[header.dtype]}, found {int(shifts.max())}")
    return counts, starts, bases, shifts


def decode_rows(
    header: ChunkHeader, data: NDArray[np.uint8], start: int, stop: int, out: NDArray[Any] | None = None
) -> NDArray[Any]:
    """Decode rows ``start:stop`` of a checked chunk.

    Parameters
    ----------
    header
        The chunk's header, from `read_header`.
    data
        All bytes of the chunk, contiguous.
    out
        Where to put the rows: ``(stop - start, slots)`` of the chunk's bit type, contiguous. None makes a new array.

    Returns
    -------
    NDArray
        ``(stop - start, slots)`` of the chunk's bit type; unused slots filled.
    """
    counts, starts, bases, shifts = row_table(header, data)
    if out is None:
        out = np.empty((stop - start, header.slots), BITS_DTYPE[header.dtype])
    base = np.int64(header.parameter_base)
    if header.kind == layout.KIND_IDS:
        status = _decode_ids(data, starts, counts, start, header.block_log2, base, header.bound, ONES, out)
    else:
        is_float = header.dtype in (layout.DTYPE_FLOAT16, layout.DTYPE_FLOAT32)
        unused = out.dtype.type(UNUSED.get(header.dtype, 0))
        status = _decode_bits(
            data, starts, counts, bases, start, header.block_log2, base, is_float, shifts, unused,
            ONES, out,
        )  # fmt: skip
    if status >= 0:
        raise CorruptDataError(f"row {status // 8} of the chunk {BROKEN[status % 8]}")
    return out
