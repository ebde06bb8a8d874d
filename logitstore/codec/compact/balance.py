"""Quantised rows whose probability adds up: one entry of a row is moved to the level beside its own.

Nearest levels are off by a little each, and so is their sum; what a loss takes for the probability of all other ids,
1 less that sum, is off by as much. Where a row keeps nearly everything that is more than there is. Moving the entry
whose step fits best, within the bounds, takes more than half of the error of the sum on average.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from logitstore.codec.kernels import kernel

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["LOOKED_AT", "Balancer"]

LOOKED_AT = 16
"""Entries of a row that may be moved: likely ones come first, and their steps are the largest."""
_WORTH = 0.9
"""A move has to leave less than this part of the error."""


class Balancer:
    """Moves entries; see the module.

    Parameters
    ----------
    values
        ``(65536,)`` float64, the number that each float16 pattern is.
    nearest
        ``(65536,)`` uint16, the level that stands for it.
    levels
        ``(Q,)`` float64, log-probabilities of the levels, ascending.
    max_error, max_kl
        Bounds that moved rows hold, too.

    Attributes
    ----------
    difference
        ``(65536,)`` float64, what each pattern's level adds to the sum of probabilities.
    """

    def __init__(
        self, values: NDArray[Any], nearest: NDArray[np.uint16], levels: NDArray[Any], max_error: float, max_kl: float
    ) -> None:
        with np.errstate(over="ignore", invalid="ignore"):
            self._p, self._level_p = np.exp(values), np.exp(levels)
            # Exactly 0 where a value is a level: rows that have been quantised before stay as they are.
            self.difference = np.nan_to_num(self._level_p[nearest] - self._p)
        self._values, self._levels = values, levels
        # What a level's entry adds to the sum where it moves down, and up. There is no way down from the first level.
        steps = np.diff(self._level_p)
        self._steps = np.stack([np.append(np.inf, -steps), np.append(steps, np.inf)])
        self._bounds = max_error, max_kl

    def __call__(
        self,
        bits: NDArray[np.uint16],
        counts: NDArray[np.int64],
        totals: NDArray[np.float64],
        errors: NDArray[np.float64],
        kept: NDArray[np.bool_],
        found: NDArray[np.uint16],
        lowest: NDArray[np.uint16],
    ) -> None:
        """Change levels ``(R, K)`` and each row's lowest ``(R,)``, given its generalised KL and `difference` so far."""
        _balance(
            bits, counts, totals, errors, kept, self._steps, self._p, self._values, self._levels, *self._bounds, found,
            lowest,
        )  # fmt: skip


@kernel
def _balance(
    bits: Any, counts: Any, totals: Any, errors: Any, kept: Any, steps: Any, p: Any, values: Any, levels: Any,
    max_error: Any, max_kl: Any, found: Any, lowest: Any,
) -> None:  # fmt: skip
    for row in range(len(counts)):
        if kept[row]:
            continue
        error = errors[row]
        up = np.int64(error <= 0)
        least, moved = _WORTH * abs(error), -1
        for column in range(min(counts[row], LOOKED_AT)):
            step = steps[up, np.uint64(found[np.uint64(row), np.uint64(column)])]
            left = abs(error + step)
            if left < least:
                entry = bits[row, column]
                level = np.int64(found[row, column])
                before, after = values[entry] - levels[level], values[entry] - levels[level + 2 * up - 1]
                # The entry's share of the generalised KL, p·d + p·exp(-d) - p, less what it was before.
                change = p[entry] * (after - before) + step
                if abs(after) <= max_error and totals[row] + change <= max_kl:
                    least, moved = left, column
        if moved >= 0:
            level = np.int64(found[row, moved])
            found[row, moved] = level + 2 * up - 1
            if not up:
                lowest[row] = min(np.int64(lowest[row]), level - 1)
            elif level == np.int64(lowest[row]):
                low = np.uint16(0xFFFF)
                for column in range(counts[row]):
                    low = min(low, found[row, column])
                lowest[row] = low
