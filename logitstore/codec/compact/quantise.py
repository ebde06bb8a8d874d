"""Which values are kept: levels for a bound on the error, and the level that stands for each value.

Two bounds. ``max_error`` holds for every value. ``max_kl`` holds for every row: the *generalised KL*, the sum over its
entries of ``p·log(p/p̂) − p + p̂`` with ``p = exp(log-probability)``, which is about ``½·p·d²`` for an error of ``d``.
Steps that are uniform in ``sqrt(p)`` spend the fewest bits on it. A row that breaks a bound is kept bit for bit; of the
others one entry may be moved, so that probabilities add up (`Balancer`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from logitstore import layout
from logitstore.codec.compact.balance import Balancer
from logitstore.codec.kernels import kernel
from logitstore.codec.transform import BITS_DTYPE, NATIVE_DTYPE, bits_from_keys, keys_from_bits

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from logitstore.codec.compact.codebook import ValueBook

__all__ = ["Quantiser", "generalised_kl", "levels_for"]

CAP = 1.0
"""Largest error where only the generalised KL is bounded: improbable values would otherwise have no level near."""


def generalised_kl(values: NDArray[Any], stored: NDArray[Any]) -> NDArray[np.float64]:
    """Return the generalised KL of each row, ``(R,)``, of log-probabilities ``(R, K)`` stored as others.

    Unused slots hold -inf in both.

    Examples
    --------
    >>> generalised_kl(np.array([[-1.0, -2.0]]), np.array([[-1.0, -2.0]])).tolist()
    [0.0]
    """
    values, stored = np.asarray(values, np.float64), np.asarray(stored, np.float64)
    used = values > -np.inf
    difference = np.subtract(values, stored, out=np.zeros_like(values), where=used)
    p = np.exp(values)
    # p·d + p·(exp(-d) - 1), without the cancellation of small differences.
    return np.asarray((p * (difference + np.expm1(-difference))).sum(axis=-1))


def levels_for(low: float, high: float, half_step: float, max_error: float) -> NDArray[np.uint32]:
    """Return keys of float16 levels, ascending, for values from ``high`` down to ``low``.

    Parameters
    ----------
    half_step
        Half the distance of levels in ``sqrt(exp(value))``; infinite for none.
    max_error
        Half the distance that they have at most, in nats.
    """
    levels: list[np.float16] = []
    top = np.float16(high)
    while float(top) >= low and len(levels) < 1 << 15:
        half = min(max_error, _half_nats(float(top), half_step))
        level = np.float16(float(top) - half)
        if float(top) - float(level) > half:
            level = np.nextafter(level, np.float16(np.inf))
        levels.append(level)
        below = float(level) - min(max_error, _half_nats(float(level), half_step))
        top = np.float16(below)
        if float(top) >= below:
            top = np.nextafter(top, np.float16(-np.inf))
        if top >= level:
            top = np.nextafter(level, np.float16(-np.inf))
    keys = keys_from_bits(np.array(levels, np.float16).view(np.uint16), layout.DTYPE_FLOAT16, 0)
    return np.unique(keys)


def _half_nats(value: float, half_step: float) -> float:
    root = math.exp(min(value, 0.0) / 2)
    return math.inf if half_step >= root else -2 * math.log1p(-half_step / root)


@dataclass(frozen=True)
class Quantiser:
    """Finds levels of values, for an encoder."""

    dtype: int
    levels: NDArray[np.uint32]
    max_error: float
    max_kl: float

    @classmethod
    def of(cls, book: ValueBook) -> Quantiser:
        """Return that of a codebook."""
        return cls(book.dtype, book.levels, book.max_error, book.max_kl)

    @cached_property
    def _tables(self) -> tuple[NDArray[np.uint16], NDArray[np.float64]]:
        """Level of every pattern of bits, and the cost of an entry that has it, infinite if no level will do."""
        size = 1 << (16 if self.dtype == layout.DTYPE_FLOAT16 else 8)
        bits = np.arange(size).astype(BITS_DTYPE[self.dtype])
        keys = keys_from_bits(bits, self.dtype, 0)
        upper = np.minimum(np.searchsorted(self.levels, keys), len(self.levels) - 1)
        if self.max_error == 0 or self.dtype != layout.DTYPE_FLOAT16:
            return upper.astype(np.uint16), np.where(self.levels[upper] == keys, 0, np.inf)
        with np.errstate(over="ignore", invalid="ignore"):
            values = bits.view(NATIVE_DTYPE[self.dtype]).astype(np.float64)
            found = bits_from_keys(self.levels, self.dtype, 0).view(NATIVE_DTYPE[self.dtype]).astype(np.float64)
            best, least = np.zeros(size, np.uint16), np.full(size, np.inf)
            for candidate in (upper, np.maximum(upper - 1, 0)):
                error = values - found[candidate]
                cost = np.abs(error)
                if self.max_kl < math.inf:
                    cost = np.exp(values) * (error + np.expm1(-error))
                better = (np.abs(error) <= self.max_error) & (cost < least)
                best, least = np.where(better, candidate, best), np.where(better, cost, least)
        return best.astype(np.uint16), least

    def __call__(
        self, bits: NDArray[Any], counts: NDArray[np.int64]
    ) -> tuple[NDArray[np.uint16], NDArray[np.uint16], NDArray[np.bool_]]:
        """Return each entry's level ``(R, K)``, each row's lowest ``(R,)``, and whether it is kept as it is ``(R,)``.

        ``bits`` are those of the values, of which the first ``counts`` of each row are entries.
        """
        levels, costs = self._entries
        limit = self.max_kl if self.max_error > 0 else math.inf
        found = np.empty(bits.shape, np.uint16)
        lowest = np.empty(len(bits), np.uint16)
        totals, errors = np.empty(len(bits), np.float64), np.empty(len(bits), np.float64)
        _quantise(bits, counts, levels, costs, found, lowest, totals, errors)
        kept = ~((totals <= limit) & (totals < math.inf))
        if self._balancer is not None:
            self._balancer(bits, counts, totals, errors, kept, found, lowest)
        return found, lowest, kept

    @cached_property
    def _entries(self) -> tuple[NDArray[np.uint16], NDArray[np.float32]]:
        """As `_tables`, with what each pattern's level adds to the sum of probabilities beside the cost, ``(N, 2)``.

        Costs are rounded up. Half as many bytes stay in a core's cache.
        """
        levels, costs = self._tables
        differences = np.zeros(len(costs)) if self._balancer is None else self._balancer.difference
        with np.errstate(over="ignore"):
            found = np.stack([costs, differences], axis=1).astype(np.float32)
        found[:, 0] = np.where(costs > 0, np.nextafter(found[:, 0], np.float32(np.inf)), found[:, 0])
        return levels, found

    @cached_property
    def _balancer(self) -> Balancer | None:
        if self.max_error == 0 or self.max_kl == math.inf:
            return None
        values = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float64)
        levels = bits_from_keys(self.levels, self.dtype, 0).view(np.float16).astype(np.float64)
        return Balancer(values, self._tables[0], levels, self.max_error, self.max_kl)


@kernel
def _quantise(
    bits: Any, counts: Any, levels: Any, costs: Any, found: Any, lowest: Any, totals: Any, errors: Any
) -> None:
    """Look levels up, and add up both columns of what they cost."""
    for row in range(len(counts)):
        at, count = np.uint64(row), np.int64(counts[row])
        # Two sums of each, since each addition has to wait for the one before it.
        total, other, error, off = np.float64(0), np.float64(0), np.float64(0), np.float64(0)
        for pair in range(count >> 1):
            column = np.uint64(2 * pair)
            entry = np.uint64(bits[at, column])
            found[at, column] = levels[entry]
            total += costs[entry, np.uint64(0)]
            error += costs[entry, np.uint64(1)]
            column += np.uint64(1)
            entry = np.uint64(bits[at, column])
            found[at, column] = levels[entry]
            other += costs[entry, np.uint64(0)]
            off += costs[entry, np.uint64(1)]
        if count & 1:
            entry = np.uint64(bits[row, count - 1])
            found[row, count - 1] = levels[entry]
            total += costs[entry, 0]
            error += costs[entry, 1]
        for column in range(count, bits.shape[1]):
            found[row, column] = 0
        totals[row], errors[row] = total + other, error + off
        # A loop of its own, which becomes vector instructions.
        low = np.uint16(0xFFFF)
        for column in range(count):
            low = min(low, found[at, np.uint64(column)])
        lowest[row] = low
