"""The encoder of values in Numba: the same bytes as `reference`. Kernels release the GIL; see `writing`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from logitstore import layout
from logitstore.codec.compact.bank import Bank
from logitstore.codec.compact.codebook import COLUMN_CONTEXTS, column_context
from logitstore.codec.compact.vector_coder import LANES, PACKED_WORDS
from logitstore.codec.compact.writing import (
    Room,
    Tables,
    addresses_of_rows,
    present_parts,
    put_looked_up,
    put_number,
    put_raw,
    symbols_and_raw_bits,
    write_groups,
)
from logitstore.codec.intrinsics import address_of, load_u16_at, load_u32_at
from logitstore.codec.kernels import kernel
from logitstore.codec.transform import BITS_DTYPE, keys_from_bits

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from logitstore.codec.compact.codebook import ValueBook

__all__ = ["ValueEncoder"]


@kernel
def _encode(
    bits: Any, levels: Any, lowest: Any, counts: Any, kept: Any, group_log2: Any, first_table: Any,
    column_tables: Any, bounds: Any, raw_bits: Any, key_of: Any, direct_raw: Any, present: Any, noted: Any,
    packed_words: Any, direct: Any, bins: Any, packed: Any, symbols: Any, lengths: Any, words: Any, parts: Any,
    raws: Any, reverse: Any,
) -> Any:  # fmt: skip
    """As in `fast_encode_ids`. Rows of ``kept``, and those that the tables cannot code, are kept as they are."""
    tables = address_of(direct), address_of(bins), address_of(packed), address_of(symbols)
    base_table = np.uint64(first_table)
    columns_at, levels_at, places_at = address_of(column_tables), address_of(levels), address_of(packed_words)
    looked_up = address_of(direct_raw), address_of(present), address_of(noted)
    starts, raws_end = addresses_of_rows(parts, 4 * (parts.shape[1] >> 1)), addresses_of_rows(raws, raws.shape[1] - 8)
    scratch, ends = addresses_of_rows(reverse, reverse.shape[1] - 8), np.zeros(LANES, np.uint64)
    tails = np.empty((LANES, 2), np.uint64)
    size, width = np.int64(1) << group_log2, bits.shape[1]
    at = address_of(words)
    for first in range(0, len(lengths), LANES):
        lanes = min(LANES, len(lengths) - first)
        for lane in range(lanes):
            part, tail = starts[lane], (raws_end[lane], np.uint64(0), np.uint64(0))
            begin = (first + lane) * size
            for row in range(begin, min(begin + size, np.int64(len(counts)))):
                count = counts[row]
                if count == 0:
                    continue
                first_part, first_tail = part, tail
                if not kept[row]:
                    row_at = levels_at + np.uint64(2 * row * width)
                    base = np.uint64(lowest[row])
                    bound = np.int64(0)
                    while bound < len(bounds) and np.uint64(bounds[bound]) <= base:
                        bound += 1
                    tables_at = columns_at + np.uint64(4 * bound * width)
                    part, tail = put_number(base + np.uint64(1), np.uint64(0), base_table, tables, part, tail)
                    highest = np.uint16(0)
                    for column in range(count):
                        highest = max(highest, levels[np.uint64(row), np.uint64(column)])
                    done = np.int64(0)
                    if part and np.uint64(highest) - base < np.uint64(len(direct_raw)):
                        done, part, tail = put_looked_up(row_at, base, tables_at, count, looked_up, part, tail)
                    while part and done < count:
                        distance = load_u16_at(row_at, np.uint64(2 * done)) - base
                        table = load_u32_at(tables_at, np.uint64(4 * done)) >> np.uint64(10)
                        part, tail = put_number(distance, np.uint64(1), table, tables, part, tail)
                        done += 1
                if kept[row] or not part:
                    kept[row] = True
                    part, tail = put_number(np.uint64(0), np.uint64(0), base_table, tables, first_part, first_tail)
                    if not part:
                        return -1 - row
                    for column in range(count):
                        tail = put_raw(np.uint64(key_of[bits[row, column]]), np.uint64(raw_bits), tail)
            ends[lane], tails[lane, 0] = part, raws_end[lane]
            tails[lane, 1] = ((raws_end[lane] - tail[0]) << np.uint64(3)) + tail[2]
        at = write_groups(lanes, starts, ends, tails, at, scratch, places_at, lengths[first:])
    return np.int64(at - address_of(words)) >> 1


class ValueEncoder:
    """Encodes chunks of values of so many slots with one codebook."""

    def __init__(self, book: ValueBook, slots: int) -> None:
        codes = (book.base_code, book.delta_code)
        bank = Bank.of(codes)
        columns = np.array([column_context(column) for column in range(slots)], np.int64)
        contexts = bank.contexts[1].reshape(-1, COLUMN_CONTEXTS)
        # Where each column's table begins, in bytes.
        self._columns = (contexts[:, columns] * np.uint32(4 * layout.SYMBOLS_MAX)).reshape(-1)
        self._tables, self._base_table = Tables(codes, bank), int(bank.contexts[0][0])
        self._looked_up = symbols_and_raw_bits(book.delta_code), present_parts(bank)
        self._bounds = book.bounds
        patterns = np.arange(1 << 8 * np.dtype(BITS_DTYPE[book.dtype]).itemsize).astype(BITS_DTYPE[book.dtype])
        self._key_of = keys_from_bits(patterns, book.dtype, 0)
        self._bits = 16 if book.dtype == layout.DTYPE_FLOAT16 else 8

    def __call__(
        self,
        bits: NDArray[Any],
        levels: NDArray[np.uint16],
        lowest: NDArray[np.uint16],
        counts: NDArray[np.int64],
        kept: NDArray[np.bool_],
        group_log2: int,
    ) -> tuple[int, NDArray[np.int64], NDArray[np.uint16]]:
        """Code rows; ``kept`` is set where a row was kept as it is. Returns as `IdEncoder`."""
        room = Room(len(bits), group_log2, bits.shape[1] + 1, bits.shape[1] + 1)
        end = _encode(
            bits, levels, lowest, counts, kept, group_log2, self._base_table, self._columns, self._bounds, self._bits,
            self._key_of, *self._looked_up, np.empty(bits.shape[1] + 1, np.uint32), PACKED_WORDS,
            *self._tables.arrays, *room.arrays,
        )  # fmt: skip
        return (-1 - end if end < 0 else -1), room.lengths, room.words[: max(end, 0)]
