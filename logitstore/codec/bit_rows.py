"""Rows cut out of chunks and still coded: what a loader hands to whoever decodes them, on the CPU or on a GPU.

Of a chunk only the payload of the rows that are wanted goes along, and its row table becomes plain numbers that are
checked here, once. So whoever decodes needs neither chunks nor headers, and rows of several chunks lie in one buffer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from logitstore import layout
from logitstore.codec.fast_chunk import write_keys
from logitstore.codec.fast_decode import ids_from_gaps, row_table
from logitstore.codec.fast_rows import BROKEN, ONES, SPARE, decode_residuals
from logitstore.codec.group_rows import BROKEN as BROKEN_IN_GROUPS
from logitstore.codec.header import DTYPE_BITS
from logitstore.codec.kernels import kernel
from logitstore.codec.transform import BITS_DTYPE, UNUSED
from logitstore.errors import CorruptDataError, InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from logitstore.codec.header import ChunkHeader

__all__ = [
    "BASE",
    "COUNT",
    "LENGTH",
    "META",
    "WORD",
    "BitRows",
    "RowFormat",
    "broken_row",
    "check_rows",
    "decode_bits",
]

WORD, META, LENGTH, COUNT, BASE = range(5)
"""Rows of the table: see `BitRows`."""
_SHIFT_AT, _BLOCK_AT, _PARAMETER_AT = 5, 10, 13
_IDS = layout.KIND_IDS


class RowFormat(NamedTuple):
    """What rows of bits hold.

    Attributes
    ----------
    kind, dtype
        Codes of `layout`.
    slots
        ``K``; 256 for ``flat``, whose rows are groups.
    bound
        The vocabulary size for ids, else 0.
    """

    kind: int
    dtype: int
    slots: int
    bound: int

    @property
    def bits_dtype(self) -> np.dtype[Any]:
        """Unsigned integers as wide as an element."""
        return np.dtype(BITS_DTYPE[self.dtype])

    @property
    def is_float(self) -> bool:
        """Whether elements are floats."""
        return self.dtype in (layout.DTYPE_FLOAT16, layout.DTYPE_FLOAT32)

    @property
    def unused(self) -> int:
        """Bits of an unused slot."""
        return layout.UNUSED_ID if self.kind == _IDS else UNUSED.get(self.dtype, 0)


class BitRows(NamedTuple):
    """Coded rows, in any order, of any number of chunks.

    Attributes
    ----------
    words
        ``(w,)`` uint32: payload, with two guard words at its end.
    table
        ``(5, P)`` uint32, one column per row: the word in which its bits begin (WORD); the bit in that word, the shift
        times 2^5, block_log2 times 2^10 and parameter_base times 2^13 (META); its bits (LENGTH), its entries (COUNT)
        and its smallest key (BASE).
    """

    words: NDArray[np.uint32]
    table: NDArray[np.uint32]

    @classmethod
    def cut(cls, header: ChunkHeader, data: NDArray[np.uint8], start: int, stop: int) -> BitRows:
        """Cut rows ``start:stop`` (groups, of a flat chunk) out of a checked chunk.

        Raises
        ------
        CorruptDataError
            The chunk's row table breaks a rule.
        """
        counts, starts, bases, shifts = row_table(header, data)
        if len(bases) and (int(bases.max()) >> 32 or int((starts[1:] - starts[:-1]).max()) >> 32):
            raise CorruptDataError("bases and lengths of rows are below 2^32")
        first, last = int(starts[start]), int(starts[stop])
        words = np.zeros(-(-last // 32) - first // 32 + layout.GUARD_WORDS, np.uint32)
        body = words[: -layout.GUARD_WORDS].view(np.uint8)
        body[:] = data[first // 32 * 4 : first // 32 * 4 + len(body)]
        at = starts[start:stop] - first // 32 * 32
        table = np.empty((5, stop - start), np.uint32)
        table[WORD] = at >> 5
        table[META] = (at & 31) | shifts[start:stop] << _SHIFT_AT
        table[META] |= np.uint32(header.block_log2 << _BLOCK_AT | header.parameter_base << _PARAMETER_AT)
        table[LENGTH] = starts[start + 1 : stop + 1] - starts[start:stop]
        table[COUNT] = counts[start:stop]
        table[BASE] = bases[start:stop]
        return cls(words, table)

    @classmethod
    def laid_out(cls, parts: Sequence[tuple[int, BitRows]], rows: int) -> BitRows:
        """Return ``rows`` rows that have each part where its number says, and rows without entries elsewhere.

        Raises
        ------
        InvalidArgumentError
            They have more than 2^31 words together.
        """
        guard = layout.GUARD_WORDS
        total = sum(len(part.words) - guard for _, part in parts) + guard
        if total >= 1 << 31:
            raise InvalidArgumentError(f"rows of a batch have less than 2^31 words of bits, found {total}")
        words = np.empty(total, np.uint32)
        words[-guard:] = 0
        table = np.zeros((5, rows), np.uint32)
        table[META] = layout.BLOCK_LOG2_MIN << _BLOCK_AT
        position = 0
        for first, part in parts:
            end = position + len(part.words) - guard
            words[position:end] = part.words[:-guard]
            here = table[:, first : first + part.table.shape[1]]
            here[:] = part.table
            here[WORD] += np.uint32(position)
            position = end
        return cls(words, table)

    @property
    def most_blocks(self) -> int:
        """Blocks of the row that has the most."""
        log2 = self.table[META] >> _BLOCK_AT & 7
        size = np.int64(1) << log2.astype(np.int64)
        return int(((self.table[COUNT] + size - 1) // size).max(initial=0))

    @property
    def offsets(self) -> NDArray[np.int64]:
        """``(P + 1,)`` int64: where the entries of each row begin if nothing lies between them."""
        offsets = np.zeros(self.table.shape[1] + 1, np.int64)
        np.cumsum(self.table[COUNT], out=offsets[1:])
        return offsets


def check_rows(rows: BitRows, format: RowFormat, offsets: NDArray[np.int64] | None) -> None:  # noqa: A002
    """Check that every row lies in the words and fits its room, so that nothing outside of them is touched.

    Raises
    ------
    CorruptDataError
        One does not.
    """
    table = rows.table
    if not table.size:
        return
    meta = table[META]
    begins = table[WORD].astype(np.int64) * 32 + (meta & 31)
    room = 32 * (len(rows.words) - layout.GUARD_WORDS)
    bad = (begins + table[LENGTH] > room) | (table[COUNT] > (format.slots if offsets is None else np.diff(offsets)))
    bad |= (meta >> _SHIFT_AT & 31) >= DTYPE_BITS[format.dtype]
    block_log2 = meta >> _BLOCK_AT & 7
    bad |= (block_log2 < layout.BLOCK_LOG2_MIN) | (block_log2 > layout.BLOCK_LOG2_MAX)
    if bad.any():
        raise CorruptDataError(f"row {int(bad.argmax())} of {table.shape[1]} lies outside its words or its slots")


def broken_row(status: NDArray[Any]) -> tuple[int, str] | None:
    """Return the first row whose status is not 0, and what is wrong with it; None if all are sound.

    A status is a key of `fast_rows.BROKEN`, or eight times one of `group_rows.BROKEN`.
    """
    if not status.any():
        return None
    row = int((status != 0).argmax())
    found = int(status[row])
    return row, BROKEN[found] if found < 8 else BROKEN_IN_GROUPS[found // 8]


def decode_bits(
    rows: BitRows, format: RowFormat, out: NDArray[Any], offsets: NDArray[np.int64] | None = None  # noqa: A002
) -> NDArray[np.int32]:  # fmt: skip
    """Decode rows on the CPU.

    Parameters
    ----------
    rows, format
        The rows, and what they hold.
    out
        ``(P, K)`` of the bits' type, or with offsets flat ``(E,)``.
    offsets
        ``(P + 1,)``, from 0 on: where the slots of each row begin in ``out``, if it is flat.

    Returns
    -------
    NDArray
        ``(P,)`` int32: 0, or what is wrong with a row, for `broken_row`. Where it is not 0, its part of ``out`` is
        anything.
    """
    check_rows(rows, format, offsets)
    count = rows.table.shape[1]
    status = np.zeros(count, np.int32)
    begins = np.arange(count + 1, dtype=np.int64) * format.slots if offsets is None else offsets
    if out.size < int(begins[-1]):
        raise InvalidArgumentError(f"{count} rows need room for {int(begins[-1])} entries, found {out.size}")
    bits = DTYPE_BITS[format.dtype]
    unused = format.bits_dtype.type(format.unused)
    _decode(
        rows.words.view(np.uint8), rows.table, format.kind == _IDS, bits, format.is_float, format.bound, begins,
        unused, ONES, out.reshape(-1), status,
    )  # fmt: skip
    return status


@kernel
def _decode(
    data: Any, table: Any, is_ids: bool, bits: Any, is_float: bool, bound: Any, begins: Any, unused: Any,
    ones_table: Any, out: Any, status: Any,
) -> None:  # fmt: skip
    most = np.int64(0)
    for row in range(table.shape[1]):
        most = max(most, np.int64(table[3, row]))
    ones, residuals = np.empty(most + SPARE, np.uint32), np.empty(most + SPARE, np.uint32)
    for row in range(table.shape[1]):
        meta, count = np.int64(table[1, row]), np.int64(table[3, row])
        start = np.int64(table[0, row]) * 32 + (meta & 31)
        end = start + np.int64(table[2, row])
        found = decode_residuals(
            data, start, end, count, (meta >> _BLOCK_AT) & 7, (meta >> _PARAMETER_AT) & 31, ones_table, ones, residuals
        )
        target = out[begins[row] : begins[row + 1]]
        if found == 0 and is_ids:
            if ids_from_gaps(residuals, count, target) > np.uint64(bound):
                found = 3
        elif found == 0:
            shift = (meta >> _SHIFT_AT) & 31
            if not write_keys(
                residuals, count, np.int64(0), count, np.int64(table[4, row]), shift, bits, is_float, target
            ):
                found = 4
        status[row] = found
        for slot in range(count, len(target)):
            target[slot] = unused
