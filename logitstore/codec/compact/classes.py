"""Which class a row of ids belongs to: the one whose list codes it with the fewest bits, nearly.

A row's score in a class is the sum of small integers, one for each of its ids. Classes that are alike form groups of
16, whose scores are one vector. Each row is scored in all groups first, by what is about the best of their classes, and
then in the classes of the few groups that come out on top: all rows of a chunk in one group before those in the next,
so that the group's weights stay in the cache. The choice is the encoder's: a decoder reads it.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from logitstore import layout
from logitstore.codec.compact import reference
from logitstore.codec.compact.class_kernels import bits_of_lanes, choose, pick, shortlist
from logitstore.codec.compact.row_sums import COLUMNS, LANES, SMALL
from logitstore.codec.kernels import kernel

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from logitstore.codec.compact.codebook import IdBook

__all__ = ["ClassScores", "escape_bits"]

UNITS = 4
"""Scores count quarters of a bit."""
_NEVER = -(1 << 22)
_TRIED = 3
"""Groups of classes whose classes are scored, at most."""
_MARGIN, _MARGIN_OF_AN_ID = 10 * UNITS, 2
"""By how much a group may score less than the best one and still be looked into, for a row and for each id of it."""
_LIKELY = 4096
_SCORED = 48
"""About so many ids of a row are scored, and of long rows a share (`_SHARE`): of 128, that costs 0.6 % of the bytes."""
_SHARE = 1 / 4
_MOST_RANKS = (1 << 16) - 1


def escape_bits(ranks: NDArray[Any]) -> NDArray[np.float64]:
    """Estimate of the bits an id takes that is not in its class's list."""
    return np.log2(np.asarray(ranks, np.float64) + 16) + 1


