"""What a store would cost and keep, before the teacher runs: measured on a small sample store, or estimated."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from logitstore.audit.planning.estimate import estimated_lines
from logitstore.audit.planning.measure import measured_lines
from logitstore.audit.planning.sample import read_sample
from logitstore.audit.planning.selections import DRAWS, Draws, ladder
from logitstore.errors import InvalidArgumentError
from logitstore.reader import open_store

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence

    from logitstore.audit.planning.line import PlanLine
    from logitstore.audit.planning.sample import SampleRows
    from logitstore.audit.planning.selections import Selecting
    from logitstore.reader import Store

__all__ = ["Plan", "plan"]

ROWS = 32768
ROWS_OF_A_CODEBOOK = 1 << 22
"""After so many rows a store may get new codebooks, if the text has changed: their bytes are spread over no more."""
LEAST_MASS_OF_DRAWS = 0.99
"""Draws are made of what the sample keeps; with less of the probability than this, too many would be missing."""
_TRAINING_ROWS_OF_A_BUILD = 1 << 17


@dataclass(frozen=True)
class Plan:
    """Result of `plan`.

    Attributes
    ----------
    vocab_size, tokens
        Of the store that is planned.
    budget
        Bytes that it may take, or None.
    sample
        Path of the sample store; None where everything is estimated.
    rows_trained, rows_measured
        Rows of the sample that codebooks were trained on, and others whose bytes were measured.
    lines
        Selections with codecs, smallest first.
    notes
        What to know about the numbers.
    """

    vocab_size: int
    tokens: int
    budget: int | None
    sample: str | None
    rows_trained: int
    rows_measured: int
    lines: tuple[PlanLine, ...]
    notes: tuple[str, ...]

    def fits(self, line: PlanLine) -> bool | None:
        """Whether a line is within the budget; None without one."""
        return None if self.budget is None else line.bytes_per_token * self.tokens <= self.budget

    @property
    def recommended(self) -> PlanLine | None:
        """The line with the least KL within the budget, the smallest of equals; None without a budget or a KL."""
        known = [(line.kl, line) for line in self.lines if self.fits(line) and line.kl is not None]
        # Sums over entries in another order differ in the last digits.
        best = min(known, key=lambda pair: (round(pair[0], 9), pair[1].bytes_per_token), default=None)
        return best and best[1]

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON; `PlanLine` says what the numbers are."""
        lines = [
            {**dataclasses.asdict(line), "kl": line.kl, "total_bytes": self.total(line), "fits": self.fits(line)}
            for line in self.lines
        ]
        best = self.recommended
        return {
            **{field.name: getattr(self, field.name) for field in dataclasses.fields(self)},
            "estimated": self.sample is None,
            "lines": lines,
            "recommended": None if best is None else self.lines.index(best),
            "notes": list(self.notes),
        }

    def total(self, line: PlanLine) -> int:
        """Bytes of the whole store."""
        return math.ceil(line.bytes_per_token * self.tokens)


