"""What a store is worth to a student: how much of the teacher's probability it holds, and how good the teacher is."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from logitstore import layout
from logitstore.audit.histogram import Histogram
from logitstore.audit.inspect import summarise
from logitstore.audit.parallel import map_in_order
from logitstore.reader import open_store

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from numpy.typing import NDArray

    from logitstore.reader import Rows, Store

__all__ = ["RowStats", "Stats", "collect"]

_BLOCK_ENTRIES = 1 << 20
_FROM_SUMMARY = (
    "path", "documents", "rows", "entries", "k_max", "vocab_size", "bytes_total", "bytes_per_row", "bits_per_entry",
    "bytes_by_field", "selection", "codec",
)  # fmt: skip
_PERCENTILES = (1, 5, 50, 95, 99)


@dataclass
class RowStats:
    """Sums over some rows of a store.

    Attributes
    ----------
    widths
        ``1, 2, 4, … K``.
    rows
        Rows that hold entries.
    labels
        Rows that also have a label.
    mass
        Probability of a row's entries together.
    mass_by_width
        ``(len(widths),)`` sum over rows of the mass that the ``widths`` most probable entries hold.
    entropy_low, entropy_high
        Entropy in nats if the tail were a single token, and if it were spread evenly over all ids that are not kept:
        the true one lies between.
    ranks
        ``(len(widths),)`` labels whose rank among the kept is above the width before and at most this one.
    outside
        Labels that are not kept.
    log_likelihood, impossible
        Sum of the labels' finite log-probabilities; labels whose probability is 0.
    """

    widths: tuple[int, ...]
    rows: int = 0
    labels: int = 0
    mass: Histogram = field(default_factory=lambda: Histogram(0.0, 1.0, 10_000))
    entropy_low: Histogram = field(default_factory=lambda: Histogram(0.0, 22.0, 11_000))
    entropy_high: Histogram = field(default_factory=lambda: Histogram(0.0, 22.0, 11_000))
    mass_by_width: NDArray[np.float64] = field(init=False)
    ranks: NDArray[np.int64] = field(init=False)
    outside: int = 0
    log_likelihood: float = 0.0
    impossible: int = 0

    def __post_init__(self) -> None:
        self.mass_by_width = np.zeros(len(self.widths))
        self.ranks = np.zeros(len(self.widths), np.int64)

    def add(self, block: _Block, chosen: NDArray[np.bool_]) -> None:
        """Take the chosen rows of a block."""
        self.rows += int(np.count_nonzero(chosen))
        self.mass.add(block.mass_by_width[chosen, -1])
        self.mass_by_width += block.mass_by_width[chosen].sum(axis=0)
        self.entropy_low.add(block.entropy_low[chosen])
        self.entropy_high.add(block.entropy_high[chosen])
        labelled = chosen & ~np.isnan(block.label_logprob)
        self.labels += int(np.count_nonzero(labelled))
        places = np.searchsorted(self.widths, block.rank[labelled])
        self.ranks += np.bincount(places, minlength=len(self.widths) + 1)[:-1]
        self.outside += int(np.count_nonzero(places == len(self.widths)))
        logprobs = block.label_logprob[labelled]
        finite = np.isfinite(logprobs)
        self.log_likelihood += float(logprobs[finite].sum())
        self.impossible += int(np.count_nonzero(~finite))

    def to_json(self) -> dict[str, Any]:
        """Return means and shares as JSON; None where there is nothing to divide by."""
        rows, labels = max(1, self.rows), max(1, self.labels)
        possible = self.labels - self.impossible
        return {
            "rows": self.rows,
            "labels": self.labels,
            "kept_mass": {
                "mean": self.mass.mean,
                "percentiles": {str(percent): self.mass.percentile(percent) for percent in _PERCENTILES},
                "mean_by_k": {
                    str(width): float(mass) / rows for width, mass in zip(self.widths, self.mass_by_width, strict=True)
                },
            },
            "entropy": {
                "lower_mean": self.entropy_low.mean,
                "upper_mean": self.entropy_high.mean,
                "lower_percentiles": {str(percent): self.entropy_low.percentile(percent) for percent in _PERCENTILES},
            },
            "label_rank": {
                "up_to": {
                    str(width): int(count) / labels
                    for width, count in zip(self.widths, np.cumsum(self.ranks), strict=True)
                },
                "outside": self.outside / labels,
            },
            "top1_agreement": int(self.ranks[0]) / labels if self.labels else None,
            "perplexity": math.exp(-self.log_likelihood / possible) if possible and not self.impossible else None,
            "labels_with_probability_0": self.impossible,
        }


@dataclass(frozen=True)
class Stats:
    """Result of `collect`.

    Attributes
    ----------
    everything
        All rows that hold entries.
    targets
        Those with mask 1; None where they are all the rows that have a label.
    summary
        What `summarise` says of the store.
    """

    everything: RowStats
    targets: RowStats | None
    summary: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return the statistics as JSON."""
        return {
            **{name: self.summary[name] for name in _FROM_SUMMARY},
            "all_rows": self.everything.to_json(),
            "target_rows": None if self.targets is None else self.targets.to_json(),
        }


