"""The decoder of values in Numba: the same arrays as `reference`. Kernels release the GIL; see `groups`.

Four groups are decoded at a time, since each symbol has to wait for the one before it in its group.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from logitstore import layout
from logitstore.codec.compact.bank import Bank, one_table, take_number, take_raw, take_symbol
from logitstore.codec.compact.codebook import COLUMN_CONTEXTS, column_context
from logitstore.codec.compact.groups import group_table, raise_if_broken, words_of_rows
from logitstore.codec.compact.instructions import store_like
from logitstore.codec.intrinsics import address_of, load_u32_at, load_u64_at
from logitstore.codec.kernels import inlined, kernel
from logitstore.codec.transform import UNUSED, bits_from_keys

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from logitstore.codec.compact.chunk import CompactHeader
    from logitstore.codec.compact.codebook import ValueBook

__all__ = ["ValueDecoder"]

_LOW = np.uint64(layout.RANS_LOW)
_BINS = np.uint64(256 * 8)
_LANES = 4
_BAD = 1 << 16
"""Bit of a level that there is not."""


@kernel
def _begin_row(
    source: Any, lane: Any, count: Any, limit: Any, most: Any, entries: Any, bins: Any, bounds: Any, raw_bits: Any,
    from_raw: Any, out: Any, states: Any, positions: Any, tails: Any, bases: Any, parts: Any, targets: Any,
) -> Any:  # fmt: skip
    """Read a row's base; return how many distances follow. A row that was kept as it is goes to its target."""
    positions[lane] = min(positions[lane], limit)
    if count == 0:
        return np.int64(0)
    base, states[lane], positions[lane], tail = take_number(
        source, states[lane], positions[lane], tails[lane], entries, bins
    )
    if base == 0:
        for column in range(count):
            raw, tail = take_raw(source, tail, raw_bits)
            store_like(out, targets[lane] + np.uint64(column * out.itemsize), np.uint64(from_raw[raw]))
        count = np.int64(0)
    else:
        base = min(base - np.uint64(1), most)
        bases[lane] = base
        part = np.int64(0)
        while part < len(bounds) and np.uint64(bounds[part]) <= base:
            part += 1
        parts[lane] = part
    tails[lane] = tail
    return count


@inlined
def _take_level(
    source: Any, state: Any, position: Any, tail: Any, table: Any, bins: Any, plain: Any, most: Any, base: Any,
    levels: Any,
) -> Any:  # fmt: skip
    """Decode one distance; return the level's bits, with _BAD if there is no such level, and what moved."""
    number, state, position = take_symbol(state, position, table)
    if number >= plain:
        entry = load_u64_at(bins, number << np.uint64(3))
        raw, tail = take_raw(source, tail, entry >> np.uint64(32))
        number = min((entry & np.uint64(0xFFFFFFFF)) + raw, most)
    return load_u32_at(levels, (base + number) << np.uint64(2)), state, position, tail


@kernel
def _take_four(
    source: Any, columns: Any, entries: Any, run_ends: Any, run_tables: Any, bins: Any, plain: Any, most: Any,
    levels: Any, out: Any, states: Any, positions: Any, tails: Any, bases: Any, parts: Any, targets: Any,
) -> Any:  # fmt: skip
    """Decode the first columns of four rows; return all of their bits or-ed."""
    seen = np.uint64(0)
    s0, s1, s2, s3 = states[0], states[1], states[2], states[3]
    p0, p1, p2, p3 = positions[0], positions[1], positions[2], positions[3]
    e0, e1, e2, e3 = tails[0], tails[1], tails[2], tails[3]
    b0, b1, b2, b3 = bases[0], bases[1], bases[2], bases[3]
    offset, run, column = np.uint64(0), np.int64(0), np.int64(0)
    o0, o1, o2, o3 = targets[0], targets[1], targets[2], targets[3]
    while column < columns:
        stop = min(run_ends[run], columns)
        t0, t1 = entries + run_tables[parts[0], run], entries + run_tables[parts[1], run]
        t2, t3 = entries + run_tables[parts[2], run], entries + run_tables[parts[3], run]
        while column < stop:
            v0, s0, p0, e0 = _take_level(source, s0, p0, e0, t0, bins, plain, most, b0, levels)
            store_like(out, o0 + offset, v0)
            v1, s1, p1, e1 = _take_level(source, s1, p1, e1, t1, bins, plain, most, b1, levels)
            store_like(out, o1 + offset, v1)
            v2, s2, p2, e2 = _take_level(source, s2, p2, e2, t2, bins, plain, most, b2, levels)
            store_like(out, o2 + offset, v2)
            v3, s3, p3, e3 = _take_level(source, s3, p3, e3, t3, bins, plain, most, b3, levels)
            store_like(out, o3 + offset, v3)
            seen |= v0 | v1 | v2 | v3
            offset += np.uint64(out.itemsize)
            column += 1
        run += 1
    states[0], states[1], states[2], states[3] = s0, s1, s2, s3
    positions[0], positions[1], positions[2], positions[3] = p0, p1, p2, p3
    tails[0], tails[1], tails[2], tails[3] = e0, e1, e2, e3
    return seen


