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

__all__ = ["Balancer"]

_LOOKED_AT = 64
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
    """

    def __init__(
        self, values: NDArray[Any], nearest: NDArray[np.uint16], levels: NDArray[Any], max_error: float, max_kl: float
    ) -> None:
        with np.errstate(over="ignore", invalid="ignore"):
            self._level_p = np.exp(levels)
            # Exactly 0 where a value is a level: rows that have been quantised before stay as they are.
            self._difference = np.nan_to_num(self._level_p[nearest] - np.exp(values))
        self._values, self._levels = values, levels
        self._bounds = max_error, max_kl

    def __call__(
        self,
        bits: NDArray[np.uint16],
        counts: NDArray[np.int64],
        totals: NDArray[np.float64],
        kept: NDArray[np.bool_],
        found: NDArray[np.uint16],
        lowest: NDArray[np.uint16],
    ) -> None:
        """Change levels ``(R, K)`` and each row's lowest ``(R,)``, given the rows' generalised KL ``(R,)`` so far."""
        _balance(
            bits, counts, totals, kept, self._difference, self._level_p, self._values, self._levels, *self._bounds,
            found, lowest,
        )  # fmt: skip


@kernel
def _balance(
    bits: Any, counts: Any, totals: Any, kept: Any, difference: Any, level_p: Any, values: Any, levels: Any,
    max_error: Any, max_kl: Any, found: Any, lowest: Any,
) -> None:  # fmt: skip
    for row in range(len(counts)):
        if kept[row]:
            continue
        error = 0.0
        for column in range(counts[row]):
            error += difference[bits[row, column]]
        step = -1 if error > 0 else 1
        least, moved = _WORTH * abs(error), -1
        for column in range(min(counts[row], _LOOKED_AT)):
            level = np.int64(found[row, column])
            if 0 <= level + step < len(levels):
                left = abs(error + level_p[level + step] - level_p[level])
                if left < least:
                    value = values[bits[row, column]]
                    before, after = value - levels[level], value - levels[level + step]
                    # The entry's share of the generalised KL, p·d + p·exp(-d) - p, less what it was before.
                    change = np.exp(value) * (after - before) + level_p[level + step] - level_p[level]
                    if abs(after) <= max_error and totals[row] + change <= max_kl:
                        least, moved = left, column
        if moved >= 0:
            found[row, moved] = np.int64(found[row, moved]) + step
            low = np.uint16(0xFFFF)
            for column in range(counts[row]):
                low = min(low, found[row, column])
            lowest[row] = low
