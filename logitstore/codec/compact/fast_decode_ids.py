"""The decoder of ids in Numba: the same arrays as `reference`. Kernels release the GIL; see `groups`.

Four groups are decoded at a time, since each symbol has to wait for the one before it in its group. Each is a *lane*,
which goes on to its next row, and to the next group that nobody has begun, when it gets there: rows differ in length.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from logitstore import layout
from logitstore.codec.compact.bank import Bank, gap_context_of, one_table, take_number, take_symbol
from logitstore.codec.compact.groups import group_table, raise_if_broken, words_of_rows
from logitstore.codec.intrinsics import (
    address_of,
    count_bits,
    load_u16_at,
    load_u32_at,
    load_u64_at,
    store_u32_at,
    store_u64_at,
)
from logitstore.codec.kernels import inlined, kernel

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from logitstore.codec.compact.chunk import CompactHeader
    from logitstore.codec.compact.codebook import IdBook

__all__ = ["IdDecoder"]

_LOW = np.uint64(layout.RANS_LOW)
_TABLE = np.uint64(layout.TABLE_LOG2 + 2)
_BINS = np.uint64(256 * 8)
_PLACES = np.array(
    [sum(4 * b << 8 * i for i, b in enumerate(b for b in range(4) if n >> b & 1)) for n in range(16)], np.uint32
)
"""Four times the place of each set bit of a nibble, a byte each."""
_LANES = 4
_STATE, _POSITION, _NIBBLE, _PAST, _TARGET, _TARGET_END, _TAIL, _ROW, _STOP, _END, _COUNT = range(11)
"""Columns of what is known of a lane. Position, targets and end are addresses; nibbles and rows are numbers."""
_NO_ROW = np.uint64(0xFFFFFFFFFFFFFFFF)
_GO, _IDLE = -1, -2


@inlined
def _spread(row: Any, listed: Any, places: Any) -> None:
    """Store the ids at four places of a nibble, which are bytes of ``places``, four bytes each."""
    mask = np.uint64(255)
    store_u32_at(row, np.uint64(0), load_u32_at(listed, places & mask))
    store_u32_at(row, np.uint64(4), load_u32_at(listed, places >> np.uint64(8) & mask))
    store_u32_at(row, np.uint64(8), load_u32_at(listed, places >> np.uint64(16) & mask))
    store_u32_at(row, np.uint64(12), load_u32_at(listed, places >> np.uint64(24)))


@inlined
def _take_nibble(state: Any, position: Any, nibble: Any, target: Any, entries: Any, tables: Any, listed: Any,
                 places: Any) -> Any:  # fmt: skip
    """Decode a nibble and store its ids; return the new state, position and target."""
    table = entries + (load_u16_at(tables, nibble << np.uint64(1)) << _TABLE)
    mask, state, position = take_symbol(state, position, table)
    # All four are stored; those that are not there are overwritten by what follows.
    _spread(target, listed + (nibble << np.uint64(4)), load_u32_at(places, mask << np.uint64(2)))
    return state, position, target + (np.uint64(count_bits(mask)) << np.uint64(2))


@kernel
def _take_nibbles_of_four(lanes: Any, entries: Any, tables: Any, listed: Any, places: Any) -> None:
    """Fill four rows until one of them has its hits, or its class no more nibbles."""
    s0, s1, s2, s3 = lanes[0, _STATE], lanes[1, _STATE], lanes[2, _STATE], lanes[3, _STATE]
    p0, p1, p2, p3 = lanes[0, _POSITION], lanes[1, _POSITION], lanes[2, _POSITION], lanes[3, _POSITION]
    n0, n1, n2, n3 = lanes[0, _NIBBLE], lanes[1, _NIBBLE], lanes[2, _NIBBLE], lanes[3, _NIBBLE]
    t0, t1, t2, t3 = lanes[0, _TARGET], lanes[1, _TARGET], lanes[2, _TARGET], lanes[3, _TARGET]
    h0, h1, h2, h3 = lanes[0, _TARGET_END], lanes[1, _TARGET_END], lanes[2, _TARGET_END], lanes[3, _TARGET_END]
    least = min(lanes[0, _PAST] - n0, lanes[1, _PAST] - n1, lanes[2, _PAST] - n2, lanes[3, _PAST] - n3)
    while t0 < h0 and t1 < h1 and t2 < h2 and t3 < h3 and least > np.uint64(0):
        s0, p0, t0 = _take_nibble(s0, p0, n0, t0, entries, tables, listed, places)
        s1, p1, t1 = _take_nibble(s1, p1, n1, t1, entries, tables, listed, places)
        s2, p2, t2 = _take_nibble(s2, p2, n2, t2, entries, tables, listed, places)
        s3, p3, t3 = _take_nibble(s3, p3, n3, t3, entries, tables, listed, places)
        n0, n1, n2, n3 = n0 + np.uint64(1), n1 + np.uint64(1), n2 + np.uint64(1), n3 + np.uint64(1)
        least -= np.uint64(1)
    lanes[0, _STATE], lanes[1, _STATE], lanes[2, _STATE], lanes[3, _STATE] = s0, s1, s2, s3
    lanes[0, _POSITION], lanes[1, _POSITION], lanes[2, _POSITION], lanes[3, _POSITION] = p0, p1, p2, p3
    lanes[0, _NIBBLE], lanes[1, _NIBBLE], lanes[2, _NIBBLE], lanes[3, _NIBBLE] = n0, n1, n2, n3
    lanes[0, _TARGET], lanes[1, _TARGET], lanes[2, _TARGET], lanes[3, _TARGET] = t0, t1, t2, t3


@kernel
def _take_nibbles(lanes: Any, lane: Any, entries: Any, tables: Any, listed: Any, places: Any) -> None:
    """Fill the row of one lane."""
    state, position, nibble, target = (
        lanes[lane, _STATE],
        lanes[lane, _POSITION],
        lanes[lane, _NIBBLE],
        lanes[lane, _TARGET],
    )
    while target < lanes[lane, _TARGET_END] and nibble < lanes[lane, _PAST]:
        state, position, target = _take_nibble(state, position, nibble, target, entries, tables, listed, places)
        nibble += np.uint64(1)
    lanes[lane, _STATE], lanes[lane, _POSITION], lanes[lane, _NIBBLE], lanes[lane, _TARGET] = (
        state,
        position,
        nibble,
        target,
    )


@inlined
def _finish_row(lanes: Any, lane: Any, source: Any, buffer: Any, vocabulary: Any, entries: Any, bins: Any,
                gap_tables: Any, order: Any) -> Any:  # fmt: skip
    """Take the misses of a row; return 0 or what is wrong."""
    target, past = lanes[lane, _TARGET], buffer + (lanes[lane, _COUNT] << np.uint64(2))
    status = np.int64(0)
    if target != lanes[lane, _TARGET_END]:
        status = np.int64(3)
    elif target < past:
        state, position, tail = lanes[lane, _STATE], lanes[lane, _POSITION], np.int64(lanes[lane, _TAIL])
        rank = np.uint64(0)
        while target < past:
            context = np.uint64(gap_context_of((past - target) >> np.uint64(2), rank))
            table = entries + (load_u32_at(gap_tables, context << np.uint64(2)) << _TABLE)
            gap, state, position, tail = take_number(source, state, position, tail, table, bins + _BINS + _BINS)
            rank += gap
            if rank >= vocabulary:
                status = np.int64(4)
                break
            store_u32_at(target, np.uint64(0), load_u32_at(order, rank << np.uint64(2)))
            rank += np.uint64(1)
            target += np.uint64(4)
        lanes[lane, _STATE], lanes[lane, _POSITION], lanes[lane, _TAIL] = state, position, np.uint64(tail)
    return status


@kernel
def _advance(  # noqa: PLR0912 - one pass over what a lane has to do
    lanes: Any, lane: Any, queue: Any, source: Any, limit: Any, starts: Any, counts: Any, group_log2: Any, first: Any,
    past: Any, classes: Any, vocabulary: Any, at: Any, buffer: Any, out: Any,
) -> Any:  # fmt: skip
    """Finish a lane's row and begin rows until there is one with hits.

    Returns _GO, or _IDLE if there are no more groups, or eight times the number of a broken row plus what is wrong.
    """
    entries, bins, gap_tables, first_nibble, order = at
    row = lanes[lane, _ROW]
    while True:
        if row != _NO_ROW:
            status = _finish_row(lanes, lane, source, buffer, vocabulary, entries, bins, gap_tables, order)
            if status:
                return np.int64(row) * 8 + status
            target = np.int64(row) - first
            if 0 <= target < out.shape[0]:
                width = np.uint64(out.shape[1])
                base = address_of(out) + (np.uint64(target) * width << np.uint64(2))
                count = lanes[lane, _COUNT]
                for slot in range(count >> np.uint64(1)):
                    offset = np.uint64(slot) << np.uint64(3)
                    store_u64_at(base, offset, load_u64_at(buffer, offset))
                if count & np.uint64(1):
                    offset = (count - np.uint64(1)) << np.uint64(2)
                    store_u32_at(base, offset, load_u32_at(buffer, offset))
                for slot in range(count, width):
                    store_u32_at(base, np.uint64(slot) << np.uint64(2), np.uint64(layout.UNUSED_ID))
            row += np.uint64(1)
            if row == lanes[lane, _STOP]:
                end = np.int64(lanes[lane, _END])
                used = ((end * 8 - np.int64(lanes[lane, _TAIL]) + 15) >> 4) * 2
                if lanes[lane, _STATE] != _LOW or np.int64(lanes[lane, _POSITION] - source) + used != end:
                    return np.int64(row - np.uint64(1)) * 8 + 1
                row = _NO_ROW
        if row == _NO_ROW:
            group = queue[0]
            if group == past:
                lanes[lane, _ROW] = _NO_ROW
                return np.int64(_IDLE)
            queue[0] = group + 1
            begin = np.uint64(starts[group])
            lanes[lane, _STATE], lanes[lane, _POSITION] = load_u32_at(source, begin), source + begin + np.uint64(4)
            lanes[lane, _END], lanes[lane, _TAIL] = np.uint64(starts[group + 1]), np.uint64(starts[group + 1] * 8)
            row = np.uint64(group << group_log2)
            lanes[lane, _STOP] = np.uint64(min((group + 1) << group_log2, np.int64(len(counts))))
        state, position, tail = lanes[lane, _STATE], min(lanes[lane, _POSITION], limit), np.int64(lanes[lane, _TAIL])
        found, state, position, tail = take_number(source, state, position, tail, entries, bins)
        misses, state, position, tail = take_number(
            source, state, position, tail, entries + (np.uint64(1) << _TABLE), bins + _BINS
        )
        count = np.uint64(counts[np.int64(row)])
        if found >= classes or misses > count:
            return np.int64(row) * 8 + 2
        lanes[lane, _STATE], lanes[lane, _POSITION], lanes[lane, _TAIL] = state, position, np.uint64(tail)
        lanes[lane, _NIBBLE] = load_u64_at(first_nibble, found << np.uint64(3))
        lanes[lane, _PAST] = load_u64_at(first_nibble, (found + np.uint64(1)) << np.uint64(3))
        lanes[lane, _TARGET], lanes[lane, _TARGET_END] = buffer, buffer + ((count - misses) << np.uint64(2))
        lanes[lane, _ROW], lanes[lane, _COUNT] = row, count
        if misses < count:
            return np.int64(_GO)


@kernel
def _decode(
    data: Any, limit: Any, starts: Any, counts: Any, group_log2: Any, first: Any, entry_table: Any, bin_table: Any,
    gap_tables: Any, first_nibble: Any, nibble_tables: Any, listed_ids: Any, order: Any, place_table: Any, out: Any,
) -> Any:  # fmt: skip
    """Return -1, or eight times the number of a broken row plus what is wrong with it."""
    # Addresses, not arrays: a row is too short for the time that passing twenty arrays takes.
    source, entries, tables = address_of(data), address_of(entry_table), address_of(nibble_tables)
    listed, places = address_of(listed_ids), address_of(place_table)
    at = entries, address_of(bin_table), address_of(gap_tables), address_of(first_nibble), address_of(order)
    limit, vocabulary, classes = source + np.uint64(limit), np.uint64(len(order)), np.uint64(len(first_nibble) - 1)
    lanes, rows = np.zeros((_LANES, 11), np.uint64), np.empty((_LANES, out.shape[1] + 8), np.uint32)
    step, queue = np.uint64(4 * (out.shape[1] + 8)), np.empty(1, np.int64)
    queue[0] = first >> group_log2
    past = (first + out.shape[0] + (np.int64(1) << group_log2) - 1) >> group_log2
    going = np.int64(0)
    status = np.empty(_LANES, np.int64)
    for lane in range(_LANES):
        lanes[lane, _ROW] = _NO_ROW
        status[lane] = _GO
    while True:
        going = 0
        for lane in range(_LANES):
            # A lane that has more to read before its row is done was stopped by another one.
            is_done = lanes[lane, _TARGET] >= lanes[lane, _TARGET_END] or lanes[lane, _NIBBLE] >= lanes[lane, _PAST]
            if status[lane] == _GO and is_done:
                status[lane] = _advance(
                    lanes, lane, queue, source, limit, starts, counts, group_log2, first, past, classes, vocabulary, at,
                    address_of(rows) + np.uint64(lane) * step, out,
                )  # fmt: skip
                if status[lane] >= 0:
                    return status[lane]
            going += np.int64(status[lane] == _GO)
        if going == _LANES:
            _take_nibbles_of_four(lanes, entries, tables, listed, places)
        elif going == 0:
            return np.int64(-1)
        else:
            for lane in range(_LANES):
                if status[lane] == _GO:
                    _take_nibbles(lanes, lane, entries, tables, listed, places)


class IdDecoder:
    """Decodes rows of ids with one codebook.

    Attributes
    ----------
    book
        The codebook.
    bank
        Its codes of classes, misses, gaps and nibbles; the first two have one table each.
    nibble_tables
        ``(sum(nibbles),)`` uint16: the table in the bank of each nibble of the classes.
    """

    def __init__(self, book: IdBook) -> None:
        self.book = book
        self.bank = Bank.of((one_table(book.class_code), one_table(book.miss_code), book.gap_code, book.nibble_code))
        tables = np.repeat(np.tile(self.bank.contexts[3], book.classes), book.nibbles.reshape(-1))
        self.nibble_tables = tables.astype(np.uint16)

    def __call__(self, header: CompactHeader, data: NDArray[np.uint8], start: int, out: NDArray[np.uint32]) -> None:
        """Decode rows from ``start`` on, as many as ``out`` has, out of a checked chunk."""
        counts, starts = group_table(header, data)
        raise_if_broken(self.decode(data, starts, counts, header.group_log2, start, out))

    def decode(
        self, data: NDArray[np.uint8], starts: NDArray[np.int64], counts: NDArray[np.int64], group_log2: int,
        start: int, out: NDArray[np.uint32],
    ) -> int:  # fmt: skip
        """Decode rows of groups that begin at bytes ``starts`` of the data; return what `raise_if_broken` takes."""
        if not len(out):
            return -1
        bank, book = self.bank, self.book
        symbols = book.longest + out.shape[1] + 2
        words, starts, limit = words_of_rows(data, starts, group_log2, start, start + len(out), symbols)
        return int(_decode(
            words, limit, starts, counts, group_log2, start, bank.entries, bank.bins, bank.contexts[2],
            book.first_nibble, self.nibble_tables, book.listed_ids, book.order, _PLACES, out,
        ))  # fmt: skip
