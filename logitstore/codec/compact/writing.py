"""Numbers to symbols, and symbols to the words of a group, in Numba.

Four groups are coded at a time, since each symbol has to wait for the one before it in its group. `put_number` and
`put_raw` note what a group consists of, `write_groups` writes the words.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from logitstore import layout
from logitstore.codec.intrinsics import (
    address_of,
    load_u16_at,
    load_u32_at,
    load_u64_at,
    store_u32_at,
    store_u64_at,
)
from logitstore.codec.kernels import inlined, kernel

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from logitstore.codec.compact.bank import Bank
    from logitstore.codec.compact.symbols import SymbolCode

__all__ = [
    "LANES",
    "RECIPROCALS",
    "Room",
    "Tables",
    "addresses_of_rows",
    "put_number",
    "put_number_apart",
    "put_raw",
    "small_part",
    "small_parts",
    "write_groups",
]

LANES = 4
"""Groups that are coded together."""
_SHIFT = 32 + layout.TABLE_LOG2
RECIPROCALS = np.array([0, *(-(-(1 << _SHIFT) // f) for f in range(1, (1 << layout.TABLE_LOG2) + 1))], np.uint64)
"""``ceil(2^42 / f)``: ``x // f`` is ``x * RECIPROCALS[f] >> 42`` for any ``x`` below ``f * 2^22``, in 64 bits.

With ``e = f * RECIPROCALS[f] - 2^42 < f`` the error is ``x * e / (f * 2^42) < f * 2^-20``, which is at most ``1 / f``.
"""
_DIRECT = 1 << 12
"""Numbers below it are looked up; few are above."""
_NONE = layout.SYMBOLS_MAX
_LOW = np.uint64(layout.RANS_LOW)
_BINS = np.uint64(256 * 8)
_TOTAL, _LIMIT = np.uint64(1 << layout.TABLE_LOG2), np.uint64(32 - layout.TABLE_LOG2)


_SMALL_LOG2 = 8
SMALL = 1 << _SMALL_LOG2
"""Numbers below it, less one, that are a symbol without raw bits have their part looked up, see `small_parts`."""


def small_parts(code: SymbolCode) -> NDArray[np.uint32]:
    """Frequency and start of the symbol of each small number in each table, ``(T, SMALL)``; 0 where it takes more."""
    out = np.zeros((len(code.frequencies), SMALL), np.uint32)
    symbols = direct_symbols((code,))[0, : SMALL - 1]
    plain = np.flatnonzero(symbols < _NONE)
    plain = plain[code.raw_bits[symbols[plain]] == 0]
    parts = code.packed[:, symbols[plain]]
    out[:, plain] = np.where(parts & np.uint32(0xFFFF), parts, np.uint32(0))
    return out


@inlined
def small_part(number: Any, table: Any, small: Any) -> Any:
    """Look up a number's part at the address of `small_parts`; 0 if it is not there."""
    number = min(number, np.uint64(SMALL - 1))
    return load_u32_at(small, (table << np.uint64(_SMALL_LOG2) | number) << np.uint64(2))


def direct_symbols(codes: tuple[SymbolCode, ...]) -> NDArray[np.uint16]:
    """First symbol of each small number in each code, 256 where there is none."""
    out = np.full((len(codes), _DIRECT), _NONE, np.uint16)
    for row, code in zip(out, codes, strict=True):
        for symbol in range(len(code.widths) - 1, -1, -1):
            base = int(code.bases[symbol])
            row[base : min(_DIRECT, base + (1 << int(code.raw_bits[symbol])))] = symbol
    return out


class Tables:
    """What `put_number` looks up, for codes side by side in a bank. Kernels get its addresses from `arrays`."""

    def __init__(self, codes: tuple[SymbolCode, ...], bank: Bank) -> None:
        # A symbol that is not there has no frequency.
        packed = np.append(bank.packed, np.zeros(1, np.uint32))
        symbols = np.array([len(code.widths) for code in codes], np.uint64)
        self.arrays = direct_symbols(codes), bank.bins, packed, symbols


