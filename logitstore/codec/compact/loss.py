"""What a codebook of values loses, row by row: looked up, since the stored value follows from the value's bits."""

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

__all__ = ["LossTables", "RowLosses"]


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


class LossTables:
    """Error and generalised KL of every float16, as a codebook stores it.

    Parameters
    ----------
    book
        A codebook of float16 values.
    """

    def __init__(self, book: ValueBook) -> None:
        self._quantiser = Quantiser.of(book)
        bits = np.arange(1 << 16, dtype=np.uint16)
        levels, _, kept = self._quantiser(bits[:, None], np.ones(len(bits), np.int64))
        stored = bits_from_keys(book.levels[levels[:, 0]], book.dtype, 0)
        values = bits.view(np.float16).astype(np.float64)
        with np.errstate(invalid="ignore", over="ignore"):
            difference = values - stored.view(np.float16)
            kl = np.exp(values) * (difference + np.expm1(-difference))
        # A value that no level stands for keeps its whole row as it is.
        self._error = np.where(kept, 0.0, np.abs(difference))
        self._kl = np.where(kept, 0.0, kl)

    def measure(self, values: NDArray[np.float16], counts: NDArray[np.int64]) -> RowLosses:
        """Measure rows ``(R, K)`` of log-probabilities, of which the first ``counts`` of each row are entries."""
        bits = np.ascontiguousarray(values).view(np.uint16)
        _, _, kept = self._quantiser(bits, counts)
        kl = np.empty(len(bits), np.float64)
        error_sum, error_worst = _measure(bits, counts, kept, self._error, self._kl, kl)
        return RowLosses(kl, float(error_sum), float(error_worst))


@kernel
def _measure(bits: Any, counts: Any, kept: Any, errors: Any, costs: Any, kl: Any) -> Any:
    total, worst = 0.0, 0.0
    for row in range(len(counts)):
        kl[row] = 0.0
        if kept[row]:
            continue
        for column in range(counts[row]):
            entry = bits[row, column]
            kl[row] += costs[entry]
            total += errors[entry]
            worst = max(worst, errors[entry])
    return total, worst