class ClassScores:
    """Scores of ranks in classes.

    Parameters
    ----------
    weights
        ``(F, C)`` int8, in quarters of a bit: what a rank saves where it is in the class's list. ``F`` is below 2^16.
    constants
        ``(C,)`` int32: less what the list costs all rows.
    ranks
        ``(F,)`` the ranks that are scored, ascending; those from 0 on if not given. No other rank says anything.

    Attributes
    ----------
    numbers
        uint16: the number of each rank among those that are scored, ``F`` if it is not. The last one is that of all
        ranks behind.
    most
        Ids of a row that are scored at most, so that a score and a group's number fit 31 bits.
    """

    def __init__(
        self, weights: NDArray[np.int8], constants: NDArray[np.int32], ranks: NDArray[np.int64] | None = None
    ) -> None:
        scored = np.arange(len(weights)) if ranks is None else ranks
        self.numbers = np.full(int(scored.max(initial=-1)) + 2, len(weights), np.uint16)
        self.numbers[scored] = np.arange(len(weights), dtype=np.uint16)
        groups = _groups(weights)
        self._names = groups.reshape(-1)
        # A group's classes are alike, and few ranks are in any of their lists: all others share a row.
        self._places = np.zeros((len(groups), len(weights) + 1), np.uint16)
        self._firsts = np.zeros(len(groups), np.int64)
        rows: list[NDArray[np.int8]] = []
        for number, group in enumerate(groups):
            table = np.where(group >= 0, weights[:, group], np.int8(0))
            there = np.flatnonzero(table.any(axis=1))
            self._places[number, there] = np.arange(1, len(there) + 1)
            self._firsts[number] = sum(len(part) for part in rows)
            rows.append(np.concatenate([np.zeros((1, LANES), np.int8), table[there]]))
        self._rows = np.concatenate(rows)
        self._constants = np.where(self._names >= 0, constants[self._names], _NEVER).astype(np.int32)
        width = -(-len(groups) // COLUMNS) * COLUMNS
        self.most = 1 << (30 - 7 - int(bits_of_lanes(width)))
        best = np.zeros((len(weights) + 1, width), np.float32)
        self._coarse_constants = np.full(width, -(1 << (30 - int(bits_of_lanes(width)))), np.int32)
        for number, group in enumerate(groups):
            best[:-1, number] = _like_the_best(weights[:, group[group >= 0]])
        # In steps that fit five bits, from the lowest of all: what is added to all columns of a row changes nothing.
        low = best.min(initial=0)
        self._unit = max(1, math.ceil((best.max(initial=0) - low) / SMALL))
        self._coarse = np.rint((best - low) / self._unit).astype(np.uint8)
        for number, group in enumerate(groups):
            self._coarse_constants[number] = np.rint(constants[group[group >= 0]].mean() / self._unit)

    @classmethod
    def of(cls, book: IdBook, slots: int | None = None) -> ClassScores:
        """Take densities from the tables of the nibbles' contexts; score a part of the ids of rows of many slots."""
        ones = np.array([symbol.bit_count() for symbol in range(16)])
        frequencies = book.nibble_code.frequencies[book.nibble_code.contexts].astype(np.float64)
        density = np.clip((frequencies @ ones) / (layout.NIBBLE << layout.TABLE_LOG2), 1e-5, 1 - 1e-3)
        runs = book.nibbles.reshape(-1).astype(np.int64) * layout.NIBBLE
        contexts = np.repeat(np.tile(np.arange(len(density)), book.classes), runs)
        owners = np.repeat(np.repeat(np.arange(book.classes), len(density)), runs)
        scored = _some(np.unique(book.listed).astype(np.int64), slots)
        kept = np.isin(book.listed, scored)
        number, contexts, owners = np.searchsorted(scored, book.listed[kept]), contexts[kept], owners[kept]
        odds = np.log2(density / (1 - density))[contexts] + escape_bits(scored[number])
        weights = np.zeros((len(scored), book.classes), np.int8)
        weights[number, owners] = np.clip(np.rint(odds * UNITS), -127, 127)
        costs = np.bincount(owners, np.log2(1 - density)[contexts], book.classes)
        return cls(weights, np.rint(costs * UNITS).astype(np.int32), scored)

    def choose(
        self, ranks: NDArray[np.uint32], counts: NDArray[np.int64], *, use_reference: bool = False
    ) -> NDArray[np.int64]:
        """Return the class of each row, ``(R,)``, given ``(R, K)`` ranks in any order."""
        picked, starts = pick(ranks, counts, self.numbers, self.most)
        return self.choose_of(picked, starts, use_reference=use_reference)

    def choose_of(
        self, picked: NDArray[np.uint16], starts: NDArray[np.int64], *, use_reference: bool = False
    ) -> NDArray[np.int64]:
        """Return the class of each row given the numbers of its ranks that are scored, as from `pick`."""
        groups = len(self._places)
        if use_reference:
            tables = self._rows[self._firsts[:, None] + self._places]
            found = [
                reference.choose_class(
                    picked[start:end].tolist(), tables, self._constants.reshape(groups, LANES),
                    self._names.reshape(groups, LANES), self._coarse, self._coarse_constants, tried=_TRIED,
                    margin=(_MARGIN + _MARGIN_OF_AN_ID * int(end - start)) // self._unit,
                )
                for start, end in itertools.pairwise(starts)
            ]  # fmt: skip
            return np.array(found, np.int64)
        listed = np.empty((len(starts) - 1, min(_TRIED, groups)), np.int64)
        if groups > _TRIED:
            margins = (_MARGIN, _MARGIN_OF_AN_ID, self._unit)
            shortlist(picked, starts, self._coarse, self._coarse_constants, margins, listed)
        else:
            listed[:] = np.arange(groups)
        classes = np.empty(len(listed), np.int64)
        choose(picked, starts, listed, self._rows, self._firsts, self._places, self._constants, self._names, classes)
        return classes


def _some(ranks: NDArray[np.int64], slots: int | None) -> NDArray[np.int64]:
    """Return a part of the ranks, spread evenly, if rows are long."""
    share = 1.0 if slots is None else max(_SCORED / slots, _SHARE)
    # Multiples of the golden ratio, modulo 1.
    some = ranks[(ranks * 0x9E3779B1 & 0xFFFFFFFF) < share * (1 << 32)] if share < 1 else ranks
    return some[:_MOST_RANKS]


def _like_the_best(weights: NDArray[np.int8]) -> NDArray[np.float32]:
    """Weights whose sums are about as large as those of the best class of a group: near its maximum."""
    most = weights.max(axis=1).astype(np.float32)
    powers = np.maximum(weights, 0).astype(np.float32) ** 6
    return np.asarray(np.where(most > 0, powers.mean(axis=1) ** np.float32(1 / 6), most))


def _groups(weights: NDArray[np.int8]) -> NDArray[np.int64]:
    """Sort classes into groups of LANES, by the angle between their weights, -1 where there are too few."""
    classes = weights.shape[1]
    groups = np.full((-(-classes // LANES), LANES), -1, np.int64)
    if len(groups) == 1:
        groups[0, :classes] = np.arange(classes)
        return groups
    # The likeliest ranks say enough, and keep this quick.
    vectors = weights[:_LIKELY].T.astype(np.float32)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    centres = vectors[np.arange(len(groups)) * classes // len(groups)]
    for _ in range(6):
        nearest = _balanced(vectors @ centres.T)
        centres = np.stack([vectors[nearest == group].sum(axis=0) for group in range(len(groups))])
        centres /= np.maximum(np.linalg.norm(centres, axis=1, keepdims=True), 1e-9)
    for number, group in enumerate(groups):
        there = np.flatnonzero(nearest == number)
        group[: len(there)] = there
    return groups


def _balanced(likeness: NDArray[np.float32]) -> NDArray[np.int64]:
    """Give each class the group it is most like, the likest pairs first, no more than LANES to a group."""
    found = np.full(len(likeness), -1, np.int64)
    _fill(np.argsort(-likeness, axis=None, kind="stable"), likeness.shape[1], found)
    return found


@kernel
def _fill(pairs: Any, groups: Any, found: Any) -> None:
    sizes = np.zeros(groups, np.int64)
    for pair in pairs:
        of, group = pair // groups, pair % groups
        if found[of] < 0 and sizes[group] < LANES:
            found[of] = group
            sizes[group] += 1