@kernel
def _search(number: Any, code: Any, table: Any, bins: Any, packed: Any, symbols: Any) -> Any:
    """First symbol that stands for a number and that the table can code, or _NONE."""
    for symbol in range(load_u64_at(symbols, code << np.uint64(3))):
        entry = load_u64_at(bins, _BINS * code + (np.uint64(symbol) << np.uint64(3)))
        base = entry & np.uint64(0xFFFFFFFF)
        if base <= number < base + (np.uint64(1) << (entry >> np.uint64(32))) and load_u32_at(
            packed, (table << np.uint64(10)) | np.uint64(symbol) << np.uint64(2)
        ) & np.uint64(0xFFFF):
            return np.uint64(symbol)
    return np.uint64(_NONE)


@inlined
def put_raw(number: Any, width: Any, tail: Any) -> Any:
    """Note raw bits; return the new tail.

    A tail is an address below which the next bytes go, bits that are not whole bytes yet at the top of 64, and how many
    these are.
    """
    at, bits, used = tail
    # Not one shift: it could be by 64.
    bits |= (number << np.uint64(1)) << (np.uint64(63) - used - width)
    used += width
    store_u64_at(at, np.uint64(0) - np.uint64(8), bits)
    whole = used >> np.uint64(3)
    return at - whole, bits << (whole << np.uint64(3)), used & np.uint64(7)


@inlined
def put_number(number: Any, code: Any, table: Any, tables: Any, parts: Any, tail: Any) -> Any:
    """Note a number's symbol and raw bits; return where the next symbol goes, 0 if it cannot be coded, and the tail.

    ``tables`` are the addresses of `Tables.arrays`, ``parts`` is an address; everything is uint64.
    """
    direct, bins, packed, symbols = tables
    symbol = np.uint64(_NONE)
    if number < np.uint64(_DIRECT):
        symbol = load_u16_at(direct, (code * np.uint64(_DIRECT) + number) << np.uint64(1))
    part = load_u32_at(packed, (table << np.uint64(10)) | symbol << np.uint64(2))
    if symbol == np.uint64(_NONE) or part & np.uint64(0xFFFF) == np.uint64(0):
        symbol = _search(number, code, table, bins, packed, symbols)
        part = load_u32_at(packed, (table << np.uint64(10)) + (symbol << np.uint64(2)))
    store_u32_at(parts, np.uint64(0), part)
    entry = load_u64_at(bins, _BINS * code + ((symbol & np.uint64(255)) << np.uint64(3)))
    if entry >> np.uint64(32):
        tail = put_raw(number - (entry & np.uint64(0xFFFFFFFF)), entry >> np.uint64(32), tail)
    return np.uint64(0) if symbol == np.uint64(_NONE) else parts + np.uint64(4), tail


@kernel
def put_number_apart(number: Any, code: Any, table: Any, tables: Any, parts: Any, tail: Any) -> Any:
    """`put_number` for a loop that seldom needs it."""
    return put_number(number, code, table, tables, parts, tail)


@inlined
def _step(state: Any, part: Any, target: Any, reciprocals: Any) -> Any:
    """Code one symbol; words go below ``target``."""
    frequency = part & np.uint64(0xFFFF)
    is_high = np.uint64(state >= frequency << _LIMIT)
    # Stored in any case, and overwritten by the next word if it is not needed.
    store_u32_at(target, np.uint64(0) - np.uint64(4), state << np.uint64(16))
    target -= is_high << np.uint64(1)
    state >>= is_high << np.uint64(4)
    whole = (state * load_u64_at(reciprocals, frequency << np.uint64(3))) >> np.uint64(_SHIFT)
    return state + (part >> np.uint64(16)) + whole * (_TOTAL - frequency), target


