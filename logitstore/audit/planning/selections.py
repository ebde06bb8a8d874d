"""Selections that a plan tries, and what each would have kept of a sample's rows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from logitstore import layout
from logitstore.audit.planning.sample import NO_LABEL
from logitstore.errors import InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from logitstore.audit.planning.codecs import Columns
    from logitstore.audit.planning.sample import SampleRows

__all__ = ["Draws", "Kept", "Selecting", "Top", "TopP", "ladder", "usual_tops"]

LADDER = (8, 16, 32, 50, 64, *(1 << power for power in range(7, 18)))
FRACTIONS = (0.01, 0.05)
NUCLEI = (0.9, 0.95, 0.99)
DRAWS = 50


@dataclass(frozen=True)
class Kept:
    """What a selection keeps of a sample.

    Attributes
    ----------
    columns
        All rows as the codecs take them.
    mass
        ``(n,)`` float64, probability of the entries of each row that has any.
    label_kept
        Share of the labels that are kept; None without labels.
    entries
        Entries of a row, mean over all rows.
    capped
        Share of the rows with entries in which a top-p selection stops at its cap.
    """

    columns: Columns
    mass: NDArray[np.float64]
    label_kept: float | None
    entries: float
    capped: float = 0.0


class Selecting(Protocol):
    """A selection that can be tried."""

    @property
    def name(self) -> str:
        """What people read."""

    @property
    def flags(self) -> str:
        """Of ``logitstore build``."""

    @property
    def slots(self) -> int:
        """Entries a row has room for."""

    def keep(self, rows: SampleRows) -> Kept:
        """Return what it keeps."""


@dataclass(frozen=True)
class Top:
    """The ``slots`` most probable ids, which may be given as a share of the vocabulary."""

    slots: int
    share: float | None = None

    @property
    def name(self) -> str:
        """What people read."""
        k = f"k = {self.slots:,}"
        return k if self.share is None else f"{100 * self.share:g} % ({k})"

    @property
    def flags(self) -> str:
        """Of ``logitstore build``."""
        return f"--top-k {self.slots}" if self.share is None else f"--top-fraction {self.share:g}"

    def keep(self, rows: SampleRows) -> Kept:
        """Return what it keeps."""
        return _kept(rows, rows.used[:, : self.slots])


@dataclass(frozen=True)
class TopP:
    """The fewest ids that hold probability ``p``, at most ``slots``."""

    p: float
    slots: int

    @property
    def name(self) -> str:
        """What people read."""
        return f"top-p {self.p:g} (≤ {self.slots:,})"

    @property
    def flags(self) -> str:
        """Of ``logitstore build``."""
        return f"--top-p {self.p:g} --max-k {self.slots}"

    def keep(self, rows: SampleRows) -> Kept:
        """Return what it keeps."""
        used = rows.used[:, : self.slots]
        reached = np.cumsum(np.exp(rows.logprobs[:, : self.slots].astype(np.float32)), axis=1, dtype=np.float64)
        wanted = used.copy()
        wanted[:, 1:] &= reached[:, :-1] < self.p
        filled = used[:, 0]
        capped = filled & wanted[:, -1] & (reached[:, -1] < self.p)
        return _kept(rows, wanted, capped=float(capped.sum() / max(1, filled.sum())))


@dataclass(frozen=True)
class Draws:
    """Random draws, made of what the sample keeps as if that were all."""

    slots: int = DRAWS
    seed: int = 0

    @property
    def name(self) -> str:
        """What people read."""
        return f"{self.slots} draws"

    @property
    def flags(self) -> str:
        """Of ``logitstore build``."""
        return f"--sample {self.slots}"

    def keep(self, rows: SampleRows) -> Kept:
        """Return what it keeps."""
        generator = np.random.default_rng(self.seed)
        counts = np.zeros(rows.ids.shape, np.uint8)
        for row in np.flatnonzero(rows.used[:, 0]):
            p = np.exp(rows.logprobs[row].astype(np.float64))
            counts[row] = generator.multinomial(self.slots, p / p.sum())
        return _kept(rows, counts > 0, counts, slots=self.slots)


def ladder(rows: SampleRows, selection: dict[str, Any], asked: Sequence[int]) -> list[Selecting]:
    """Return the selections to try, narrowest first.

    Parameters
    ----------
    rows
        Of the sample.
    selection
        That of the sample, as its manifest has it.
    asked
        Numbers of ids to keep; if there are none, a ladder of them.

    Raises
    ------
    InvalidArgumentError
        The sample does not hold as many ids as are asked for.
    """
    slots, V = rows.ids.shape[1], rows.vocab_size
    counts = np.count_nonzero(rows.used, axis=1)
    # A row of a top-p sample ends where its probability is reached; which ids come next is not known.
    whole = int(counts[counts > 0].min(initial=slots)) if "top_p" in selection else slots
    if wrong := [k for k in asked if not 1 <= k <= whole]:
        raise InvalidArgumentError(
            f"the sample holds the {whole} most probable ids of every row, asked for {wrong[0]}: build a sample with "
            f"--top-k {max(wrong)}"
        )
    if asked:
        return [Top(k) for k in sorted(set(asked))]
    found = usual_tops(V, whole)
    if whole == slots:
        found[slots] = Top(slots, selection.get("top_fraction"))
    nuclei: list[Selecting] = [TopP(p, slots) for p in NUCLEI if p < selection.get("top_p", 1)]
    if "top_p" in selection:
        nuclei.append(TopP(selection["top_p"], slots))
    return [*(found[k] for k in sorted(found)), *nuclei]


def usual_tops(vocab_size: int, most: int) -> dict[int, Top]:
    """Return a ladder of k up to ``most``; of a k and a share of the vocabulary that are nearly the same, the share."""
    shares = {math.floor(share * vocab_size + 0.5): share for share in FRACTIONS}
    found = {k: Top(k, share) for k, share in shares.items() if 1 <= k <= most}
    return found | {k: Top(k) for k in LADDER if k <= most and all(max(k, n) >= 1.25 * min(k, n) for n in found)}


def _kept(
    rows: SampleRows,
    wanted: NDArray[np.bool_],
    counts: NDArray[np.uint8] | None = None,
    *,
    slots: int = 0,
    capped: float = 0.0,
) -> Kept:
    """Keep the entries that are wanted, in the order of their ids, which is the order of the exact codec."""
    width = wanted.shape[1]
    slots = slots or width
    ids = np.where(wanted, rows.ids[:, :width], layout.UNUSED_ID)
    order = np.argsort(ids, axis=1)[:, :slots]
    ids = np.take_along_axis(ids, order, 1)
    values = np.where(wanted, rows.logprobs[:, :width], np.float16(-np.inf))
    columns: Columns = {"ids": ids, "values": np.take_along_axis(values, order, 1)}
    if counts is not None:
        columns["counts"] = np.take_along_axis(counts, order, 1)
    columns = {name: _of_width(array, slots) for name, array in columns.items()}
    filled = wanted.any(axis=1)
    mass = np.exp(columns["values"][filled].astype(np.float32)).sum(axis=1, dtype=np.float64)
    labelled = np.flatnonzero(rows.labels != NO_LABEL)
    at = rows.labels[labelled]
    inside = (at >= 0) & (at < width) & wanted[labelled, np.clip(at, 0, width - 1)]
    return Kept(
        columns,
        # Rounding to float16 may lift the sum above 1 a little.
        np.minimum(mass, 1.0),
        float(inside.mean()) if len(at) else None,
        float(np.count_nonzero(wanted) / len(wanted)),
        capped,
    )


def _of_width(array: NDArray[Any], slots: int) -> NDArray[Any]:
    fill = {"u4": layout.UNUSED_ID, "f2": -np.inf, "u1": 0}[array.dtype.str[1:]]
    return np.pad(array, ((0, 0), (0, slots - array.shape[1])), constant_values=fill)
