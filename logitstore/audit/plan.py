"""What a store would cost and keep, before the teacher runs: measured on a small sample store, or estimated."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from logitstore.audit.plan_codecs import CODECS, CodecSetting, CompactRows, Loss, Size, exact_size
from logitstore.audit.plan_estimate import estimated_lines
from logitstore.audit.plan_line import PlanLine
from logitstore.audit.plan_sample import DRAWS, LEAST_MASS_OF_DRAWS, Draws, SampleRows, ladder, read_sample
from logitstore.errors import InvalidArgumentError
from logitstore.reader import open_store

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from logitstore.audit.plan_codecs import Columns
    from logitstore.audit.plan_sample import Kept, Selecting
    from logitstore.container.manifest import Manifest
    from logitstore.reader import Store

__all__ = ["Plan", "plan"]

ROWS = 32768
_TRAINING_ROWS_OF_A_BUILD = 1 << 17
_STEPS = 100
"""Progress of a selection: training of its codebook, then its codecs."""


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
            {**dataclasses.asdict(line), "total_bytes": self.total(line), "fits": self.fits(line)}
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
    (`logitstore.audit.plan_estimate`), and nothing is said of what is kept.

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
        Of the corpus; as many as the sample has rows, if None. Needed without a sample.
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
        lines = list(_measured(found, selections, expected, manifest, progress))
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


def _measured(
    rows: SampleRows,
    selections: Sequence[Selecting],
    expected: int,
    manifest: Manifest,
    progress: Callable[[int, int], None] | None,
) -> Iterator[PlanLine]:
    other = _other_bytes(manifest)
    flags = _flags(manifest)

    def report(number: int, part: float) -> None:
        if progress is not None:
            progress(int(_STEPS * (number + 0.8 * part)), _STEPS * len(selections))

    for number, selection in enumerate(selections):
        kept = selection.keep(rows)
        if kept.capped <= 0.5:  # a cap that decides most rows makes it a top-k with another name
            for codec, size, loss in _sizes(rows, kept, expected, partial(report, number)):
                yield _line(rows, selection, kept, codec, size, loss, expected, other, flags)
        report(number + 1, 0.0)


def _sizes(
    rows: SampleRows, kept: Kept, expected: int, progress: Callable[[float], None]
) -> Iterator[tuple[CodecSetting, Size, Loss]]:
    """Encode the rows behind those for training with every codec; what they lose is of rows with entries."""
    training, measured = _split(kept.columns, rows.training)
    values = measured["values"]
    filled = (values > -np.inf).any(axis=1)
    yield CODECS[0], exact_size(measured, rows.vocab_size), Loss.of(values[filled], values[filled])
    compact = CompactRows(training, measured, vocab_size=rows.vocab_size, expected_rows=expected, progress=progress)
    for codec in CODECS[1:]:
        size, coded = compact.coded(codec.bounds or {})
        yield codec, size, Loss.of(coded["values"][filled], coded["stored"][filled])


def _split(columns: Columns, at: int) -> tuple[Columns, Columns]:
    return {name: array[:at] for name, array in columns.items()}, {name: array[at:] for name, array in columns.items()}


def _line(
    rows: SampleRows,
    selection: Selecting,
    kept: Kept,
    codec: CodecSetting,
    size: Size,
    loss: Loss,
    expected: int,
    other: float,
    flags: str,
) -> PlanLine:
    measured = len(rows.ids) - rows.training
    drawn = isinstance(selection, Draws)
    parts = {name: part / measured for name, part in size.fields.items()}
    parts |= {"codebooks": size.codebooks / expected, "other": other}
    return PlanLine(
        selection=selection.name,
        codec=codec.name,
        flags=" ".join(flag for flag in (selection.flags, codec.flags, flags) if flag),
        entries=kept.entries,
        bytes_per_token=sum(parts.values()),
        bytes_by_part=parts,
        codebook_bytes=size.codebooks,
        capped=kept.capped,
        kept_mass=float(kept.mass.mean()),
        kept_mass_p1=float(np.quantile(kept.mass, 0.01)),
        label_kept=kept.label_kept,
        kl_left_out=None if drawn else _mean(loss.left_out),
        kl_of_codec=_mean(loss.of_codec),
        kl=None if drawn else _mean(loss.from_teacher),
    )


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean()) if len(values) else 0.0


def _other_bytes(manifest: Manifest) -> float:
    """Bytes a row of everything but entries: what the sample takes for it, less what does not grow with a store."""
    arrays = {"tokens", "lse", "label_logprob", "mask", "lse_T"}
    size = sum(size for name, size in manifest.bytes_by_field.items() if name in arrays)
    documents = 0 if manifest.documents_file is None else manifest.documents_file.bytes
    return (size + documents + 2 * 8 * manifest.documents) / manifest.rows


def _flags(manifest: Manifest) -> str:
    """Return what the sample was built with that changes the bytes of other fields."""
    flags = [f"--temperature {temperature:g}" for temperature in manifest.temperatures]
    return " ".join([*(["--rows masked"] if manifest.build.get("rows") == "masked" else []), *flags])


def _by_size(lines: Sequence[PlanLine]) -> tuple[PlanLine, ...]:
    return tuple(sorted(lines, key=lambda line: (line.bytes_per_token, line.selection, line.codec)))
