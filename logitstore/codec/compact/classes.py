"""Which class a row of ids belongs to: the one whose list codes it with the fewest bits, nearly.

A row's score in a class is the sum of small integers, one for each of its ids. Classes that are alike form groups of
16, whose scores are one vector. Each row is scored in all groups first, by what is about the best of their classes, and
then in the classes of the few groups that come out on top: all rows of a chunk in one group before those in the next,
so that the group's weights stay in the cache. The choice is the encoder's: a decoder reads it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from logitstore import layout
from logitstore.codec.compact import reference
from logitstore.codec.compact.instructions import (
    LANES,
    MOST_ROWS,
    best_lane,
    lanes_from,
    lowest_set_bit,
    prefetch,
    sum_rows_of_16,
    sum_rows_of_64,
)
from logitstore.codec.intrinsics import address_of
from logitstore.codec.kernels import inlined, kernel

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from logitstore.codec.compact.codebook import IdBook

__all__ = ["ClassScores", "escape_bits"]

UNITS = 4
"""Scores count quarters of a bit."""
_NEVER = -(1 << 26)
_TRIED = 3
"""Groups of classes whose classes are scored, at most."""
_MARGIN, _MARGIN_OF_AN_ID = 40 * UNITS, 3
"""By how much a group may score less than the best one and still be looked into, for a row and for each id of it."""
_LIKELY = 4096
_MOST_SCORED = 1 << 19
"""Ids of a row that are scored, so that scores stay below 2^26."""
_HOT = 1024


def escape_bits(ranks: NDArray[Any]) -> NDArray[np.float64]:
    """Estimate of the bits an id takes that is not in its class's list."""
    return np.log2(np.asarray(ranks, np.float64) + 16) + 1


@inlined
def _add(table: Any, width: Any, row: Any, count: Any, last: Any, totals: Any) -> None:
    """Add a row's scores in all columns of a table, whole vectors, to totals. ``row`` is the address of its ranks."""
    first = np.int64(0)
    while first < count:
        number = np.uint64(min(np.int64(MOST_ROWS), count - first))
        at, lane = row + np.uint64(4 * first), np.int64(0)
        while lane + 4 * LANES <= width:
            sum_rows_of_64(
                table + np.uint64(lane), at, totals + np.uint64(4 * lane), np.uint64(width), number, np.uint64(last)
            )
            lane += 4 * LANES
        while lane < width:
            sum_rows_of_16(
                table + np.uint64(lane), at, totals + np.uint64(4 * lane), np.uint64(width), number, np.uint64(last)
            )
            lane += LANES
        first += MOST_ROWS


@kernel
def _shortlist(ranks: Any, counts: Any, table: Any, constants: Any, last: Any, listed: Any) -> None:
    """Fill the groups that each row is to be scored in, -1 behind them."""
    width, tried = np.int64(len(constants)), np.int64(listed.shape[1])
    totals = np.empty(width, np.int32)
    totals_at, table_at, ranks_at = address_of(totals), address_of(table), address_of(ranks)
    for row in range(len(counts)):
        for lane in range(width):
            totals[np.uint64(lane)] = constants[np.uint64(lane)]
        _add(table_at, width, ranks_at + np.uint64(4 * row * ranks.shape[1]), counts[row], last, totals_at)
        high = np.int32(_NEVER)
        for lane in range(width):
            high = max(high, totals[np.uint64(lane)])
        least = np.int32(high - _MARGIN - _MARGIN_OF_AN_ID * counts[row])
        filled = np.int64(0)
        for first in range(0, width, LANES):
            mask = lanes_from(totals_at + np.uint64(4 * first), least)
            while mask:
                group = np.uint64(first) + lowest_set_bit(mask)
                mask &= mask - np.uint64(1)
                at = filled
                while at > 0 and totals[np.uint64(listed[row, at - 1])] < totals[group]:
                    if at < tried:
                        listed[row, at] = listed[row, at - 1]
                    at -= 1
                if at < tried:
                    listed[row, at] = group
                filled = min(filled + 1, tried)
        for at in range(filled, tried):
            listed[row, at] = -1


