"""The decoder of ids in Numba: the same arrays as `reference`. Kernels release the GIL; see `groups`.

Two groups are decoded at a time, since each symbol has to wait for the one before it in its group.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from logitstore import layout
from logitstore.codec.compact.bank import Bank, gap_context_of, take_number, take_symbol
from logitstore.codec.compact.groups import group_table, raise_if_broken, words_of_rows
from logitstore.codec.intrinsics import address_of, count_bits, load_u16_at, load_u32_at, load_u64_at, store_u32_at
from logitstore.codec.kernels import inlined, kernel

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from logitstore.codec.compact.chunk import CompactHeader
    from logitstore.codec.compact.codebook import IdBook

__all__ = ["IdDecoder"]

_LOW = np.uint64(layout.RANS_LOW)
_BINS = np.uint64(256 * 8)
_PLACES = np.array(
    [sum(4 * b << 8 * i for i, b in enumerate(b for b in range(4) if n >> b & 1)) for n in range(16)], np.uint32
)
"""Four times the place of each set bit of a nibble, a byte each."""
_STATE, _POSITION, _USED, _END, _NIBBLE, _PAST, _HITS, _FILLED = range(8)
"""Columns of what is known of a group that is being decoded."""


@kernel
def _begin_row(source: Any, lane: Any, count: Any, limit: Any, classes: Any, at: Any, lanes: Any) -> Any:
    """Read a row's class and misses; return whether they are possible."""
    slots, packed, bins, _gaps, first_nibble, _tables, _listed, _order, _places = at
    position, end = min(lanes[lane, _POSITION], limit), lanes[lane, _END]
    state, used = np.uint64(lanes[lane, _STATE]), lanes[lane, _USED]
    found, state, position, used = take_number(source, state, position, end, used, slots, packed, bins, 0)
    misses, state, position, used = take_number(source, state, position, end, used, slots, packed, bins + _BINS, 1)
    lanes[lane, _STATE], lanes[lane, _POSITION], lanes[lane, _USED] = np.int64(state), position, used
    if np.int64(found) >= classes or np.int64(misses) > count:
        return False
    lanes[lane, _NIBBLE] = np.int64(load_u64_at(first_nibble, found << np.uint64(3)))
    lanes[lane, _PAST] = np.int64(load_u64_at(first_nibble, (found + np.uint64(1)) << np.uint64(3)))
    lanes[lane, _HITS] = count - np.int64(misses)
    lanes[lane, _FILLED] = 0
    return True


@inlined
def _spread(row: Any, filled: Any, listed: Any, nibble: Any, places: Any) -> None:
    """Store the ids at four places of a nibble, which are bytes of ``places``, four bytes each."""
    base = np.uint64(nibble) << np.uint64(4)
    at = np.uint64(filled) << np.uint64(2)
    mask = np.uint64(255)
    store_u32_at(row, at, load_u32_at(listed, base + (places & mask)))
    store_u32_at(row, at + np.uint64(4), load_u32_at(listed, base + (places >> np.uint64(8) & mask)))
    store_u32_at(row, at + np.uint64(8), load_u32_at(listed, base + (places >> np.uint64(16) & mask)))
    store_u32_at(row, at + np.uint64(12), load_u32_at(listed, base + (places >> np.uint64(24))))


@kernel
def _take_nibbles_of_two(source: Any, at: Any, lanes: Any, first: Any, second: Any) -> None:
    """Fill both rows until one of them has its hits, or its class no more nibbles."""
    slots, packed, _bins, _gaps, _first_nibble, tables, listed, _order, places = at
    s0, s1 = np.uint64(lanes[0, _STATE]), np.uint64(lanes[1, _STATE])
    p0, p1 = lanes[0, _POSITION], lanes[1, _POSITION]
    n0, n1 = lanes[0, _NIBBLE], lanes[1, _NIBBLE]
    f0, f1 = np.int64(0), np.int64(0)
    h0, h1, e0, e1 = lanes[0, _HITS], lanes[1, _HITS], lanes[0, _PAST], lanes[1, _PAST]
    while f0 < h0 and f1 < h1 and n0 < e0 and n1 < e1:
        m0, s0, p0 = take_symbol(source, s0, p0, slots, packed, load_u16_at(tables, np.uint64(2 * n0)))
        m1, s1, p1 = take_symbol(source, s1, p1, slots, packed, load_u16_at(tables, np.uint64(2 * n1)))
        # All four are stored; those that are not there are overwritten by what follows.
        _spread(first, f0, listed, n0, load_u32_at(places, m0 << np.uint64(2)))
        _spread(second, f1, listed, n1, load_u32_at(places, m1 << np.uint64(2)))
        f0 += np.int64(count_bits(m0))
        f1 += np.int64(count_bits(m1))
        n0 += 1
        n1 += 1
    lanes[0, _STATE], lanes[1, _STATE] = np.int64(s0), np.int64(s1)
    lanes[0, _POSITION], lanes[1, _POSITION] = p0, p1
    lanes[0, _NIBBLE], lanes[1, _NIBBLE] = n0, n1
    lanes[0, _FILLED], lanes[1, _FILLED] = f0, f1