@kernel
def _take_one(
    source: Any, lane: Any, column: Any, columns: Any, entries: Any, run_ends: Any, run_tables: Any, bins: Any,
    plain: Any, most: Any, levels: Any, out: Any, states: Any, positions: Any, tails: Any, bases: Any, parts: Any,
    targets: Any,
) -> Any:  # fmt: skip
    """Decode the columns of one row from ``column`` on; return all of their bits or-ed."""
    seen = np.uint64(0)
    state, position, tail, run = states[lane], positions[lane], tails[lane], np.int64(0)
    while column < columns:
        while run_ends[run] <= column:
            run += 1
        table = entries + run_tables[parts[lane], run]
        level, state, position, tail = _take_level(
            source, state, position, tail, table, bins, plain, most, bases[lane], levels
        )
        store_like(out, targets[lane] + np.uint64(column * out.itemsize), level)
        seen |= level
        column += 1
    states[lane], positions[lane], tails[lane] = state, position, tail
    return seen


@kernel
def _decode(
    data: Any, limit: Any, starts: Any, counts: Any, group_log2: Any, first: Any, entry_table: Any, run_ends: Any,
    run_tables: Any, bin_table: Any, plain: Any, most: Any, bounds: Any, level_table: Any, raw_bits: Any, from_raw: Any,
    unused: Any, out: Any,
) -> Any:  # fmt: skip
    """Return -1, or eight times the number of a broken row plus what is wrong with it.

    ``level_table`` are bits of values, _BAD where there is no level; ``from_raw`` makes bits of keys.
    """
    source, entries, bins = address_of(data), address_of(entry_table), address_of(bin_table)
    levels, plain, most = address_of(level_table), np.uint64(plain), np.uint64(most)
    width, size = np.int64(out.shape[1]), np.int64(1) << group_log2
    limit = source + np.uint64(limit)
    states, bases, parts = np.empty(_LANES, np.uint64), np.zeros(_LANES, np.uint64), np.zeros(_LANES, np.int64)
    positions, tails, columns = np.empty(_LANES, np.uint64), np.empty(_LANES, np.int64), np.empty(_LANES, np.int64)
    targets, aside = np.empty(_LANES, np.uint64), np.empty((_LANES, width), out.dtype)
    group, past = first >> group_log2, (first + out.shape[0] + size - 1) >> group_log2
    while group < past:
        lanes = _LANES if group + _LANES <= past and (group + _LANES) * size <= len(counts) else 1
        stop = min((group + 1) * size, np.int64(len(counts)))
        for lane in range(lanes):
            begin = np.uint64(starts[group + lane])
            states[lane] = load_u32_at(source, begin)
            positions[lane], tails[lane] = source + begin + np.uint64(4), starts[group + lane + 1] * 8
        for row in range(group * size, stop):
            together = np.int64(width)
            for lane in range(lanes):
                target = row + lane * size - first
                # Rows that nobody asked for are put aside.
                targets[lane] = address_of(aside) + np.uint64(lane * width * out.itemsize)
                if 0 <= target < out.shape[0]:
                    targets[lane] = address_of(out) + np.uint64(target * width * out.itemsize)
                columns[lane] = _begin_row(
                    source, lane, counts[row + lane * size], limit, most, entries, bins, bounds, raw_bits, from_raw,
                    out, states, positions, tails, bases, parts, targets,
                )  # fmt: skip
                together = min(together, columns[lane])
            seen = np.uint64(0)
            if lanes == _LANES:
                seen = _take_four(
                    source, together, entries, run_ends, run_tables, bins + _BINS, plain, most, levels, out, states,
                    positions, tails, bases, parts, targets,
                )  # fmt: skip
            for lane in range(lanes):
                begin_column = together if lanes == _LANES else np.int64(0)
                if begin_column < columns[lane]:
                    seen |= _take_one(
                        source, lane, begin_column, columns[lane], entries, run_ends, run_tables, bins + _BINS, plain,
                        most, levels, out, states, positions, tails, bases, parts, targets,
                    )  # fmt: skip
                for column in range(counts[row + lane * size], width):
                    store_like(out, targets[lane] + np.uint64(column * out.itemsize), np.uint64(unused))
            if seen & np.uint64(_BAD):
                return row * 8 + 5
        for lane in range(lanes):
            end = starts[group + lane + 1] * 8
            used = ((end - tails[lane] + 15) >> 4) * 16
            if states[lane] != _LOW or np.int64(positions[lane] - source) * 8 + used != end:
                return (stop - 1 + lane * size) * 8 + 1
        group += lanes
    return -1


