"""The encoder of ids in Numba: the same bytes as `reference`. Kernels release the GIL."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from logitstore.codec.compact.bank import Bank, gap_context_of
from logitstore.codec.compact.writing import buffers_for, direct_symbols, put_number, write_group
from logitstore.codec.intrinsics import address_of
from logitstore.codec.kernels import kernel

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from logitstore.codec.compact.codebook import IdBook

__all__ = ["IdEncoder"]


@kernel
def _encode(
    ids: Any, counts: Any, hits: Any, classes: Any, group_log2: Any, first_nibble: Any, nibble_tables: Any, listed: Any,
    ranks: Any, gap_tables: Any, direct: Any, bins: Any, symbols: Any, packed: Any, lengths: Any,
    words: Any, parts: Any, raws: Any, reverse: Any,
) -> Any:  # fmt: skip
    """Code arranged rows; return the number of words, or less than 0: the first row that cannot be coded."""
    tables_at = address_of(direct), address_of(bins), address_of(packed), address_of(parts), address_of(raws)
    size = np.int64(1) << group_log2
    at = np.int64(0)
    for group in range(len(lengths)):
        n_parts, n_raws = np.int64(0), np.int64(0)
        for row in range(group * size, min((group + 1) * size, np.int64(len(counts)))):
            misses = counts[row] - hits[row]
            n_parts, n_raws = put_number(classes[row], 0, np.int64(0), symbols[0], tables_at, n_parts, n_raws)
            if n_parts < 0:
                return -1 - row
            n_parts, n_raws = put_number(misses, 1, np.int64(1), symbols[1], tables_at, n_parts, n_raws)
            if n_parts < 0:
                return -1 - row
            slot = np.int64(0)
            nibble = first_nibble[classes[row]]
            while slot < hits[row]:
                mask = np.int64(0)
                for i in range(4):
                    if slot < hits[row] and listed[4 * nibble + i] == ids[row, slot]:
                        mask |= 1 << i
                        slot += 1
                part = packed[(np.int64(nibble_tables[nibble]) << 8) | mask]
                if not part & np.uint32(0xFFFF):
                    return -1 - row
                parts[n_parts] = part
                n_parts += 1
                nibble += 1
            previous = np.int64(0)
            for left in range(misses, 0, -1):
                rank = np.int64(ranks[ids[row, slot]])
                table = np.int64(gap_tables[gap_context_of(left, previous)])
                n_parts, n_raws = put_number(rank - previous, 2, table, symbols[2], tables_at, n_parts, n_raws)
                if n_parts < 0:
                    return -1 - row
                previous = rank + 1
                slot += 1
        end = write_group(parts, n_parts, raws, n_raws, words, at, reverse)
        lengths[group] = end - at
        at = end
    return at


class IdEncoder:
    """Encodes chunks of ids with one codebook."""

    def __init__(self, book: IdBook) -> None:
        codes = (book.class_code, book.miss_code, book.gap_code, book.nibble_code)
        bank = Bank.of(codes)
        tables = np.repeat(np.tile(bank.contexts[3], book.classes), book.nibbles.reshape(-1))
        symbols = np.array([len(code.widths) for code in codes], np.int64)
        self._book, self._bank = book, bank
        self._tables = np.append(tables, np.uint32(0)).astype(np.uint16)
        self._codes = direct_symbols(codes), bank.bins, symbols, bank.packed
        self._longest = int(np.diff(book.first_nibble).max())

    def __call__(
        self,
        ids: NDArray[np.uint32],
        counts: NDArray[np.int64],
        hits: NDArray[np.int64],
        classes: NDArray[np.int64],
        group_log2: int,
    ) -> tuple[int, NDArray[np.int64], NDArray[np.uint16]]:
        """Code arranged rows: the first that cannot be coded or -1, words of each group, and the words."""
        parts_row = self._longest + ids.shape[1] + 2
        lengths, words, *buffers = buffers_for(len(ids), group_log2, parts_row, ids.shape[1] + 2)
        book = self._book
        end = _encode(
            ids, counts, hits, classes, group_log2, book.first_nibble, self._tables, book.listed_ids, book.ranks,
            self._bank.contexts[2], *self._codes, lengths, words, *buffers,
        )  # fmt: skip
        return (-1 - end if end < 0 else -1), lengths, words[: max(end, 0)]
