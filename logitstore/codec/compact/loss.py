"""What a codebook of values loses, row by row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from logitstore.codec.compact.quantise import Quantiser
from logitstore.codec.kernels import kernel
from logitstore.codec.transform import bits_from_keys

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from logitstore.codec.compact.codebook import ValueBook

__all__ = ["LossMeasure", "RowLosses"]


@dataclass(frozen=True)
class RowLosses:
    """What rows lost.

    Attributes
    ----------
    kl
        ``(R,)`` float64, generalised KL of each row; see `generalised_kl`.
    error_sum, error_worst
        Absolute difference of all entries together, and the largest.
    """

    kl: NDArray[np.float64]
    error_sum: float
    error_worst: float


class LossMeasure:
    """Measures what an encoder with this codebook stores against what it gets, as `generalised_kl` does.

    Parameters
    ----------
    book
        A codebook of float16 values.
    """

    def __init__(self, book: ValueBook) -> None:
        self._quantiser = Quantiser.of(book)
        with np.errstate(over="ignore", invalid="ignore"):
            self._values = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float64)
            self._levels = bits_from_keys(book.levels, book.dtype, 0).view(np.float16).astype(np.float64)
            self._p, self._level_p = np.exp(self._values), np.exp(self._levels)

    def __call__(self, values: NDArray[np.float16], counts: NDArray[np.int64]) -> RowLosses:
        """Measure rows ``(R, K)`` of log-probabilities, of which the first ``counts`` of each row are entries."""
        bits = np.ascontiguousarray(values).view(np.uint16)
        found, _, kept = self._quantiser(bits, counts)
        kl = np.empty(len(bits), np.float64)
        error_sum, error_worst = _measure(
            bits, counts, kept, found, self._values, self._p, self._levels, self._level_p, kl
        )
        return RowLosses(kl, float(error_sum), float(error_worst))


@kernel
def _measure(
    bits: Any, counts: Any, kept: Any, found: Any, values: Any, p: Any, levels: Any, level_p: Any, kl: Any
) -> Any:
    sum_of_errors, worst = 0.0, 0.0
    for row in range(len(counts)):
        total = 0.0
        if not kept[row]:
            for column in range(counts[row]):
                entry, level = bits[row, column], found[row, column]
                difference = values[entry] - levels[level]
                # p·d + p·exp(-d) - p
                total += p[entry] * (difference - 1) + level_p[level]
                sum_of_errors += abs(difference)
                worst = max(worst, abs(difference))
        kl[row] = max(total, 0.0)
    return sum_of_errors, worst
