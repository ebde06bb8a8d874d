"""Sums of what quantising lost: kept with every commit, so that a resumed build counts every row once."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from logitstore.container.codec_record import LossRecord

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from logitstore.codec.compact.loss import RowLosses

__all__ = ["LossMeter"]

_PER_OCTAVE = 16
_LOWEST = -40
"""Base-2 logarithm of the smallest edge of the histogram; what is below counts as it."""


@dataclass
class LossMeter:
    """Sums over rows. Attributes are those of `LossRecord`, not yet divided.

    ``histogram`` counts rows by ``ceil(16 · log2(KL))``.
    """

    rows: int = 0
    entries: int = 0
    kl_sum: float = 0.0
    kl_worst: float = 0.0
    error_sum: float = 0.0
    error_worst: float = 0.0
    histogram: dict[int, int] = field(default_factory=dict)

    def add(self, losses: RowLosses, counts: NDArray[np.int64]) -> None:
        """Take rows, given the entries of each ``(R,)``; those without entries do not count."""
        kl = losses.kl[counts > 0]
        self.rows += len(kl)
        self.entries += int(counts.sum())
        self.kl_sum += float(kl.sum())
        self.kl_worst = max(self.kl_worst, float(kl.max(initial=0.0)))
        self.error_sum += losses.error_sum
        self.error_worst = max(self.error_worst, losses.error_worst)
        edges = np.ceil(_PER_OCTAVE * np.log2(np.maximum(kl, 2.0**_LOWEST))).astype(np.int64)
        for edge, count in zip(*np.unique(edges, return_counts=True), strict=True):
            self.histogram[int(edge)] = self.histogram.get(int(edge), 0) + int(count)

    def merge(self, other: LossMeter) -> None:
        """Take what another one has counted."""
        for name in ("rows", "entries", "kl_sum", "error_sum"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("kl_worst", "error_worst"):
            setattr(self, name, max(getattr(self, name), getattr(other, name)))
        for edge, count in other.histogram.items():
            self.histogram[edge] = self.histogram.get(edge, 0) + count

    def record(self, *, has_kl: bool) -> LossRecord:
        """Return means and percentiles; without KL where values are not log-probabilities."""
        rows, entries = max(1, self.rows), max(1, self.entries)
        return LossRecord(
            rows=self.rows,
            entries=self.entries,
            kl_mean=self.kl_sum / rows if has_kl else None,
            kl_p99=self._percentile(0.99) if has_kl else None,
            kl_worst=self.kl_worst if has_kl else None,
            error_mean=self.error_sum / entries,
            error_worst=self.error_worst,
        )

    def _percentile(self, share: float) -> float:
        left = math.ceil(share * self.rows)
        for edge in sorted(self.histogram):
            left -= self.histogram[edge]
            if left <= 0:
                above = 2.0 ** (edge / _PER_OCTAVE)
                return min(above, self.kl_worst) if edge > _PER_OCTAVE * _LOWEST else 0.0
        return 0.0

    def to_json(self) -> dict[str, Any]:
        """Return the sums for ``progress.json``."""
        return {**vars(self), "histogram": sorted(self.histogram.items())}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> LossMeter:
        """Inverse of `to_json`."""
        return cls(**{**content, "histogram": {int(edge): int(count) for edge, count in content["histogram"]}})
