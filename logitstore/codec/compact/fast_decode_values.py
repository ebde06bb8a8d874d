"""The decoder of values in Numba: the same arrays as `reference`. Kernels release the GIL; see `groups`.

Four groups are decoded at a time, since each symbol has to wait for the one before it in its group.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from logitstore import layout
from logitstore.codec.compact.bank import Bank, take_number, take_raw
from logitstore.codec.compact.codebook import COLUMN_CONTEXTS, column_context
from logitstore.codec.compact.groups import group_table, raise_if_broken, words_of_rows
from logitstore.codec.intrinsics import address_of, load_u64_at
from logitstore.codec.kernels import kernel
from logitstore.codec.transform import BITS_DTYPE, UNUSED, bits_from_keys

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from logitstore.codec.compact.chunk import CompactHeader
    from logitstore.codec.compact.codebook import ValueBook

__all__ = ["ValueDecoder"]

_LOW = np.uint64(layout.RANS_LOW)
_BINS = np.uint64(256 * 8)
_LANES = 4


@kernel
def _begin_row(
    source: Any, lane: Any, count: Any, width: Any, limit: Any, slots: Any, packed: Any, bins: Any, bounds: Any,
    raw_bits: Any, from_raw: Any, states: Any, positions: Any, ends: Any, useds: Any, bases: Any, tables: Any, row: Any,
) -> Any:  # fmt: skip
    """Read a row's base; return how many distances follow. A row that was kept as it is goes to ``row[lane]``."""
    positions[lane] = min(positions[lane], limit)
    if count == 0:
        return np.int64(0)
    base, states[lane], positions[lane], used = take_number(
        source, states[lane], positions[lane], ends[lane], useds[lane], slots, packed, bins, 0
    )
    if base == 0:
        for column in range(count):
            raw, used = take_raw(source, ends[lane], used, raw_bits)
            row[lane, column] = from_raw[raw]
        count = np.int64(0)
    else:
        bases[lane] = base - np.uint64(1)
        part = np.int64(0)
        while part < len(bounds) and np.uint64(bounds[part]) <= bases[lane]:
            part += 1
        tables[lane] = part * width
    useds[lane] = used
    return count


@kernel
def _take_four(
    source: Any, columns: Any, slots: Any, packed: Any, bins: Any, column_tables: Any, levels: Any, states: Any,
    positions: Any, ends: Any, useds: Any, bases: Any, tables: Any, row: Any,
) -> Any:  # fmt: skip
    """Decode the first columns of four rows; return the highest level."""
    most = np.uint64(len(levels) - 1)
    high = np.uint64(0)
    s0, s1, s2, s3 = states[0], states[1], states[2], states[3]
    p0, p1, p2, p3 = positions[0], positions[1], positions[2], positions[3]
    u0, u1, u2, u3 = useds[0], useds[1], useds[2], useds[3]
    e0, e1, e2, e3 = ends[0], ends[1], ends[2], ends[3]
    b0, b1, b2, b3 = bases[0], bases[1], bases[2], bases[3]
    t0, t1, t2, t3 = tables[0], tables[1], tables[2], tables[3]
    for column in range(columns):
        at = np.uint64(column)
        n0, s0, p0, u0 = take_number(source, s0, p0, e0, u0, slots, packed, bins, column_tables[np.uint64(t0) + at])
        n1, s1, p1, u1 = take_number(source, s1, p1, e1, u1, slots, packed, bins, column_tables[np.uint64(t1) + at])
        n2, s2, p2, u2 = take_number(source, s2, p2, e2, u2, slots, packed, bins, column_tables[np.uint64(t2) + at])
        n3, s3, p3, u3 = take_number(source, s3, p3, e3, u3, slots, packed, bins, column_tables[np.uint64(t3) + at])
        n0, n1, n2, n3 = min(n0 + b0, most), min(n1 + b1, most), min(n2 + b2, most), min(n3 + b3, most)
        high = max(high, n0, n1, n2, n3)
        row[np.uint64(0), at] = levels[n0]
        row[np.uint64(1), at] = levels[n1]
        row[np.uint64(2), at] = levels[n2]
        row[np.uint64(3), at] = levels[n3]
    states[0], states[1], states[2], states[3] = s0, s1, s2, s3
    positions[0], positions[1], positions[2], positions[3] = p0, p1, p2, p3
    useds[0], useds[1], useds[2], useds[3] = u0, u1, u2, u3
    return high


@kernel
def _take_one(
    source: Any, lane: Any, column: Any, columns: Any, slots: Any, packed: Any, bins: Any, column_tables: Any,
    levels: Any, states: Any, positions: Any, ends: Any, useds: Any, bases: Any, tables: Any, row: Any,
) -> Any:  # fmt: skip
    """Decode the columns of one row from ``column`` on; return the highest level."""
    most = np.uint64(len(levels) - 1)
    high = np.uint64(0)
    state, position, used = states[lane], positions[lane], useds[lane]
    while column < columns:
        table = column_tables[tables[lane] + column]
        number, state, position, used = take_number(
            source, state, position, ends[lane], used, slots, packed, bins, table
        )
        number = min(number + bases[lane], most)
        high = max(high, number)
        row[lane, column] = levels[number]
        column += 1
    states[lane], positions[lane], useds[lane] = state, position, used
    return high