@kernel
def _write_one(state: Any, target: Any, parts: Any, index: Any, reciprocals: Any) -> Any:
    """Code the symbols before ``index``, last one first."""
    while index > 0:
        index -= 1
        state, target = _step(state, load_u32_at(parts, np.uint64(4 * index)), target, reciprocals)
    return state, target


@kernel
def write_groups(
    lanes: Any, starts: Any, ends: Any, tails: Any, words: Any, scratch: Any, reciprocals: Any, lengths: Any
) -> Any:
    """Write the words of ``lanes`` groups from address ``words`` on; return where they end.

    Their symbols lie between addresses ``starts`` and ``ends``, their raw bits as ``tails`` (end, number of bits)
    say. ``scratch`` has the addresses behind room for each group's words.
    """
    common = np.int64(0)
    s0, s1, s2, s3 = _LOW, _LOW, _LOW, _LOW
    t0, t1, t2, t3 = scratch[0], scratch[1], scratch[2], scratch[3]
    if lanes == LANES:
        e0, e1, e2, e3 = ends[0], ends[1], ends[2], ends[3]
        common = np.int64(min(e0 - starts[0], e1 - starts[1], e2 - starts[2], e3 - starts[3])) >> 2
        for _ in range(common):
            e0, e1, e2, e3 = e0 - np.uint64(4), e1 - np.uint64(4), e2 - np.uint64(4), e3 - np.uint64(4)
            s0, t0 = _step(s0, load_u32_at(e0, np.uint64(0)), t0, reciprocals)
            s1, t1 = _step(s1, load_u32_at(e1, np.uint64(0)), t1, reciprocals)
            s2, t2 = _step(s2, load_u32_at(e2, np.uint64(0)), t2, reciprocals)
            s3, t3 = _step(s3, load_u32_at(e3, np.uint64(0)), t3, reciprocals)
    states, targets = (s0, s1, s2, s3), (t0, t1, t2, t3)
    at = words
    for lane in range(lanes):
        left = (np.int64(ends[lane] - starts[lane]) >> 2) - common
        state, target = _write_one(states[lane], targets[lane], starts[lane], left, reciprocals)
        begin = at
        store_u32_at(at, np.uint64(0), state)
        at = _copy(target, scratch[lane], at + np.uint64(4))
        end = tails[lane, 0]
        at = _copy(end - (((tails[lane, 1] + np.uint64(15)) >> np.uint64(4)) << np.uint64(1)), end, at)
        lengths[lane] = np.int64(at - begin) >> 1
    return at


@inlined
def _copy(first: Any, end: Any, at: Any) -> Any:
    """Copy bytes to an address, eight at a time, up to seven too many; return where they end."""
    offset = np.uint64(0)
    while first + offset < end:
        store_u64_at(at, offset, load_u64_at(first, offset))
        offset += np.uint64(8)
    return at + (end - first)


class Room:
    """Room for the words of a chunk, and for what four groups consist of.

    Rows have so many symbols and raw numbers at most.
    """

    def __init__(self, rows: int, group_log2: int, parts_row: int, raws_row: int) -> None:
        groups, size = -(-rows >> group_log2), 1 << group_log2
        self.lengths = np.empty(groups, np.int64)
        self.words = np.empty(rows * (parts_row + 2 * raws_row) + 3 * groups + 8, np.uint16)
        self.parts = np.empty((LANES, size * parts_row + 2), np.uint32)
        # Stores are of eight bytes, and below the end.
        self.raws = np.empty((LANES, 4 * size * raws_row + 16), np.uint8)
        self.reverse = np.empty((LANES, 2 * size * parts_row + 16), np.uint8)
        self.arrays = self.lengths, self.words, self.parts, self.raws, self.reverse


@kernel
def addresses_of_rows(array: Any, offset: Any) -> Any:
    """Address of byte ``offset`` of each row of a contiguous array, ``(rows,)`` uint64."""
    step = np.uint64(array.shape[1] * array.itemsize)
    return np.array(
        [address_of(array) + np.uint64(row) * step + np.uint64(offset) for row in range(array.shape[0])], np.uint64
    )
