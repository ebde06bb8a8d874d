"""The codes of a codebook side by side in a few arrays, as the Numba kernels want them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from logitstore import layout
from logitstore.codec.compact.symbols import SymbolCode
from logitstore.codec.intrinsics import highest_set_bit, load_u16_at, load_u32_at, load_u64_at
from logitstore.codec.kernels import inlined

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["Bank", "gap_context_of", "one_table", "take_number", "take_raw", "take_symbol"]

_LOG2 = layout.TABLE_LOG2
_MASK = np.uint64((1 << _LOG2) - 1)
_LOW = np.uint64(layout.RANS_LOW)


@dataclass(frozen=True)
class Bank:
    """Tables of several codes.

    Attributes
    ----------
    entries
        ``(T · 1024,)`` uint32: of every slot of every table its symbol in the low 8 bits, then 12 bits of the symbol's
        frequency less 1, and 12 bits of how far from the symbol's start the slot is.
    packed
        ``(T · 256,)`` uint32: frequency of every symbol in the low, start in the high 16 bits.
    bins
        ``(codes · 256,)`` uint64: a symbol's first number in the low, its raw bits in the high 32 bits.
    contexts
        Of each code, its contexts' tables, numbered across all codes.
    """

    entries: NDArray[np.uint32]
    packed: NDArray[np.uint32]
    bins: NDArray[np.uint64]
    contexts: tuple[NDArray[np.uint32], ...]

    @classmethod
    def of(cls, codes: Sequence[SymbolCode]) -> Bank:
        """Put codes side by side."""
        first = np.cumsum([0] + [len(code.frequencies) for code in codes])
        return cls(
            np.concatenate([code.entries for code in codes]).reshape(-1),
            np.concatenate([code.packed for code in codes]).reshape(-1),
            np.concatenate([code.bins for code in codes]),
            tuple(code.contexts + np.uint32(start) for code, start in zip(codes, first[:-1], strict=True)),
        )


def one_table(code: SymbolCode) -> SymbolCode:
    """Return a code of one context with the table of that context, which it may have beside others, and no other."""
    return SymbolCode(code.widths, np.zeros(1, np.uint32), code.frequencies[code.contexts])


@inlined
def take_symbol(state: Any, position: Any, table: Any) -> Any:
    """Decode one symbol; return it, the new state and the new position.

    ``position`` and ``table``, one of `Bank.entries`, are addresses. The position moves by 0 or 2 bytes.
    """
    entry = load_u32_at(table, (state & _MASK) << np.uint64(2))
    whole = state >> np.uint64(_LOG2)
    state = (entry >> np.uint64(8) & _MASK) * whole + whole + (entry >> np.uint64(20))
    # Loaded in any case: whether it is needed cannot be predicted.
    filled = (state << np.uint64(16)) | load_u16_at(position, np.uint64(0))
    is_low = state < _LOW
    state = filled if is_low else state
    position = position + np.uint64(2) if is_low else position
    return entry & np.uint64(255), state, position


@inlined
def take_raw(source: Any, tail: Any, width: Any) -> Any:
    """Return the number of ``width`` bits that ends at bit ``tail``, and the new tail.

    Whatever the bytes say, no load starts before ``source``.
    """
    tail -= np.int64(width)
    at = np.uint64(max(tail, np.int64(0)))
    mask = (np.uint64(1) << np.uint64(width)) - np.uint64(1)
    return (load_u64_at(source, at >> np.uint64(3)) >> (at & np.uint64(7))) & mask, tail


@inlined
def take_number(source: Any, state: Any, position: Any, tail: Any, table: Any, bins: Any) -> Any:
    """Decode a symbol and its raw bits; return the number, the new state, position and tail.

    ``bins`` is the address of the code's bins.
    """
    symbol, state, position = take_symbol(state, position, table)
    entry = load_u64_at(bins, symbol << np.uint64(3))
    number = entry & np.uint64(0xFFFFFFFF)
    if entry >> np.uint64(32):
        raw, tail = take_raw(source, tail, entry >> np.uint64(32))
        number += raw
    return number, state, position, tail


@inlined
def gap_context_of(left: Any, previous: Any) -> Any:
    """As `codebook.gap_context`."""
    size_left = min(highest_set_bit(np.uint64(left)), np.int64(7))
    # The lowest bit is added, so that 0 has a highest one; it changes no quotient.
    size_previous = min(highest_set_bit(np.uint64(previous) << np.uint64(1) | np.uint64(1)), np.int64(15))
    return size_left * 6 + size_previous // 3