@kernel
def _decode(
    data: Any, limit: Any, starts: Any, counts: Any, group_log2: Any, first: Any, slot_table: Any, packed_table: Any,
    bin_table: Any, column_tables: Any, bounds: Any, levels: Any, raw_bits: Any, from_raw: Any, unused: Any, out: Any,
) -> Any:  # fmt: skip
    """Return -1, or eight times the number of a broken row plus what is wrong with it.

    ``levels`` are bits of values, one more than there are; ``from_raw`` makes bits of keys.
    """
    source, slots, packed = address_of(data), address_of(slot_table), address_of(packed_table)
    bins = address_of(bin_table)
    width, size = np.int64(out.shape[1]), np.int64(1) << group_log2
    states, bases = np.empty(_LANES, np.uint64), np.zeros(_LANES, np.uint64)
    positions, useds, ends = np.empty(_LANES, np.int64), np.empty(_LANES, np.int64), np.empty(_LANES, np.int64)
    tables, columns = np.zeros(_LANES, np.int64), np.empty(_LANES, np.int64)
    buffer = np.empty((_LANES, width), out.dtype)
    group, past = first >> group_log2, (first + out.shape[0] + size - 1) >> group_log2
    while group < past:
        lanes = _LANES if group + _LANES <= past and (group + _LANES) * size <= len(counts) else 1
        stop = min((group + 1) * size, np.int64(len(counts)))
        for lane in range(lanes):
            states[lane] = load_u64_at(source, np.uint64(starts[group + lane])) & np.uint64(0xFFFFFFFF)
            positions[lane], useds[lane] = starts[group + lane] + 4, 0
            ends[lane] = starts[group + lane + 1] * 8
        for row in range(group * size, stop):
            together = np.int64(width)
            for lane in range(lanes):
                columns[lane] = _begin_row(
                    source, lane, counts[row + lane * size], width, limit, slots, packed, bins, bounds, raw_bits,
                    from_raw, states, positions, ends, useds, bases, tables, buffer,
                )  # fmt: skip
                together = min(together, columns[lane])
            high = np.uint64(0)
            if lanes == _LANES:
                high = _take_four(
                    source, together, slots, packed, bins + _BINS, column_tables, levels, states, positions, ends,
                    useds, bases, tables, buffer,
                )  # fmt: skip
            for lane in range(lanes):
                begin = together if lanes == _LANES else np.int64(0)
                if begin < columns[lane]:
                    single = _take_one(
                        source, lane, begin, columns[lane], slots, packed, bins + _BINS, column_tables, levels, states,
                        positions, ends, useds, bases, tables, buffer,
                    )  # fmt: skip
                    high = max(high, single)
                count, target = counts[row + lane * size], row + lane * size - first
                if 0 <= target < out.shape[0]:
                    out[target, :count] = buffer[lane, :count]
                    out[target, count:] = unused
            if high == len(levels) - 1:
                return row * 8 + 5
        for lane in range(lanes):
            if states[lane] != _LOW or positions[lane] * 8 + ((useds[lane] + 15) >> 4) * 16 != ends[lane]:
                return (stop - 1 + lane * size) * 8 + 1
        group += lanes
    return -1


class ValueDecoder:
    """Decodes chunks of values of so many slots with one codebook."""

    def __init__(self, book: ValueBook, slots: int) -> None:
        self.bank = Bank.of((book.base_code, book.delta_code))
        columns = np.array([column_context(column) for column in range(slots)], np.int64)
        contexts = self.bank.contexts[1].reshape(-1, COLUMN_CONTEXTS)
        self._tables = np.ascontiguousarray(contexts[:, columns]).astype(np.uint16).reshape(-1)
        self._bits = 16 if book.dtype == layout.DTYPE_FLOAT16 else 8
        self._from_raw = bits_from_keys(np.arange(1 << self._bits, dtype=np.uint32), book.dtype, 0)
        self._levels = np.append(self._from_raw[book.levels], BITS_DTYPE[book.dtype].type(0))
        self._unused = BITS_DTYPE[book.dtype].type(UNUSED[book.dtype])
        self._bounds = book.bounds

    def __call__(self, header: CompactHeader, data: NDArray[np.uint8], start: int, out: NDArray[Any]) -> None:
        """Decode rows from ``start`` on, as many as ``out`` has, to the bits of values."""
        counts, starts = group_table(header, data)
        if not len(out):
            return
        bank = self.bank
        words, limit = words_of_rows(header, data, starts, start, start + len(out), header.slots + 1)
        status = _decode(
            words, limit, starts, counts, header.group_log2, start, bank.slots, bank.packed, bank.bins, self._tables,
            self._bounds, self._levels, self._bits, self._from_raw, self._unused, out,
        )  # fmt: skip
        raise_if_broken(status)