class ValueDecoder:
    """Decodes rows of values of so many slots with one codebook.

    Attributes
    ----------
    book
        The codebook.
    bank
        Its codes of bases, which has one table, and distances.
    """

    def __init__(self, book: ValueBook, slots: int) -> None:
        self.book = book
        self.bank = Bank.of((one_table(book.base_code), book.delta_code))
        columns = np.array([column_context(column) for column in range(slots)], np.int64)
        firsts = np.flatnonzero(np.diff(columns, prepend=-1))
        contexts = self.bank.contexts[1].reshape(-1, COLUMN_CONTEXTS)
        # Columns of the same context, one after the other, and the first byte of their table in each part.
        self._run_ends = np.append(firsts[1:], slots)
        self._run_tables = np.ascontiguousarray(contexts[:, columns[firsts]]).astype(np.uint64) << np.uint64(
            layout.TABLE_LOG2 + 2
        )
        self._bits = 16 if book.dtype == layout.DTYPE_FLOAT16 else 8
        self._from_raw = bits_from_keys(np.arange(1 << self._bits, dtype=np.uint32), book.dtype, 0)
        # A base and a distance are held at the number of levels; a symbol without raw bits is below 256.
        self._levels = np.full(2 * len(book.levels) + layout.SYMBOLS_MAX + 1, _BAD, np.uint32)
        self._levels[: len(book.levels)] = self._from_raw[book.levels]
        self._plain = book.delta_code.plain

    def __call__(self, header: CompactHeader, data: NDArray[np.uint8], start: int, out: NDArray[Any]) -> None:
        """Decode rows from ``start`` on, as many as ``out`` has, to the bits of values."""
        counts, starts = group_table(header, data)
        raise_if_broken(self.decode(data, starts, counts, header.group_log2, start, out))

    def decode(
        self, data: NDArray[np.uint8], starts: NDArray[np.int64], counts: NDArray[np.int64], group_log2: int,
        start: int, out: NDArray[Any],
    ) -> int:  # fmt: skip
        """Decode rows of groups that begin at bytes ``starts`` of the data; return what `raise_if_broken` takes."""
        if not len(out):
            return -1
        bank, book = self.bank, self.book
        words, starts, limit = words_of_rows(data, starts, group_log2, start, start + len(out), out.shape[1] + 1)
        return int(_decode(
            words, limit, starts, counts, group_log2, start, bank.entries, self._run_ends, self._run_tables, bank.bins,
            self._plain, len(book.levels), book.bounds, self._levels, self._bits, self._from_raw, UNUSED[book.dtype],
            out,
        ))  # fmt: skip
