"""Numbers to symbols, and symbols to the words of a group, in Numba."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from logitstore import layout
from logitstore.codec.intrinsics import load_u32_at, load_u64_at, store_u32_at, store_u64_at
from logitstore.codec.kernels import inlined, kernel

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from logitstore.codec.compact.symbols import SymbolCode

__all__ = ["buffers_for", "direct_symbols", "put_number", "write_group"]

_DIRECT = 1 << 12
"""Numbers below it are looked up; few are above."""
_NONE = layout.SYMBOLS_MAX
_LOW = np.uint64(layout.RANS_LOW)


@inlined
def _symbol(number: Any, code: Any, table: Any, direct: Any, bins: Any, symbols: Any, packed: Any) -> Any:
    """First symbol that stands for a number and that the table can code, or _NONE."""
    if number < _DIRECT:
        symbol = np.int64(load_u32_at(direct, np.uint64(4 * (code * _DIRECT + number))))
        if symbol < symbols and load_u32_at(packed, np.uint64((table << 10) | symbol << 2)) & np.uint64(0xFFFF):
            return symbol
    for symbol in range(symbols):
        entry = load_u64_at(bins, np.uint64(8 * (code * 256 + symbol)))
        base = np.int64(entry & np.uint64(0xFFFFFFFF))
        if base <= number < base + (np.int64(1) << np.int64(entry >> np.uint64(32))) and load_u32_at(
            packed, np.uint64((table << 10) | symbol << 2)
        ) & np.uint64(0xFFFF):
            return symbol
    return np.int64(_NONE)


@kernel
def put_number(number: Any, code: Any, table: Any, symbols: Any, addresses: Any, n_parts: Any, n_raws: Any) -> Any:
    """Note a number's symbol and raw bits; return how many there are then, the first one -1 if it cannot be coded.

    ``addresses`` are those of the tables from `direct_symbols` and `Bank`, and of the buffers of parts and raw bits.
    """
    direct, bins, packed, parts, raws = addresses
    symbol = _symbol(number, code, table, direct, bins, symbols, packed)
    if symbol == _NONE:
        return np.int64(-1), n_raws
    store_u32_at(parts, np.uint64(4 * n_parts), load_u32_at(packed, np.uint64((table << 10) | symbol << 2)))
    entry = load_u64_at(bins, np.uint64(8 * (code * 256 + symbol)))
    width = entry >> np.uint64(32)
    if width:
        rest = np.uint64(number - np.int64(entry & np.uint64(0xFFFFFFFF)))
        store_u64_at(raws, np.uint64(8 * n_raws), rest | width << np.uint64(32))
        n_raws += 1
    return n_parts + 1, n_raws


@inlined
def write_group(parts: Any, n_parts: Any, raws: Any, n_raws: Any, words: Any, at: Any, reverse: Any) -> Any:
    """Write a group's words behind ``words[:at]``; return where they end."""
    state = _LOW
    count = np.int64(0)
    for index in range(n_parts - 1, -1, -1):
        part = np.uint64(parts[index])
        frequency = part & np.uint64(0xFFFF)
        if state >= frequency << np.uint64(20):
            reverse[count] = np.uint16(state & np.uint64(0xFFFF))
            count += 1
            state >>= np.uint64(16)
        whole = np.uint64(np.uint32(state) // np.uint32(frequency))
        state = (whole << np.uint64(12)) + (state - whole * frequency) + (part >> np.uint64(16))
    words[at] = np.uint16(state & np.uint64(0xFFFF))
    words[at + 1] = np.uint16(state >> np.uint64(16))
    at += 2
    for index in range(count - 1, -1, -1):
        words[at] = reverse[index]
        at += 1
    total = np.int64(0)
    for index in range(n_raws):
        total += np.int64(raws[index] >> np.uint64(32))
    end = at + ((total + 15) >> 4)
    buffer, filled, target = np.uint64(0), np.int64(0), end - 1
    for index in range(n_raws):
        width = np.int64(raws[index] >> np.uint64(32))
        number = raws[index] & np.uint64(0xFFFFFFFF)
        buffer = buffer << np.uint64(width) | number
        filled += width
        while filled >= 16:
            words[target] = np.uint16((buffer >> np.uint64(filled - 16)) & np.uint64(0xFFFF))
            target -= 1
            filled -= 16
            buffer &= (np.uint64(1) << np.uint64(filled)) - np.uint64(1)
    if filled:
        words[target] = np.uint16((buffer << np.uint64(16 - filled)) & np.uint64(0xFFFF))
    return end


def direct_symbols(codes: tuple[SymbolCode, ...]) -> NDArray[np.uint32]:
    """First symbol of each small number in each code, 256 where there is none."""
    out = np.full((len(codes), _DIRECT), _NONE, np.uint32)
    for row, code in zip(out, codes, strict=True):
        for symbol in range(len(code.widths) - 1, -1, -1):
            base = int(code.bases[symbol])
            row[base : min(_DIRECT, base + (1 << int(code.raw_bits[symbol])))] = symbol
    return out


def buffers_for(rows: int, group_log2: int, parts_row: int, raws_row: int) -> tuple[NDArray[Any], ...]:
    """Return room for the groups' lengths and words, and for symbols, raw bits and reversed words of one group.

    Rows have so many symbols and raw numbers at most.
    """
    groups = -(-rows >> group_log2)
    size = 1 << group_log2
    words = rows * (parts_row + 2 * raws_row) + 3 * groups
    return (
        np.empty(groups, np.int64), np.empty(words, np.uint16), np.empty(size * parts_row, np.uint32),
        np.empty(size * raws_row, np.uint64), np.empty(size * parts_row, np.uint16),
    )  # fmt: skip
