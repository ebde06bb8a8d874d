"""Symbol codes: numbers as a symbol out of at most 256, coded with static tables, and raw bits behind it.

A symbol of width ``w`` stands for ``2^w`` numbers, and raw bits say which one. The first symbol begins at 0, and each
other one behind those before it; only an *escape*, the last symbol of some codes, begins at 0 again. Which table codes
the symbol depends on a context that coder and decoder both know; several contexts may share a table.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from logitstore import layout
from logitstore.errors import CorruptDataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["SymbolCode", "normalise"]

_ESCAPE = layout.ESCAPE
_TOTAL = 1 << layout.TABLE_LOG2


@dataclass(frozen=True)
class SymbolCode:
    """One code of a codebook.

    Parameters
    ----------
    widths
        ``(S,)`` uint32: raw bits of each symbol, 0 to 31. An escape has 32 more.
    contexts
        ``(X,)`` uint32: the table of each context.
    frequencies
        ``(T, S)`` uint32: out of 1,024, of each symbol in each table. 0 says that the table cannot code the symbol.
    """

    widths: NDArray[np.uint32]
    contexts: NDArray[np.uint32]
    frequencies: NDArray[np.uint32]

    def check(self, name: str, contexts: int) -> None:
        """Raise `CorruptDataError` where this is not a code with so many contexts."""
        tables, symbols = self.frequencies.shape
        if not (1 <= symbols <= layout.SYMBOLS_MAX and 1 <= tables <= layout.TABLES_MAX):
            raise CorruptDataError(f"the code of {name} has {tables} tables of {symbols} symbols; 1 to 256 are allowed")
        if len(self.contexts) != contexts:
            raise CorruptDataError(f"the code of {name} has {len(self.contexts)} contexts, expected {contexts}")
        if contexts and int(self.contexts.max()) >= tables:
            raise CorruptDataError(f"a context of {name} uses table {self.contexts.max()} of {tables}")
        if (self.widths[:-1] > layout.RAW_WIDTH_MAX).any() or self.widths[-1] > _ESCAPE + layout.RAW_WIDTH_MAX:
            raise CorruptDataError(f"symbols of {name} have up to 31 raw bits and an escape is last, {self.widths}")
        if int((self.bases.astype(np.int64) + (1 << self.raw_bits.astype(np.int64))).max()) > 1 << 32:
            raise CorruptDataError(f"a symbol of {name} stands for numbers of more than 32 bits")
        totals = self.frequencies.astype(np.int64).sum(1)
        if (totals != _TOTAL).any():
            raise CorruptDataError(f"the frequencies of a table of {name} sum to {_TOTAL}, found {totals.tolist()}")

    @cached_property
    def raw_bits(self) -> NDArray[np.uint32]:
        """``(S,)`` raw bits of each symbol."""
        return self.widths % np.uint32(_ESCAPE)

    @cached_property
    def bases(self) -> NDArray[np.int64]:
        """``(S,)`` first number that each symbol stands for."""
        ends = np.cumsum(1 << self.raw_bits.astype(np.int64))
        return np.where(self.widths < _ESCAPE, np.concatenate([[0], ends[:-1]]), 0)

    @cached_property
    def starts(self) -> NDArray[np.uint32]:
        """``(T, S)`` sums of the frequencies before each symbol."""
        return (np.cumsum(self.frequencies, axis=1) - self.frequencies).astype(np.uint32)

    @cached_property
    def slot_symbols(self) -> NDArray[np.uint8]:
        """``(T, 1024)`` symbol of each slot."""
        symbols = np.arange(self.frequencies.shape[1], dtype=np.uint8)
        return np.stack([np.repeat(symbols, row) for row in self.frequencies])

    @property
    def entries(self) -> NDArray[np.uint32]:
        """``(T, 1024)`` symbol, frequency less 1 and place within the symbol of each slot; see `Bank`."""
        symbols = self.slot_symbols.astype(np.uint32)
        frequencies = np.take_along_axis(self.frequencies, symbols, 1)
        places = np.arange(_TOTAL, dtype=np.uint32) - np.take_along_axis(self.starts, symbols, 1)
        return np.asarray(symbols | frequencies - np.uint32(1) << np.uint32(8) | places << np.uint32(20))

    @property
    def plain(self) -> int:
        """Symbols at the beginning that have no raw bits, and so stand for themselves."""
        return int(np.argmax(np.append(self.widths, 1) > 0))

    @cached_property
    def packed(self) -> NDArray[np.uint32]:
        """``(T, 256)`` frequency in the low and start in the high 16 bits, for the fast coder."""
        out = np.zeros((len(self.frequencies), layout.SYMBOLS_MAX), np.uint32)
        out[:, : self.frequencies.shape[1]] = self.frequencies | self.starts << np.uint32(16)
        return out

    @cached_property
    def bins(self) -> NDArray[np.uint64]:
        """``(256,)`` base in the low, raw bits in the high 32 bits."""
        out = np.zeros(layout.SYMBOLS_MAX, np.uint64)
        out[: len(self.bases)] = self.bases.astype(np.uint64) | self.raw_bits.astype(np.uint64) << np.uint64(32)
        return out

    @property
    def arrays(self) -> tuple[NDArray[Any], ...]:
        """What a codebook file keeps of it."""
        return self.widths, self.contexts, self.frequencies


def normalise(counts: NDArray[Any], required: NDArray[np.bool_]) -> NDArray[np.uint32]:
    """Turn one table's counts into frequencies that sum to 1,024.

    Parameters
    ----------
    counts
        ``(S,)``, not negative.
    required
        ``(S,)``: symbols that get at least 1. Others get 0 where they are rarer than half a slot.
    """
    counts = np.asarray(counts, np.float64)
    total = counts.sum()
    exact = counts * (_TOTAL / total) if total else np.where(required, _TOTAL / max(1, int(required.sum())), 0)
    frequencies = np.where(
        required, np.maximum(1, np.floor(exact)), np.where(exact < 0.5, 0, np.maximum(1, exact // 1))
    )
    frequencies = frequencies.astype(np.int64)
    if not frequencies.any():
        frequencies[0] = 1
    while (excess := int(frequencies.sum()) - _TOTAL) != 0:
        # One slot goes where it saves most bits, or is taken where it costs least.
        if excess > 0:
            loss = np.where(frequencies > 1, exact * -np.log2(1 - 1 / np.maximum(frequencies, 2)), np.inf)
            take = np.argsort(loss, kind="stable")[: max(1, min(excess, int((frequencies > 1).sum()) // 4))]
            frequencies[take] -= 1
        else:
            gain = np.where(frequencies > 0, exact * np.log2(1 + 1 / np.maximum(frequencies, 1)), -1)
            give = np.argsort(-gain, kind="stable")[: max(1, min(-excess, int((gain > 0).sum()) // 4))]
            frequencies[give] += 1
    return frequencies.astype(np.uint32)
