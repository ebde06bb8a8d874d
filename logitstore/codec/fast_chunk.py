"""Rows out of a chunk in one call: header, row table and rows by one kernel, for readers of few rows at a time.

It says no where it finds anything but a sound chunk of what was expected. Then the careful way, `header` and
`fast_decode`, says what is wrong.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from logitstore import layout
from logitstore.codec.fast_decode import ids_from_gaps
from logitstore.codec.fast_rows import ONES, SPARE, decode_residuals
from logitstore.codec.header import DTYPE_BITS
from logitstore.codec.intrinsics import load_u64
from logitstore.codec.kernels import inlined, kernel
from logitstore.codec.transform import BITS_DTYPE, UNUSED

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["RowDecoder", "read_column", "write_keys"]

_MAGIC = int.from_bytes(layout.CHUNK_MAGIC, "little")
_IDS, _FLAT = layout.KIND_IDS, layout.KIND_FLAT
_GROUP = layout.FLAT_GROUP


@inlined
def _u32(data: Any, offset: Any) -> Any:
    return np.int64(load_u64(data, np.int64(offset)) & np.uint64(0xFFFFFFFF))


@kernel
def read_column(data: Any, position: Any, width: Any, minimum: Any, out: Any) -> Any:
    """Fill ``out`` with a column of the row table that begins at a bit; return the bit behind it."""
    if width == 0:
        for row in range(len(out)):
            out[row] = minimum
        return position
    mask = (np.uint64(1) << np.uint64(width)) - np.uint64(1)
    at = position
    for row in range(len(out)):
        out[row] = minimum + np.int64((load_u64(data, at >> 3) >> np.uint64(at & 7)) & mask)
        at += width
    return position + ((len(out) * width + 31) >> 5) * 32


@kernel
def _is_expected(data: Any, kind: Any, dtype: Any, rows: Any, slots: Any, bound: Any) -> Any:
    """Whether the first 20 bytes of a chunk are those of a chunk like this."""
    return (
        _u32(data, 0) == _MAGIC
        and _u32(data, 4) & 0xFFFF == kind | dtype << 8
        and layout.BLOCK_LOG2_MIN <= (_u32(data, 4) >> 16) & 255 <= layout.BLOCK_LOG2_MAX
        and _u32(data, 4) >> 24 <= layout.PARAMETER_MAX
        and _u32(data, 8) == rows
        and _u32(data, 12) == slots
        and _u32(data, 16) == bound
    )


@kernel
def _read_table(
    data: Any, kind: Any, bits: Any, slots: Any, elements: Any, counts: Any, starts: Any, bases: Any, shifts: Any
) -> Any:
    """Fill the columns, one number per row, and ``starts`` with each row's first bit; return whether all is sound."""
    rows = len(counts)
    widths = _u32(data, 20)
    count_width, length_width, base_width, shift_width = (
        (widths >> 8) & 255, (widths >> 16) & 255, widths >> 24, _u32(data, 44),
    )  # fmt: skip
    shift_low, count_low, base_low = widths & 255, _u32(data, 24), _u32(data, 32)
    words, entries = _u32(data, 36), _u32(data, 40)
    if max(count_width, length_width, base_width) > 32 or shift_width > layout.SHIFT_WIDTH_MAX or shift_low >= bits:
        return False
    if kind == _IDS and shift_low + shift_width + base_width + base_low > 0:
        return False
    if kind == _FLAT and (entries != elements or count_width != 0 or count_low != _GROUP):
        return False
    size = words
    for width in (count_width, length_width, base_width, shift_width):
        size += (rows * width + 31) >> 5
    if (
        not layout.GUARD_WORDS <= words <= layout.MAX_PAYLOAD_WORDS
        or len(data) != layout.CHUNK_HEADER_BYTES + 4 * size + layout.CRC_BYTES
    ):
        return False
    position = read_column(data, np.int64(8 * layout.CHUNK_HEADER_BYTES), count_width, count_low, counts)
    position = read_column(data, position, length_width, _u32(data, 28), starts[1:])
    position = read_column(data, position, base_width, base_low, bases)
    position = read_column(data, position, shift_width, shift_low, shifts)
    if kind == _FLAT and rows:
        counts[-1] = entries - _GROUP * (rows - 1)
    starts[0] = position
    found = np.int64(0)
    for row in range(rows):
        found += counts[row]
        starts[row + 1] += starts[row]
        if counts[row] > slots or shifts[row] >= bits:
            return False
    return found == entries and (starts[rows] - position + 31) // 32 + layout.GUARD_WORDS == words