@kernel
def _choose(
    ranks: Any, counts: Any, listed: Any, tables: Any, constants: Any, names: Any, last: Any, classes: Any, best: Any
) -> None:
    """Fill each row's best class among its groups and its score; the first of several that are equal."""
    groups = np.int64(len(tables))
    starts, rows = np.zeros(groups + 2, np.int64), np.empty(listed.size, np.int64)
    for row in range(len(counts)):
        best[row], classes[row] = 2 * _NEVER, 0
        for at in range(listed.shape[1]):
            starts[listed[row, at] + 2] += 1
    starts[1] = 0
    for group in range(groups):
        starts[group + 2] += starts[group + 1]
    for row in range(len(counts)):
        for at in range(listed.shape[1]):
            group = listed[row, at]
            if group >= 0:
                rows[starts[group + 1]] = row
                starts[group + 1] += 1
    totals = np.empty(LANES, np.int32)
    totals_at, ranks_at, tables_at = address_of(totals), address_of(ranks), address_of(tables)
    for group in range(groups):
        if starts[group + 1] - starts[group] >= 8:
            for line in range(0, min(np.int64(_HOT), last), 4):
                prefetch(tables_at + np.uint64((group * (last + 1) + line) * LANES))
        for entry in range(starts[group], starts[group + 1]):
            row = rows[entry]
            for lane in range(LANES):
                totals[np.uint64(lane)] = constants[np.uint64(group * LANES + lane)]
            _add(
                tables_at + np.uint64(group * (last + 1) * LANES), np.int64(LANES),
                ranks_at + np.uint64(4 * row * ranks.shape[1]), counts[row], last, totals_at,
            )  # fmt: skip
            found = np.int64(best_lane(totals_at))
            score, name = found >> 4, names[np.uint64(group * LANES + LANES - 1 - (found & 15))]
            if score > best[row] or (score == best[row] and name < classes[row]):
                best[row], classes[row] = score, name


class ClassScores:
    """Scores of ranks in classes.

    Parameters
    ----------
    weights
        ``(F, C)`` int8, in quarters of a bit: what a rank saves where it is in the class's list. Ranks from ``F`` on
        are in no list.
    constants
        ``(C,)`` int32: less what the list costs all rows.
    """

    def __init__(self, weights: NDArray[np.int8], constants: NDArray[np.int32]) -> None:
        groups = _groups(weights)
        self._names = groups.reshape(-1)
        # Ranks that are in no list share the last row, which is zero.
        padded = np.concatenate([weights, np.zeros((1, weights.shape[1]), np.int8)])
        self._tables = np.empty((len(groups), len(padded), LANES), np.int8)
        for table, group in zip(self._tables, groups, strict=True):
            table[:] = np.where(group >= 0, padded[:, group], np.int8(0))
        self._constants = np.where(self._names >= 0, constants[self._names], _NEVER).astype(np.int32)
        width = -(-len(groups) // LANES) * LANES
        self._coarse = np.zeros((len(padded), width), np.int8)
        self._coarse_constants = np.full(width, _NEVER, np.int32)
        for number, group in enumerate(groups):
            there = group[group >= 0]
            self._coarse[:, number] = np.rint(_like_the_best(padded[:, there]))
            self._coarse_constants[number] = np.rint(constants[there].mean())

    @classmethod
    def of(cls, book: IdBook) -> ClassScores:
        """Take densities from the tables of the nibbles' contexts."""
        ones = np.array([symbol.bit_count() for symbol in range(16)])
        frequencies = book.nibble_code.frequencies[book.nibble_code.contexts].astype(np.float64)
        density = np.clip((frequencies @ ones) / (layout.NIBBLE << layout.TABLE_LOG2), 1e-5, 1 - 1e-3)
        runs = book.nibbles.reshape(-1).astype(np.int64) * layout.NIBBLE
        contexts = np.repeat(np.tile(np.arange(len(density)), book.classes), runs)
        owners = np.repeat(np.repeat(np.arange(book.classes), len(density)), runs)
        odds = np.log2(density / (1 - density))[contexts] + escape_bits(book.listed)
        ranks = int(book.listed.max()) + 1 if len(book.listed) else 1
        weights = np.zeros((ranks, book.classes), np.int8)
        weights[book.listed, owners] = np.clip(np.rint(odds * UNITS), -127, 127)
        costs = np.bincount(owners, np.log2(1 - density)[contexts], book.classes)
        return cls(weights, np.rint(costs * UNITS).astype(np.int32))

    def choose(
        self, ranks: NDArray[np.uint32], counts: NDArray[np.int64], *, use_reference: bool = False
    ) -> NDArray[np.int64]:
        """Return the class of each row, ``(R,)``, given ``(R, K)`` ranks in any order."""
        groups, last = len(self._tables), self._tables.shape[1] - 1
        ranks, counts = np.ascontiguousarray(ranks), np.minimum(counts, _MOST_SCORED)
        if use_reference:
            found = [
                reference.choose_class(
                    row[:count].tolist(), self._tables, self._constants.reshape(groups, LANES),
                    self._names.reshape(groups, LANES), self._coarse, self._coarse_constants, tried=_TRIED,
                    margin=_MARGIN + _MARGIN_OF_AN_ID * count,
                )
                for row, count in zip(ranks, counts.tolist(), strict=True)
            ]  # fmt: skip
            return np.array(found, np.int64)
        listed = np.empty((len(ranks), min(_TRIED, groups)), np.int64)
        if groups > _TRIED:
            _shortlist(ranks, counts, self._coarse, self._coarse_constants, last, listed)
        else:
            listed[:] = np.arange(groups)
        classes, best = np.empty(len(ranks), np.int64), np.empty(len(ranks), np.int32)
        _choose(ranks, counts, listed, self._tables, self._constants, self._names, last, classes, best)
        return classes


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
