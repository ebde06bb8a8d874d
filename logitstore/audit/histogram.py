"""A histogram that grows by merging, for means and percentiles over more rows than fit in memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Histogram"]


@dataclass
class Histogram:
    """Counts of values in equal bins; values outside fall into the outermost bins.

    Attributes
    ----------
    low, high, bins
        The range and how finely it is divided, which is the resolution of percentiles.
    total, number
        Exact sum and number of the values.
    """

    low: float
    high: float
    bins: int
    total: float = 0.0
    number: int = 0
    counts: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        self.counts = np.zeros(self.bins, np.int64)

    def add(self, values: NDArray[np.float64]) -> None:
        """Take values."""
        scaled = (values - self.low) * (self.bins / (self.high - self.low))
        self.counts += np.bincount(np.clip(scaled, 0, self.bins - 1).astype(np.int64), minlength=self.bins)
        self.total += float(values.sum())
        self.number += len(values)

    @property
    def mean(self) -> float | None:
        """Mean of the values; None without any."""
        return self.total / self.number if self.number else None

    def percentile(self, percent: float) -> float | None:
        """Return the middle of the bin that holds the percentile; None without values."""
        if not self.number:
            return None
        rank = percent / 100 * (self.number - 1)
        position = int(np.searchsorted(np.cumsum(self.counts), rank, side="right"))
        return self.low + (position + 0.5) * (self.high - self.low) / self.bins

    def merged(self, bins: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Return edges ``(bins + 1,)`` and counts ``(bins,)`` of a coarser histogram; ``bins`` divides `bins`."""
        return np.linspace(self.low, self.high, bins + 1), self.counts.reshape(bins, -1).sum(axis=1)
