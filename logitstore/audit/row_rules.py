"""Rules that tie rows to the documents they belong to; `logitstore.container.invariants` has those of single rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from logitstore import layout
from logitstore.container.invariants import Bound, Violation, check_rows

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from logitstore.container.manifest import Manifest
    from logitstore.records import RowBatch

    _Rule = Callable[[str, NDArray[np.bool_], str], None]

__all__ = ["RowExpectations", "check_batch", "check_in_context"]

_HALF_ULP = 2.0**-11
"""Largest relative rounding error of a float16."""
_SMALLEST = 2.0**-24
_FLOAT32 = 2.0**-21
"""Relative error of a few float32 operations."""


@dataclass(frozen=True)
class RowExpectations:
    """What the manifest promises about rows.

    Attributes
    ----------
    values
        ``"logprob"`` or ``"logit"``.
    holds_maximum
        Every row keeps its most probable id: all selections but sampling alone.
    holds_top
        What a row keeps is at least as probable as what it leaves out: selections without sampling.
    masked_only
        Only rows with mask 1 were asked of the teacher; the others hold nothing.
    samples
        Draws per row, or None.
    temperatures
        Further temperatures of ``lse_T``.
    bound
        Of the values.
    """

    values: str
    holds_maximum: bool
    holds_top: bool
    masked_only: bool
    samples: int | None
    temperatures: tuple[float, ...]
    bound: Bound

    @classmethod
    def of(cls, manifest: Manifest) -> RowExpectations:
        """Read them off the manifest."""
        selection = manifest.selection
        maximum = any(selection.get(name) is not None for name in ("top_k", "top_fraction", "top_p"))
        samples = selection.get("samples")
        return cls(
            values=manifest.values,
            holds_maximum=maximum,
            holds_top=maximum and samples is None,
            masked_only=manifest.build.get("rows") == "masked",
            samples=samples if isinstance(samples, int) else None,
            temperatures=manifest.temperatures,
            bound=manifest.bound,
        )


def check_batch(
    batch: RowBatch,
    *,
    vocab_size: int,
    expect: RowExpectations,
    last: NDArray[np.bool_] | None,
    next_token: int | None,
) -> list[Violation]:
    """Return the first violation of every rule there is; of those of single rows alone where ``last`` is None."""
    found = check_rows(
        batch, vocab_size=vocab_size, values=expect.values, holds_maximum=expect.holds_maximum, bound=expect.bound
    )
    if last is not None:
        found += check_in_context(batch, last=last, next_token=next_token, expect=expect)
    return found


def check_in_context(
    batch: RowBatch, *, last: NDArray[np.bool_], next_token: int | None, expect: RowExpectations
) -> list[Violation]:
    """Return the first violation of each rule.

    Parameters
    ----------
    batch
        Consecutive rows.
    last
        ``(n,)`` bool, true for the last row of a document.
    next_token
        The token after the last of these rows; None if it is not known.
    expect
        What the manifest promises.
    """
    found: list[Violation] = []

    def rule(name: str, broken: NDArray[np.bool_], message: str) -> None:
        rows = np.flatnonzero(broken)
        if len(rows):
            found.append(Violation(int(rows[0]), name, message))

    used = batch.ids != layout.UNUSED_ID
    empty = ~used.any(axis=1)
    rule("mask-value", batch.mask > 1, "mask is 0 or 1")
    rule("mask-last", last & (batch.mask != 0), "the last row of a document has mask 0: it has no label")
    asked = batch.mask != 0 if expect.masked_only else np.ones(len(batch), bool)
    rule("row-empty", asked & empty, "every row that was asked of the teacher keeps at least one id")
    rule("row-unasked", ~asked & ~empty, "rows with mask 0 hold nothing in a store of masked rows")
    rule("lse-unasked", ~asked & ~np.isnan(batch.lse), "lse is NaN in rows that were not asked of the teacher")
    absent = np.isnan(batch.label_logprob)
    rule("label-absent", (last | ~asked) & ~absent, "label_logprob is NaN where there is no label")
    rule("label-present", ~last & asked & absent, "label_logprob is a number where there is a label")
    if batch.counts is not None and expect.samples is not None:
        total = batch.counts.sum(axis=1, dtype=np.int64)
        rule("count-sum", ~empty & (total != expect.samples), f"a row counts {expect.samples} draws")
    _check_temperatures(batch, empty, expect, rule)
    _check_labels(batch, used, ~(last | absent), next_token, expect, rule)
    return found


def _check_labels(
    batch: RowBatch,
    used: NDArray[np.bool_],
    labelled: NDArray[np.bool_],
    next_token: int | None,
    expect: RowExpectations,
    rule: _Rule,
) -> None:
    """Compare label_logprob with the value stored for the label: what finds rows that are off by one."""
    labels = np.append(batch.tokens[1:], np.uint32(0 if next_token is None else next_token)).astype(np.uint32)
    known = labelled.copy()
    if next_token is None and len(known):
        known[-1] = False
    logits = batch.values.astype(np.float32)
    offset = batch.lse if expect.values == "logit" else np.zeros(len(batch), np.float32)
    label = batch.label_logprob
    with np.errstate(invalid="ignore", over="ignore"):
        error = np.abs(logits) * np.float32(_HALF_ULP) + np.float32(_SMALLEST)
        error += (np.float32(_FLOAT32) * (np.abs(offset) + np.abs(np.where(np.isfinite(label), label, 0))))[:, None]
        logprobs = logits - offset[:, None]
        at_label = used & (batch.ids == labels[:, None])
        differs = at_label & ~(expect.bound.excess(label[:, None], logprobs, error) <= 0)
        rule("label-value", known & differs.any(axis=1), "label_logprob equals the stored value of the label")
        if expect.holds_top:
            least = np.where(used, logprobs + error + np.float32(expect.bound.error), np.inf).min(axis=1)
            outside = known & used.any(axis=1) & ~at_label.any(axis=1)
            rule(
                "label-outside", outside & (label > least), "a label that is not kept is no more probable than the kept"
            )


def _check_temperatures(batch: RowBatch, empty: NDArray[np.bool_], expect: RowExpectations, rule: _Rule) -> None:
    if batch.lse_T is None:
        return
    finite = np.isfinite(batch.lse_T).all(axis=1)
    rule("lse_T-finite", ~empty & ~finite, "lse_T is finite where the row has entries")
    for column, temperature in enumerate(expect.temperatures):
        # T log sum exp(z / T) grows with T.
        with np.errstate(invalid="ignore"):
            growth = batch.lse_T[:, column].astype(np.float64) * temperature - batch.lse
            slack = 1e-3 + 2.0**-20 * np.abs(batch.lse)
            broken = growth < -slack if temperature >= 1 else growth > slack
        rule("lse_T-order", finite & ~empty & broken, f"T * lse_T grows with T; T = {temperature} does not fit lse")
