"""Numbers to symbols, and symbols to the words of a group, in Numba.

Several groups are coded at a time, see `vector_coder`. `put_number` and `put_raw` note what a group consists of,
`write_groups` writes the words.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from logitstore import layout
from logitstore.codec.compact.vector_coder import IDLE, LANES, STEPS, code_blocks
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
    "DIRECT",
    "Room",
    "Tables",
    "addresses_of_rows",
    "present_parts",
    "put_looked_up",
    "put_number",
    "put_raw",
    "symbols_and_raw_bits",
    "write_groups",
]

DIRECT = 1 << 12
"""Numbers below it are looked up; few are above."""
_NONE = layout.SYMBOLS_MAX
_LOW = np.uint64(layout.RANS_LOW)
_BINS = np.uint64(256 * 8)


def symbols_and_raw_bits(code: SymbolCode) -> NDArray[np.uint32]:
    """For `put_looked_up`: the first symbol of each number below DIRECT that has one, its raw bits and their width.

    The symbol lies in the low 8 bits, the width in the next 5, the raw bits begin with bit 16, and the highest bit is
    set where there are any. Numbers without a symbol come behind those with one, and are left out.
    """
    symbols = direct_symbols((code,))[0].astype(np.int64)
    symbols = symbols[symbols < _NONE]
    widths = code.raw_bits[symbols].astype(np.int64)
    raws = np.arange(len(symbols)) - code.bases[symbols]
    found = symbols | widths << 8 | raws << 16 | (widths > 0).astype(np.int64) << 31
    return np.asarray(found, np.uint32)


def present_parts(bank: Bank) -> NDArray[np.uint32]:
    """Return `Bank.packed` with 0 for symbols that have no frequency."""
    return np.asarray(np.where(bank.packed & np.uint32(0xFFFF), bank.packed, np.uint32(0)))


@kernel
def _look_up(numbers: Any, tables: Any, count: Any, found_at: Any, present_at: Any, noted: Any, parts: Any) -> Any:
    """Store the parts of ``count`` numbers, and what has raw bits to ``noted``; return its end, 0 if a part is none.

    No branch depends on a number. A function of its own, since it needs nearly all registers.
    """
    least = np.uint64(1)
    for index in range(count):
        offset = np.uint64(4 * index)
        found = load_u32_at(found_at, load_u16_at(numbers, offset >> np.uint64(1)) << np.uint64(2))
        part = load_u32_at(present_at, load_u32_at(tables, offset) + ((found & np.uint64(255)) << np.uint64(2)))
        store_u32_at(parts, offset, part)
        least = min(least, part)
        # Kept where there are raw bits, and overwritten if not.
        store_u32_at(noted, np.uint64(0), found)
        noted += found >> np.uint64(31) << np.uint64(2)
    return noted if least else np.uint64(0)


@inlined
def put_looked_up(numbers: Any, base: Any, tables_at: Any, count: Any, looked_up: Any, parts: Any, tail: Any) -> Any:
    """Note numbers, all less than those looked up; return how many, and what `put_number` does.

    All ``count`` or none: none where a table cannot code a number's first symbol. The numbers are those at an address
    of uint16, less ``base``; ``tables_at`` is the address of where their tables begin (uint32, in bytes).
    ``looked_up`` are the addresses of `symbols_and_raw_bits`, `present_parts` and of room for ``count`` numbers of 32
    bits.
    """
    found_at, present_at, noted_at = looked_up
    found_at -= base << np.uint64(2)
    noted = _look_up(numbers, tables_at, count, found_at, present_at, noted_at, parts)
    if noted == np.uint64(0):
        return np.int64(0), parts, tail
    at = noted_at
    while at < noted:
        found = load_u32_at(at, np.uint64(0))
        tail = put_raw(found >> np.uint64(16) & np.uint64(DIRECT - 1), found >> np.uint64(8) & np.uint64(31), tail)
        at += np.uint64(4)
    return np.int64(count), parts + np.uint64(4 * count), tail


def direct_symbols(codes: tuple[SymbolCode, ...]) -> NDArray[np.uint16]:
    """First symbol of each small number in each code, 256 where there is none."""
    out = np.full((len(codes), DIRECT), _NONE, np.uint16)
    for row, code in zip(out, codes, strict=True):
        for symbol in range(len(code.widths) - 1, -1, -1):
            base = int(code.bases[symbol])
            row[base : min(DIRECT, base + (1 << int(code.raw_bits[symbol])))] = symbol
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
    if number < np.uint64(DIRECT):
        symbol = load_u16_at(direct, (code * np.uint64(DIRECT) + number) << np.uint64(1))
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
def write_groups(
    lanes: Any, starts: Any, ends: Any, tails: Any, words: Any, scratch: Any, packed_words: Any, lengths: Any
) -> Any:
    """Write the words of ``lanes`` groups from address ``words`` on; return where they end.

    Their symbols lie between addresses ``starts`` and ``ends``, with as much room before them, their raw bits as
    ``tails`` (end, number of bits) say. ``scratch`` has the addresses behind room for each group's words,
    ``packed_words`` is the address of PACKED_WORDS.
    """
    states, targets = np.full(LANES, _LOW, np.uint32), scratch.copy()
    most = np.uint64(0)
    for lane in range(lanes):
        most = max(most, ends[lane] - starts[lane])
    blocks = (most + np.uint64(4 * STEPS - 1)) // np.uint64(4 * STEPS)
    for lane in range(LANES):
        if lane >= lanes:
            ends[lane] = starts[lane]
        # Shorter groups wait for the longest.
        at, first = ends[lane] - np.uint64(4 * STEPS) * blocks, starts[lane]
        while at < first:
            store_u32_at(at, np.uint64(0), np.uint64(IDLE))
            at += np.uint64(4)
    code_blocks(address_of(ends), address_of(states), address_of(targets), packed_words, blocks)
    at = words
    for lane in range(lanes):
        begin = at
        store_u32_at(at, np.uint64(0), np.uint64(states[lane]))
        at = _copy(targets[lane], scratch[lane], at + np.uint64(4))
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
    """Room for the words of a chunk, and for what groups that are coded together consist of.

    Rows have so many symbols and raw numbers at most.
    """

    def __init__(self, rows: int, group_log2: int, parts_row: int, raws_row: int) -> None:
        groups, size = -(-rows >> group_log2), 1 << group_log2
        self.lengths = np.empty(groups, np.int64)
        self.words = np.empty(rows * (parts_row + 2 * raws_row) + 3 * groups + 8, np.uint16)
        # As much again before each group's, see `write_groups`.
        self.parts = np.empty((LANES, 2 * (size * parts_row + STEPS + 1)), np.uint32)
        # Stores are of eight or sixteen bytes, below the end, and loads may go eight beyond it.
        self.raws = np.empty((LANES, 4 * size * raws_row + 24), np.uint8)
        self.reverse = np.empty((LANES, 2 * size * parts_row + 2 * STEPS + 24), np.uint8)
        self.arrays = self.lengths, self.words, self.parts, self.raws, self.reverse


@kernel
def addresses_of_rows(array: Any, offset: Any) -> Any:
    """Address of byte ``offset`` of each row of a contiguous array, ``(rows,)`` uint64."""
    step = np.uint64(array.shape[1] * array.itemsize)
    return np.array(
        [address_of(array) + np.uint64(row) * step + np.uint64(offset) for row in range(array.shape[0])], np.uint64
    )