@kernel
def _finish_row(source: Any, lane: Any, count: Any, vocabulary: Any, at: Any, lanes: Any, row: Any) -> Any:
    """Take what is left of a row; return 0 or what is wrong."""
    slots, packed, bins, gaps, _first_nibble, tables, listed, order, places = at
    state, position = np.uint64(lanes[lane, _STATE]), lanes[lane, _POSITION]
    used, end = lanes[lane, _USED], lanes[lane, _END]
    nibble, past, hits, slot = lanes[lane, _NIBBLE], lanes[lane, _PAST], lanes[lane, _HITS], lanes[lane, _FILLED]
    while slot < hits and nibble < past:
        mask, state, position = take_symbol(
            source, state, position, slots, packed, load_u16_at(tables, np.uint64(2 * nibble))
        )
        _spread(row, slot, listed, nibble, load_u32_at(places, mask << np.uint64(2)))
        slot += np.int64(count_bits(mask))
        nibble += 1
    if slot != hits:
        return 3
    rank = np.int64(-1)
    for left in range(count - slot, 0, -1):
        table = load_u32_at(gaps, np.uint64(4 * gap_context_of(left, rank + 1)))
        gap, state, position, used = take_number(
            source, state, position, end, used, slots, packed, bins + _BINS * np.uint64(2), table
        )
        rank += np.int64(gap) + 1
        if rank >= vocabulary:
            return 4
        store_u32_at(row, np.uint64(4 * (count - left)), load_u32_at(order, np.uint64(4 * rank)))
    lanes[lane, _STATE], lanes[lane, _POSITION], lanes[lane, _USED] = np.int64(state), position, used
    return 0


@kernel
def _decode(
    data: Any, limit: Any, starts: Any, counts: Any, group_log2: Any, first: Any, slots: Any, packed: Any, bins: Any,
    gap_tables: Any, first_nibble: Any, nibble_tables: Any, listed: Any, order: Any, places: Any, out: Any,
) -> Any:  # fmt: skip
    """Return -1, or eight times the number of a broken row plus what is wrong with it."""
    # Addresses, not arrays: a row is too short for the time that passing twenty arrays takes.
    source = address_of(data)
    at = (
        address_of(slots), address_of(packed), address_of(bins), address_of(gap_tables), address_of(first_nibble),
        address_of(nibble_tables), address_of(listed), address_of(order), address_of(places),
    )  # fmt: skip
    size = np.int64(1) << group_log2
    lanes = np.empty((2, 8), np.int64)
    rows = np.empty((2, out.shape[1] + 8), np.uint32)
    rows_at = address_of(rows), address_of(rows[1])
    group, past = first >> group_log2, (first + out.shape[0] + size - 1) >> group_log2
    while group < past:
        width = 2 if group + 2 <= past and (group + 2) * size <= len(counts) else 1
        stop = min((group + 1) * size, np.int64(len(counts)))
        for lane in range(width):
            begin = starts[group + lane]
            lanes[lane, _STATE] = np.int64(load_u64_at(source, np.uint64(begin)) & np.uint64(0xFFFFFFFF))
            lanes[lane, _POSITION], lanes[lane, _USED], lanes[lane, _END] = begin + 4, 0, starts[group + lane + 1] * 8
        for row in range(group * size, stop):
            for lane in range(width):
                count = counts[row + lane * size]
                if not _begin_row(source, lane, count, limit, np.int64(len(first_nibble) - 1), at, lanes):
                    return (row + lane * size) * 8 + 2
            if width == 2:
                _take_nibbles_of_two(source, at, lanes, rows_at[0], rows_at[1])
            for lane in range(width):
                count, target = counts[row + lane * size], row + lane * size - first
                status = _finish_row(source, lane, count, np.int64(len(order)), at, lanes, rows_at[lane])
                if status:
                    return (row + lane * size) * 8 + status
                if 0 <= target < out.shape[0]:
                    out[target, :count] = rows[lane, :count]
                    out[target, count:] = np.uint32(0xFFFFFFFF)
        for lane in range(width):
            used = ((lanes[lane, _USED] + 15) >> 4) * 16
            if np.uint64(lanes[lane, _STATE]) != _LOW or lanes[lane, _POSITION] * 8 + used != lanes[lane, _END]:
                return (stop - 1 + lane * size) * 8 + 1
        group += width
    return -1


class IdDecoder:
    """Decodes chunks of ids with one codebook."""

    def __init__(self, book: IdBook) -> None:
        self.bank = Bank.of((book.class_code, book.miss_code, book.gap_code, book.nibble_code))
        tables = np.repeat(np.tile(self.bank.contexts[3], book.classes), book.nibbles.reshape(-1))
        self._nibble_tables = tables.astype(np.uint16)
        self._longest = int(np.diff(book.first_nibble).max())
        self._book = book

    def __call__(self, header: CompactHeader, data: NDArray[np.uint8], start: int, out: NDArray[np.uint32]) -> None:
        """Decode rows from ``start`` on, as many as ``out`` has, out of a checked chunk."""
        counts, starts = group_table(header, data)
        if not len(out):
            return
        bank = self.bank
        words, limit = words_of_rows(header, data, starts, start, start + len(out), self._longest + header.slots + 2)
        status = _decode(
            words, limit, starts, counts, header.group_log2, start, bank.slots, bank.packed, bank.bins,
            bank.contexts[2], self._book.first_nibble, self._nibble_tables, self._book.listed_ids, self._book.order,
            _PLACES, out,
        )  # fmt: skip
        raise_if_broken(status)
