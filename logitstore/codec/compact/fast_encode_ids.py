"""The encoder of ids in Numba: the same bytes as `reference`. Kernels release the GIL; see `writing`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from logitstore.codec.compact.bank import Bank, gap_context_of
from logitstore.codec.compact.vector_coder import LANES, PACKED_WORDS
from logitstore.codec.compact.writing import (
    Room,
    Tables,
    addresses_of_rows,
    present_parts,
    put_number,
    write_groups,
)
from logitstore.codec.intrinsics import address_of, count_bits, highest_set_bit, load_u16_at, load_u32_at, store_u32_at
from logitstore.codec.kernels import kernel

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from logitstore.codec.compact.codebook import IdBook
    from logitstore.codec.compact.codec import Arrangement

__all__ = ["IdEncoder"]


@kernel
def _encode(
    ranks: Any, counts: Any, sources: Any, classes: Any, hits: Any, masks: Any, group_log2: Any, first_nibble: Any,
    first_tables: Any, nibble_tables: Any, gap_tables: Any, present: Any, packed_words: Any, direct: Any, bins: Any,
    packed: Any, symbols: Any, lengths: Any, words: Any, parts: Any, raws: Any, reverse: Any,
) -> Any:  # fmt: skip
    """Code arranged rows; return the number of words, or less than 0: the first row that cannot be coded."""
    tables = address_of(direct), address_of(bins), address_of(packed), address_of(symbols)
    class_table, miss_table = np.uint64(first_tables[0]), np.uint64(first_tables[1])
    present_at, nibble_tables_at, places_at = address_of(present), address_of(nibble_tables), address_of(packed_words)
    starts, raws_end = addresses_of_rows(parts, 4 * (parts.shape[1] >> 1)), addresses_of_rows(raws, raws.shape[1] - 8)
    scratch, ends = addresses_of_rows(reverse, reverse.shape[1] - 8), np.zeros(LANES, np.uint64)
    tails = np.empty((LANES, 2), np.uint64)
    size = np.int64(1) << group_log2
    at = address_of(words)
    for first in range(0, len(lengths), LANES):
        lanes = min(LANES, len(lengths) - first)
        for lane in range(lanes):
            part, tail = starts[lane], (raws_end[lane], np.uint64(0), np.uint64(0))
            begin = (first + lane) * size
            for row in range(begin, min(begin + size, np.int64(len(counts)))):
                hit, count = np.int64(hits[row]), np.int64(counts[row])
                part, tail = put_number(np.uint64(classes[row]), np.uint64(0), class_table, tables, part, tail)
                if part:
                    part, tail = put_number(np.uint64(count - hit), np.uint64(1), miss_table, tables, part, tail)
                if not part:
                    return -1 - row
                first_part, table_at = part, nibble_tables_at + np.uint64(2 * first_nibble[classes[row]])
                left, place, least = hit, np.int64(0), np.uint64(1)
                while left > 0:
                    found = masks[row, place]
                    place += 1
                    left -= count_bits(found)
                    # All 16 nibbles of the word: those behind the last one that counts are overwritten.
                    for nibble in range(16):
                        offset = np.uint64(4 * nibble)
                        symbol = (found >> offset & np.uint64(15)) << np.uint64(2)
                        table = load_u16_at(table_at, np.uint64(2 * nibble)) << np.uint64(10)
                        coded = load_u32_at(present_at, table | symbol)
                        least = min(least, coded)
                        store_u32_at(part, offset, coded)
                    part += np.uint64(64) if left else np.uint64(4 * (highest_set_bit(found) >> 2) + 4)
                    table_at += np.uint64(32)
                if least == np.uint64(0):
                    # It may have been one of those that do not count.
                    while first_part < part:
                        if load_u32_at(first_part, np.uint64(0)) == np.uint64(0):
                            return -1 - row
                        first_part += np.uint64(4)
                previous = np.int64(0)
                for left in range(count - hit, 0, -1):
                    rank = np.int64(ranks[row, sources[row, count - left]])
                    table = np.uint64(gap_tables[gap_context_of(left, previous)])
                    part, tail = put_number(np.uint64(rank - previous), np.uint64(2), table, tables, part, tail)
                    if not part:
                        return -1 - row
                    previous = rank + 1
            ends[lane], tails[lane, 0] = part, raws_end[lane]
            tails[lane, 1] = ((raws_end[lane] - tail[0]) << np.uint64(3)) + tail[2]
        at = write_groups(lanes, starts, ends, tails, at, scratch, places_at, lengths[first:])
    return np.int64(at - address_of(words)) >> 1


class IdEncoder:
    """Encodes chunks of ids with one codebook."""

    def __init__(self, book: IdBook) -> None:
        codes = (book.class_code, book.miss_code, book.gap_code, book.nibble_code)
        self._book, self._bank = book, Bank.of(codes)
        tables = np.repeat(np.tile(self._bank.contexts[3], book.classes), book.nibbles.reshape(-1))
        # Sixteen at a time are looked at.
        self._nibble_tables = np.append(tables, np.zeros(16, np.uint32)).astype(np.uint16)
        self._present = present_parts(self._bank)
        self._first_tables = np.array([contexts[0] for contexts in self._bank.contexts[:2]], np.uint64)
        self._tables = Tables(codes, self._bank)

    def __call__(self, rows: Arrangement, group_log2: int) -> tuple[int, NDArray[np.int64], NDArray[np.uint16]]:
        """Code rows: the first that cannot be coded or -1, words of each group, and the words."""
        book, slots = self._book, rows.ranks.shape[1]
        # A class, misses, nibbles and gaps; and nibbles are noted sixteen at a time.
        room = Room(len(rows.ranks), group_log2, 2 + book.longest + slots + 16, slots + 2)
        end = _encode(
            rows.ranks, rows.counts, rows.sources, rows.classes, rows.hits, rows.masks, group_log2, book.first_nibble,
            self._first_tables, self._nibble_tables, self._bank.contexts[2], self._present, PACKED_WORDS,
            *self._tables.arrays, *room.arrays,
        )  # fmt: skip
        return (-1 - end if end < 0 else -1), room.lengths, room.words[: max(end, 0)]