def collect(
    path: str | os.PathLike[str],
    *,
    progress: Callable[[int, int], None] | None = None,
    workers: int | None = None,
) -> Stats:
    """Go once over all rows, in bounded memory.

    Parameters
    ----------
    path
        Directory of the store.
    progress
        Called with rows done and rows in all.
    workers
        Threads; as many as there are cores, up to eight, by default.

    Raises
    ------
    LogitStoreError
        The store is unfinished or broken.
    """
    with open_store(path) as store:
        widths = _widths(store.k_max)
        everything, targets = RowStats(widths), RowStats(widths)
        size = max(1, _BLOCK_ENTRIES // store.k_max)
        done = 0
        for block in map_in_order(partial(_reduce, store, widths, size), range(0, len(store.rows), size), workers):
            everything.add(block, block.filled)
            targets.add(block, block.filled & block.target)
            done += len(block.filled)
            if progress is not None:
                progress(done, len(store.rows))
    same = targets.labels == everything.labels
    return Stats(everything, None if same else targets, summarise(Path(path)))


def _widths(slots: int) -> tuple[int, ...]:
    powers = tuple(1 << power for power in range((slots - 1).bit_length()))
    return (*powers, slots)


@dataclass(frozen=True)
class _Block:
    """Per row of a block: whether it holds entries, its mask, and what `RowStats` sums."""

    filled: NDArray[np.bool_]
    target: NDArray[np.bool_]
    mass_by_width: NDArray[np.float64]
    entropy_low: NDArray[np.float64]
    entropy_high: NDArray[np.float64]
    rank: NDArray[np.int64]
    label_logprob: NDArray[np.float64]


def _reduce(store: Store, widths: tuple[int, ...], size: int, start: int) -> _Block:
    stop = min(start + size, len(store.rows))
    rows = store.read(start, stop, ["ids", "values", "lse", "label_logprob", "mask"])
    tokens = store.read_field("tokens", start, min(stop + 1, len(store.rows)))
    used = rows.ids != layout.UNUSED_ID
    logprobs = np.where(used, _logprobs(rows), -np.inf)
    probabilities = np.exp(logprobs)
    mass_by_width = np.cumsum(probabilities, axis=1)[:, np.array(widths) - 1]
    # Rounding to float16 may lift the sum above 1 a little.
    tail = np.clip(1 - mass_by_width[:, -1], 0, 1)
    kept = -(probabilities * np.where(used, logprobs, 0)).sum(axis=1)
    low = kept - tail * np.log(np.where(tail > 0, tail, 1))
    left = np.maximum(store.vocab_size - np.count_nonzero(used, axis=1), 1)
    # Labels: the next token. A document's last row has none, and its NaN says so.
    labels = np.append(tokens[1:], np.full(stop - start + 1 - len(tokens), layout.UNUSED_ID, np.uint32))
    at_label = used & (rows.ids == labels[:, None])
    rank = np.where(at_label.any(axis=1), at_label.argmax(axis=1) + 1, store.k_max + 1)
    return _Block(
        filled=used.any(axis=1),
        target=rows.mask != 0,
        mass_by_width=mass_by_width,
        entropy_low=low,
        entropy_high=low + tail * np.log(left),
        rank=rank,
        label_logprob=rows.label_logprob.astype(np.float64),
    )


def _logprobs(rows: Rows) -> NDArray[np.float64]:
    values = rows.values.astype(np.float64)
    return values if rows.stores == "logprob" else values - rows.lse[:, None]