def plan(
    sample: str | os.PathLike[str] | None = None,
    *,
    vocab_size: int | None = None,
    tokens: int | None = None,
    budget: int | None = None,
    top_k: Sequence[int] = (),
    rows: int = ROWS,
    progress: Callable[[int, int], None] | None = None,
) -> Plan:
    """Tell what selections and codecs would cost and keep, before a teacher runs over a large corpus.

    With a sample, rows of it are cut to each selection and really encoded with each codec: codebooks are trained on the
    first three quarters, bytes and KL are those of the others. Only selections that the sample holds can be planned, so
    give it as many entries as you would ever keep. Without a sample, bytes are estimated
    (`logitstore.audit.planning.estimate`), and nothing is said of what is kept.

    The same sample and arguments give the same plan. Memory is bounded, by about 2 GB for the widest samples.

    Parameters
    ----------
    sample
        Directory of a complete store of this teacher, on text like the corpus, with ``top_k``, ``top_fraction`` or
        ``top_p`` entries.
    vocab_size
        That of the sample, or None; needed without one. There is no scaling from one vocabulary to another: which ids
        a teacher keeps, and how much of its probability they hold, is a property of the teacher.
    tokens
        Of the corpus; as many as the sample has rows, if None. Needed without a sample. A codebook's bytes are spread
        over them, up to 4,194,304.
    budget
        Bytes that the store may take.
    top_k
        Numbers of ids to plan for, instead of a ladder of selections.
    rows
        Rows of the sample that are used at most, in pieces spread evenly over it; 2^25 entries at most, whatever this
        is.
    progress
        Called with steps done and steps in all.

    Raises
    ------
    InvalidArgumentError
        The sample has another vocabulary, fewer entries than are asked for, or nothing but draws; or a number is out of
        range.
    LogitStoreError
        The sample is unfinished or broken.

    Examples
    --------
    >>> found = plan(vocab_size=128_256, tokens=10**10, budget=5 * 10**12, top_k=[64])
    >>> [(line.selection, line.codec, found.fits(line)) for line in found.lines][-1]
    ('k = 64', 'exact', True)
    """
    for name, number in (("vocab_size", vocab_size), ("tokens", tokens), ("budget", budget), ("rows", rows)):
        if number is not None and number < 1:
            raise InvalidArgumentError(f"{name} is at least 1, found {number}")
    if sample is None:
        if vocab_size is None or tokens is None:
            raise InvalidArgumentError("without a sample store, both vocab_size and tokens are needed")
        lines = estimated_lines(vocab_size, top_k)
        return Plan(vocab_size, tokens, budget, None, 0, 0, _by_size(lines), ())
    with open_store(sample) as store:
        manifest = store.manifest
        if vocab_size not in (None, manifest.vocab_size):
            raise InvalidArgumentError(
                f"the sample's vocabulary has {manifest.vocab_size} ids, asked for {vocab_size}: what a store keeps "
                "and takes is a property of the teacher, so make the sample with the teacher whose store is planned",
                path=store.path,
            )
        found = read_sample(store, rows)
        expected = tokens or manifest.rows
        selections, notes = _selections(found, store, top_k)
        lines = list(measured_lines(found, selections, min(expected, ROWS_OF_A_CODEBOOK), manifest, progress))
    trained, measured = found.training, len(found.ids) - found.training
    head = (
        f"{len(found.ids):,} of the sample's {manifest.rows:,} rows were used, from {found.pieces} places: codebooks "
        f"were trained on {trained:,}, bytes measured on {measured:,} others"
    )
    if trained < _TRAINING_ROWS_OF_A_BUILD:
        head += (
            f". A build trains on up to {_TRAINING_ROWS_OF_A_BUILD:,} rows, and the more a codebook has seen, the "
            "smaller its rows: of the compact codec, bytes here are too many rather than too few"
        )
    return Plan(
        manifest.vocab_size, expected, budget, str(store.path), trained, measured, _by_size(lines), (head, *notes)
    )


def _selections(rows: SampleRows, store: Store, top_k: Sequence[int]) -> tuple[list[Selecting], list[str]]:
    manifest = store.manifest
    selections = ladder(rows, manifest.selection, top_k)
    notes = []
    if manifest.values == "logit":
        notes.append("The sample keeps raw logits; what is planned are log-probabilities, which is what a build keeps")
    if not top_k:
        filled = rows.used[:, 0]
        mass = np.exp(rows.logprobs[filled].astype(np.float32)).sum(axis=1, dtype=np.float64).mean()
        if mass >= LEAST_MASS_OF_DRAWS:
            selections.append(Draws())
            notes.append(
                f"Draws are made of what the sample keeps, {mass:.2%} of the probability. They are an estimate without "
                "bias, whose noise a KL does not measure, so they are not recommended nor ruled out"
            )
        else:
            notes.append(
                f"Random draws (--sample {DRAWS}) are left out: the sample keeps {mass:.2%} of the probability, and "
                f"they are drawn from all of it; {LEAST_MASS_OF_DRAWS:.0%} would do"
            )
    return selections, notes


def _by_size(lines: Sequence[PlanLine]) -> tuple[PlanLine, ...]:
    return tuple(sorted(lines, key=lambda line: (line.bytes_per_token, line.selection, line.codec)))
