"""What holds for every row of every store (``spec/FORMAT.md``, "Rows"). Checked when rows are written and by verify."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from logitstore import layout

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from logitstore.records import RowBatch

__all__ = ["EXACT", "HALF_ULP", "SLACK", "SMALLEST", "Bound", "Violation", "check_rows"]

HALF_ULP = 2.0**-11
"""Largest relative rounding error of a float16."""
SMALLEST = 2.0**-24
"""Largest absolute rounding error of a subnormal float16, doubled."""
SLACK = 1e-3
"""For float32 sums over a vocabulary, in nats."""


@dataclass(frozen=True)
class Bound:
    """How far stored values may be from the teacher's, beside rounding to float16.

    Attributes
    ----------
    max_kl
        Largest generalised KL of a row; then no value is off by more than 1 nat either.
    max_error
        Largest error of a value, in nats.
    """

    max_kl: float | None = None
    max_error: float | None = None

    @property
    def error(self) -> float:
        """Largest error of a value."""
        return self.max_error or (1.0 if self.max_kl else 0.0)

    @property
    def mass(self) -> float:
        """How many times the mass of a row may seem larger than it is; a KL bounds the Hellinger distance."""
        return (1 + math.sqrt(self.max_kl)) ** 2 if self.max_kl else 1.0

    def excess(self, true: NDArray[Any], stored: NDArray[Any], rounding: NDArray[Any]) -> NDArray[Any]:
        """Return how far stored values are from the true ones beyond what is allowed, in nats; at most 0 if not at all.

        Values are log-probabilities where there is a ``max_kl``.
        """
        distance = np.abs(true - stored) - rounding
        if self.max_kl is None:
            return np.asarray(distance - self.error)
        off = np.sign(true - stored) * np.maximum(distance, 0)
        cost = np.exp(true) * (off + np.expm1(-off))
        return np.asarray(
            np.where((distance <= self.error) & (cost <= 1.001 * self.max_kl), np.minimum(distance, 0), distance)
        )


EXACT = Bound()
"""Values are the teacher's, rounded."""


@dataclass(frozen=True)
class Violation:
    """A broken rule and the row it was found in, counted from the first row checked."""

    row: int
    rule: str
    message: str


def check_rows(
    batch: RowBatch, *, vocab_size: int, values: str, holds_maximum: bool, bound: Bound = EXACT
) -> list[Violation]:
    """Return the first violation of each rule.

    Parameters
    ----------
    batch
        The rows.
    vocab_size
        The teacher's real vocabulary size.
    values
        ``"logprob"`` or ``"logit"``.
    holds_maximum
        Whether every row keeps its most probable id, as all selections do but pure sampling.
    bound
        Of the values.
    """
    used = batch.ids != layout.UNUSED_ID
    found: list[Violation] = []

    def rule(name: str, broken: NDArray[np.bool_], message: str) -> None:
        rows = np.flatnonzero(broken if broken.ndim == 1 else broken.any(axis=1))
        if len(rows):
            found.append(Violation(int(rows[0]), name, message))

    rule("token-range", batch.tokens >= vocab_size, f"the token is below the vocabulary size {vocab_size}")
    rule("id-range", used & (batch.ids >= vocab_size), f"ids are below the vocabulary size {vocab_size}")
    rule(
        "id-order",
        used[:, 1:] & ~(used[:, :-1] & (batch.ids[:, :-1] < batch.ids[:, 1:])),
        "ids ascend without repetition, unused slots come last",
    )
    finite = np.isfinite(batch.values)
    rule("value-finite", used & ~finite, "values of used slots are finite")
    rule("value-unused", ~used & ~np.isneginf(batch.values), "values of unused slots are -inf")
    empty = ~used.any(axis=1)
    rule("lse-finite", ~empty & ~np.isfinite(batch.lse), "lse is finite where the row has entries")
    with np.errstate(invalid="ignore", over="ignore"):
        rule("label-range", batch.label_logprob > SLACK, "a log-probability is at most 0")
        logits = batch.values.astype(np.float32)
        error = np.abs(logits) * np.float32(HALF_ULP) + np.float32(SMALLEST) + np.float32(bound.max_error or 0)
        offset = np.float32(0) if values == "logprob" else batch.lse[:, None]
        mass = np.exp(np.where(used & finite, logits - error - offset, -np.inf)).sum(axis=1, dtype=np.float64)
        rule("mass", mass > bound.mass + SLACK, "log-sum-exp of the kept entries is at most lse, within rounding")
        if holds_maximum:
            if bound.max_error is None:
                error += np.float32(bound.error)
            top = np.where(used & finite, logits + error - offset, -np.inf).max(axis=1)
            rule(
                "maximum",
                ~empty & (top < -np.log(vocab_size) - SLACK),
                "lse is at most the largest logit + log(vocabulary size), within rounding",
            )
    if batch.counts is not None:
        rule("count-unused", ~used & (batch.counts != 0), "counts of unused slots are 0")
    return found