@inlined
def write_keys(
    residuals: Any, count: Any, start: Any, stop: Any, base: Any, shift: Any, bits: Any, is_float: bool, out: Any
) -> Any:
    """Write the elements of residuals ``start:stop``, as in `transform.bits_from_keys`; return whether all fit."""
    limit = np.uint64(1) << np.uint64(bits - shift)
    half = np.uint32(limit >> np.uint64(1))
    low = np.uint32(base)
    left = np.uint32(shift)
    high = np.uint32(0)
    for slot in range(count):
        high = max(high, residuals[slot])
    if is_float:
        for slot in range(start, stop):
            key = np.uint32(low + residuals[slot])
            key = key ^ half if key & half else half + (half - np.uint32(1)) - key
            out[slot - start] = key << left
    else:
        for slot in range(start, stop):
            out[slot - start] = (low + residuals[slot]) << left
    return count == 0 or np.uint64(base) + np.uint64(high) < limit


@kernel
def _decode(
    data: Any, kind: Any, dtype: Any, bits: Any, rows: Any, slots: Any, bound: Any, elements: Any, first: Any,
    last: Any, skip: Any, is_float: bool, unused: Any, table: Any, out: Any,
) -> Any:  # fmt: skip
    """Decode rows ``first:last`` of a chunk to ``out``; return whether it is sound and what was expected.

    ``out`` is contiguous. For flat chunks, whose rows are groups, its first element is number ``skip`` of group
    ``first``, and ``elements`` is what the chunk holds.
    """
    if not _is_expected(data, kind, dtype, rows, slots, bound):
        return False
    counts, starts = np.empty(rows, np.int64), np.empty(rows + 1, np.int64)
    bases, shifts = np.empty(rows, np.int64), np.empty(rows, np.int64)
    if not _read_table(data, kind, bits, slots, elements, counts, starts, bases, shifts):
        return False
    block_log2, base = (_u32(data, 4) >> 16) & 255, _u32(data, 4) >> 24
    ones, residuals = np.empty(slots + SPARE, np.uint32), np.empty(slots + SPARE, np.uint32)
    target = out.reshape(-1)
    written = np.int64(0)
    for row in range(first, last):
        count = counts[row]
        if decode_residuals(data, starts[row], starts[row + 1], count, block_log2, base, table, ones, residuals):
            return False
        if kind == _IDS:
            if ids_from_gaps(residuals, count, target[written : written + count]) > np.uint64(bound):
                return False
            written += count
        else:
            start = skip if kind == _FLAT and row == first else np.int64(0)
            stop = min(count, start + len(target) - written)
            part = target[written : written + stop - start]
            if not write_keys(residuals, count, start, stop, bases[row], shifts[row], bits, is_float, part):
                return False
            written += stop - start
        if kind != _FLAT:
            for slot in range(written, written + slots - count):
                target[slot] = unused
            written += slots - count
    return True


class RowDecoder:
    """Decodes rows of chunks of one array; the arguments are what tells a chunk's header from another array's.

    Parameters
    ----------
    kind, dtype
        Their codes in `layout`.
    slots
        Entries a row has room for; 0 of a flat array.
    bound
        The vocabulary size of ids; 0 for all else.
    """

    def __init__(self, kind: int, dtype: int, slots: int, bound: int) -> None:
        self._flat = kind == _FLAT
        self._described = kind, dtype, DTYPE_BITS[dtype]
        self._slots = layout.FLAT_GROUP if self._flat else slots
        self._bound = bound
        self._is_float = dtype in (layout.DTYPE_FLOAT16, layout.DTYPE_FLOAT32)
        self._unused = np.dtype(BITS_DTYPE[dtype]).type(layout.UNUSED_ID if kind == _IDS else UNUSED.get(dtype, 0))

    def __call__(self, data: NDArray[np.uint8], rows: int, start: int, out: NDArray[Any]) -> bool:
        """Decode rows from ``start`` on, as many as ``out`` has, out of the ``rows`` of a chunk.

        Parameters
        ----------
        data
            All bytes of the chunk, contiguous. Its checksum is somebody else's affair.
        rows
            Of the chunk; elements of a flat one.
        out
            Contiguous, of the type's bits.

        Returns
        -------
        bool
            False where the chunk is not a sound one of this description; what is in ``out`` is then anything.
        """
        if len(data) < layout.CHUNK_HEADER_BYTES + layout.CRC_BYTES:
            return False
        first, last, skip, elements = start, start + len(out), 0, 0
        if self._flat:
            elements, rows = rows, -(-rows // _GROUP)
            first, last, skip = start // _GROUP, -(-last // _GROUP), start % _GROUP
        return bool(
            _decode(
                data, *self._described, rows, self._slots, self._bound, elements, first, last, skip, self._is_float,
                self._unused, ONES, out,
            )
        )  # fmt: skip
