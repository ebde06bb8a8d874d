"""Which class a row of ids belongs to: the one whose list codes it with the fewest bits, nearly.

A row's score in a class is the sum of small integers, one for each of its ids, so that all classes are scored with a
few vector instructions an id. The choice is the encoder's: a decoder reads it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from logitstore import layout
from logitstore.codec.intrinsics import add_bytes, address_of
from logitstore.codec.kernels import inlined, kernel

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from logitstore.codec.compact.codebook import IdBook

__all__ = ["ClassScores", "escape_bits"]

UNITS = 4
"""Scores count quarters of a bit."""
_BLOCK = 128
"""Ids whose scores fit 16 bits together."""
_LANES = 16
_NEVER = -(1 << 29)
_FEW = 100
"""Classes that are all scored."""
_TRIED = 6
"""Groups of classes whose classes are scored, at most."""
_MARGIN, _MARGIN_OF_AN_ID = 60 * UNITS, 3
"""By how much a group may score less than the best one and still be looked into, for a row and for each id of it."""
_LIKELY = 4096


def escape_bits(ranks: NDArray[Any]) -> NDArray[np.float64]:
    """Estimate of the bits an id takes that is not in its class's list."""
    return np.log2(np.asarray(ranks, np.float64) + 16) + 1


@inlined
def _add(ranks: Any, row: Any, count: Any, weights: Any, limit: Any, width: Any, begin: Any, end: Any, block: Any,
         total: Any) -> Any:  # fmt: skip
    """Add a row's scores in classes ``begin:end``, whole vectors, to ``total[begin:end]``. Weights are an address."""
    block_at = address_of(block)
    first = np.int64(0)
    while first < count:
        for lane in range(begin, end):
            block[np.uint64(lane)] = 0
        stop = min(first + _BLOCK, count)
        for slot in range(first, stop):
            rank = np.int64(ranks[np.uint64(row), np.uint64(slot)])
            if rank < limit:
                at = rank * width
                for lane in range(begin, end, _LANES):
                    add_bytes(block_at, np.uint64(2 * lane), weights, np.uint64(at + lane))
        for lane in range(begin, end):
            total[np.uint64(lane)] += np.int32(block[np.uint64(lane)])
        first = stop


@kernel
def _choose(
    ranks: Any, counts: Any, coarse: Any, coarse_constants: Any, fine: Any, constants: Any, starts: Any, names: Any,
    classes: Any, best: Any,
) -> None:  # fmt: skip
    """Fill each row's best class and its score; the first of several that are equal."""
    width, groups, lanes = len(constants), len(starts) - 1, len(coarse_constants)
    limit = len(fine) // width
    total, block = np.empty(width, np.int32), np.empty(width, np.int16)
    group_total, group_block = np.empty(lanes, np.int32), np.empty(lanes, np.int16)
    for row in range(len(counts)):
        if groups > _TRIED:
            group_total[:] = coarse_constants
            _add(
                ranks, row, counts[row], address_of(coarse), limit, lanes, np.int64(0), lanes, group_block, group_total
            )
        high, found, least = np.int32(_NEVER), np.int64(0), np.int32(_NEVER)
        for turn in range(min(groups, _TRIED)):
            group = np.int64(turn)
            if groups > _TRIED:
                for lane in range(groups):
                    if group_total[lane] > group_total[group]:
                        group = np.int64(lane)
                if turn == 0:
                    least = group_total[group] - _MARGIN - _MARGIN_OF_AN_ID * counts[row]
                elif group_total[group] < least:
                    break
                group_total[group] = 2 * _NEVER
            begin, end = starts[group], starts[group + 1]
            for lane in range(begin, end):
                total[lane] = constants[lane]
            _add(ranks, row, counts[row], address_of(fine), limit, width, begin, end, block, total)
            for lane in range(begin, end):
                if total[lane] > high or (total[lane] == high and names[lane] < found):
                    high, found = total[lane], names[lane]
        classes[row] = found
        best[row] = high


class ClassScores:
    """Scores of ranks in classes.

    Where there are many classes they are sorted into groups of classes that are alike; a row is scored in the groups,
    and then in the classes of the best few.

    Parameters
    ----------
    weights
        ``(F, C)`` int8, in quarters of a bit: what a rank saves where it is in the class's list. Ranks from ``F`` on
        are in no list.
    constants
        ``(C,)`` int32: less what the list costs all rows.
    """

    def __init__(self, weights: NDArray[np.int8], constants: NDArray[np.int32]) -> None:
        groups = [_whole_vectors(group) for group in _groups(weights)]
        coarse = np.stack([_like_the_best(weights[:, group[group >= 0]]) for group in groups], axis=1)
        means = np.array([constants[group[group >= 0]].mean() for group in groups])
        of_group, of_class = _whole_vectors(np.arange(len(groups))), np.concatenate(groups)
        self._names = of_class
        self._starts = np.cumsum([0, *[len(group) for group in groups]])
        self._coarse, self._coarse_constants = _laid_out(np.rint(coarse).astype(np.int8), means, of_group)
        self._fine, self._constants = _laid_out(weights, constants, of_class)

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

    def choose(self, ranks: NDArray[np.uint32], counts: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the class of each row, ``(R,)``, given ``(R, K)`` ranks in any order."""
        classes, best = np.empty(len(ranks), np.int64), np.empty(len(ranks), np.int32)
        _choose(
            ranks, counts, self._coarse, self._coarse_constants, self._fine, self._constants, self._starts, self._names,
            classes, best,
        )  # fmt: skip
        return classes


def _like_the_best(weights: NDArray[np.int8]) -> NDArray[np.float32]:
    """Weights whose sums are about as large as those of the best class of a group: between its mean and its maximum."""
    return np.asarray((weights.mean(axis=1, dtype=np.float32) + weights.max(axis=1)) / np.float32(2))


def _whole_vectors(names: NDArray[np.int64]) -> NDArray[np.int64]:
    """Fill up with -1."""
    return np.pad(names, (0, -len(names) % _LANES), constant_values=-1)


def _laid_out(
    weights: NDArray[np.int8], constants: NDArray[Any], names: NDArray[np.int64]
) -> tuple[NDArray[np.int8], NDArray[np.int32]]:
    """Columns of these names, with columns that never win for -1; the weights row by row."""
    laid = np.where(names >= 0, weights[:, names], np.int8(0))
    return np.ascontiguousarray(laid).reshape(-1), np.where(names >= 0, constants[names], _NEVER).astype(np.int32)


def _groups(weights: NDArray[np.int8]) -> list[NDArray[np.int64]]:
    """Sort classes into groups by the angle between their weights; a single group if they are few."""
    classes = weights.shape[1]
    if classes < _FEW:
        return [np.arange(classes)]
    # The likeliest ranks say enough, and keep this quick.
    vectors = weights[:_LIKELY].T.astype(np.float32)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    centres = vectors[:: classes // math.isqrt(classes)]
    for _ in range(6):
        nearest = (vectors @ centres.T).argmax(axis=1)
        alive = np.unique(nearest)
        centres = np.stack([vectors[nearest == group].sum(axis=0) for group in alive])
        centres /= np.maximum(np.linalg.norm(centres, axis=1, keepdims=True), 1e-9)
    nearest = (vectors @ centres.T).argmax(axis=1)
    return [np.flatnonzero(nearest == group) for group in np.unique(nearest)]
