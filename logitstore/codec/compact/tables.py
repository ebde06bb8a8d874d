"""Choosing the symbols and tables of a code from counts, with their own cost in mind."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from logitstore import layout
from logitstore.codec.compact.symbols import SymbolCode, normalise

__all__ = ["adaptive_widths", "code_of", "doubling_widths", "symbols_of"]

Widths = NDArray[np.uint32]

_BITS_OF_FREQUENCY = 5.0
"""What a table's entry takes in the file, about."""


def doubling_widths(limit: int) -> Widths:
    """Widths for 0 … ``limit``: 0 to 3 by themselves, then two for each doubling."""
    symbols = np.arange(4 + 2 * max(0, int(limit).bit_length() - 2))
    return np.where(symbols < 4, 0, symbols // 2 - 1).astype(np.uint32)


def adaptive_widths(histogram: NDArray[np.int64], share: float = 1 / 80) -> Widths:
    """Widths for 0 … ``len(histogram) - 1``, wide where numbers are rare, and an escape for every number.

    Parameters
    ----------
    histogram
        How often each number comes.
    share
        Of all numbers, that a symbol for more than one may have.
    """
    sums = np.concatenate([[0], np.cumsum(histogram)])
    size = len(histogram)
    escape = layout.ESCAPE + max(1, size - 1).bit_length()
    while True:
        most = sums[-1] * share
        widths: list[int] = []
        number = 0
        while number < size:
            width = 0
            while number + (2 << width) <= size and sums[number + (2 << width)] - sums[number] <= most:
                width += 1
            widths.append(width)
            number += 1 << width
        if len(widths) < layout.SYMBOLS_MAX:
            return np.array([*widths, escape], np.uint32)
        share *= 1.5


def symbols_of(widths: Widths, limit: int) -> NDArray[np.int64]:
    """Return the first symbol of each number up to ``limit``."""
    plain = widths[widths < layout.ESCAPE].astype(np.int64)
    return np.searchsorted(np.cumsum(1 << plain), np.arange(limit + 1), side="right")


def code_of(widths: Widths, counts: NDArray[Any], *, scale: float, most: int, required: bool) -> SymbolCode:
    """Return a code with tables for counted symbols, contexts that are alike sharing one.

    Parameters
    ----------
    widths
        Of the symbols, as in `SymbolCode`.
    counts
        ``(X, S)``: how often each symbol came in each context.
    scale
        How many times as much data will be coded as was counted.
    most
        Tables at most.
    required
        Whether every table has to code every symbol; otherwise only the last one, which stands for every number.
    """
    counts = np.asarray(counts, np.float64)
    must = np.full(counts.shape[1], required)
    must[-1] = True
    members = _merged(counts, scale, most)
    contexts = np.zeros(len(counts), np.uint32)
    tables = []
    average = counts.sum(axis=0) + 0.01
    for table, group in enumerate(members):
        contexts[group] = table
        total = counts[group].sum(axis=0)
        tables.append(normalise(total + 2 * average / average.sum(), must))
    return SymbolCode(widths, contexts, np.stack(tables))


def _merged(counts: NDArray[np.float64], scale: float, most: int) -> list[list[int]]:
    """Group contexts whose merging costs less than the table that it saves, and more of them if there are too many.

    Contexts that never came join the first group.
    """
    seen = np.flatnonzero(counts.sum(axis=1))
    if not len(seen):
        return [list(range(len(counts)))]
    groups = [[int(context)] for context in seen]
    sums = counts[seen]
    own = _bits(sums)
    rises = np.full((len(groups), len(groups)), np.inf)
    for index in range(len(groups)):
        rises[index, index + 1 :] = _rise(sums, own, index)[index + 1 :]
    alive = np.ones(len(groups), np.bool_)
    while alive.sum() > 1:
        first, second = (int(i) for i in np.unravel_index(int(rises.argmin()), rises.shape))
        table = _BITS_OF_FREQUENCY * min(np.count_nonzero(sums[first]), np.count_nonzero(sums[second])) + 16
        if rises[first, second] * scale > table and alive.sum() <= most:
            break
        groups[first] += groups[second]
        sums[first] += sums[second]
        own[first] = _bits(sums[first : first + 1])[0]
        alive[second] = False
        rises[second, :] = rises[:, second] = np.inf
        rise = np.where(alive, _rise(sums, own, first), np.inf)
        rises[first, first + 1 :] = rise[first + 1 :]
        rises[:first, first] = rise[:first]
    merged = [sorted(group) for group, here in zip(groups, alive, strict=True) if here]
    merged[0] += sorted(set(range(len(counts))) - set(seen.tolist()))
    return merged


def _bits(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Bits of an ideal code of each row's symbols."""
    totals = counts.sum(axis=1)
    each = counts * np.log2(np.maximum(counts, 1))
    return np.asarray(totals * np.log2(np.maximum(totals, 1)) - each.sum(axis=1))


def _rise(sums: NDArray[np.float64], own: NDArray[np.float64], index: int) -> NDArray[np.float64]:
    """Bits that joining group ``index`` with each other one costs."""
    return np.asarray(_bits(sums + sums[index]) - own - own[index])
