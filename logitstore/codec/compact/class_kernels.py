"""The loops of `classes`: which ids are scored, in which groups of classes, and which class scores best.

Kernels release the GIL.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from logitstore.codec.compact.row_sums import (
    COLUMNS,
    LANES,
    MOST_ROWS,
    ROWS,
    best_of_rows,
    largest_below,
    sum_rows_of_32,
    sum_rows_of_64,
)
from logitstore.codec.intrinsics import address_of, highest_set_bit
from logitstore.codec.kernels import inlined, kernel

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["bits_of_lanes", "choose", "pick", "room_to_pick", "shortlist"]

_HIGHEST = (1 << 31) - 1
_NAME_BITS = 17
_LAST_NAME = (1 << _NAME_BITS) - 1


@kernel
def _pick(ranks: Any, counts: Any, numbers: Any, most: Any, starts: Any, picked: Any) -> None:
    none, end = numbers[len(numbers) - 1], 0
    for row in range(len(counts)):
        starts[row] = end
        for slot in range(counts[row]):
            number = numbers[min(ranks[row, slot], len(numbers) - 1)]
            if number != none and end - starts[row] < most:
                picked[end] = number
                end += 1
        while end % ROWS:
            picked[end] = none
            end += 1
    starts[len(counts)] = end


def room_to_pick(ranks: NDArray[Any]) -> tuple[NDArray[np.uint16], NDArray[np.int64]]:
    """Return room for what `pick` returns."""
    return np.empty(ranks.size + ROWS * (len(ranks) + 1), np.uint16), np.empty(len(ranks) + 1, np.int64)


def pick(
    ranks: NDArray[np.uint32], counts: NDArray[np.int64], numbers: NDArray[np.uint16], most: int
) -> tuple[NDArray[np.uint16], NDArray[np.int64]]:
    """Return the numbers of those ranks of each row that are scored, row by row, and where each row's begin.

    ``numbers`` and ``most`` are those of `ClassScores`. Each row is filled up to a multiple of ROWS with the number of
    ranks that are not.
    """
    picked, starts = room_to_pick(ranks)
    _pick(ranks, counts, numbers, most, starts, picked)
    return picked, starts


@inlined
def _add(table: Any, width: Any, row: Any, count: Any, totals: Any) -> None:
    """Add a row's scores in all columns of a table to totals. ``row`` is the address of its numbers."""
    first = np.int64(0)
    while first < count:
        number = np.uint64(min(np.int64(MOST_ROWS), count - first))
        at, lane = row + np.uint64(2 * first), np.int64(0)
        while lane + 2 * COLUMNS <= width:
            sum_rows_of_64(table + np.uint64(lane), at, totals + np.uint64(4 * lane), np.uint64(width), number)
            lane += 2 * COLUMNS
        if lane < width:
            sum_rows_of_32(table + np.uint64(lane), at, totals + np.uint64(4 * lane), np.uint64(width), number)
        first += MOST_ROWS


@kernel
def shortlist(picked: Any, starts: Any, table: Any, constants: Any, margins: Any, listed: Any) -> None:
    """Fill the groups that each row is to be scored in, -1 behind them.

    Those are the best, less what ``margins`` say: so much, so much for each number, and what unit scores count.
    """
    margin, margin_of_one, unit = margins
    width, bits = np.int64(len(constants)), bits_of_lanes(len(constants))
    last_lane = (np.int64(1) << bits) - 1
    totals = np.empty(width, np.int32)
    totals_at, table_at, picked_at = address_of(totals), address_of(table), address_of(picked)
    for row in range(len(listed)):
        for lane in range(width):
            totals[np.uint64(lane)] = constants[np.uint64(lane)]
        count = np.int64(starts[row + 1] - starts[row])
        _add(table_at, width, picked_at + np.uint64(2 * starts[row]), count, totals_at)
        # Of scores that are equal the first lane's is the largest.
        for lane in range(width):
            totals[np.uint64(lane)] = (np.int64(totals[np.uint64(lane)]) << bits) | (last_lane - lane)
        best = largest_below(totals_at, np.uint64(width), np.int32(_HIGHEST))
        least = ((np.int64(best) >> bits) - (margin + margin_of_one * count) // unit) << bits
        for at in range(listed.shape[1]):
            listed[row, at] = last_lane - (np.int64(best) & last_lane) if best >= least else -1
            best = largest_below(totals_at, np.uint64(width), best)


@kernel
def bits_of_lanes(lanes: Any) -> Any:
    """Bits of a lane's number."""
    return highest_set_bit(np.uint64(lanes - 1)) + 1


@kernel
def choose(
    picked: Any, starts: Any, listed: Any, rows: Any, firsts: Any, places: Any, constants: Any, names: Any,
    classes: Any,
) -> None:  # fmt: skip
    """Fill each row's best class among its groups; the first of several that are equal."""
    groups, scored = np.int64(len(places)), np.int64(places.shape[1])
    begins, members = np.zeros(groups + 2, np.int64), np.empty(listed.size, np.int64)
    for row in range(len(classes)):
        classes[row] = -(1 << 62)
        for at in range(listed.shape[1]):
            begins[listed[row, at] + 2] += 1
    begins[1] = 0
    for group in range(groups):
        begins[group + 2] += begins[group + 1]
    for row in range(len(classes)):
        for at in range(listed.shape[1]):
            group = listed[row, at]
            if group >= 0:
                members[begins[group + 1]] = row
                begins[group + 1] += 1
    for group in range(groups):
        table_at = address_of(rows) + np.uint64(firsts[group] * LANES)
        places_at = address_of(places) + np.uint64(2 * group * scored)
        constants_at = address_of(constants) + np.uint64(4 * group * LANES)
        for entry in range(begins[group], begins[group + 1]):
            row = members[entry]
            numbers_at = address_of(picked) + np.uint64(2 * starts[row])
            count = np.uint64(starts[row + 1] - starts[row])
            found = np.int64(best_of_rows(table_at, places_at, numbers_at, count, constants_at))
            name = names[np.uint64(group * LANES + LANES - 1 - (found & 15))]
            # Score and class in one number, since nothing could predict a branch.
            classes[row] = max(classes[row], (found >> 4 << _NAME_BITS) + _LAST_NAME - name)
    for row in range(len(classes)):
        classes[row] = _LAST_NAME - (classes[row] & _LAST_NAME)
