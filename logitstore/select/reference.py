"""Selection in plain NumPy, one row at a time: what `select_rows` must return. Slow, and easy to check by eye."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from logitstore.select.selection import Selection

__all__ = ["ReferenceRow", "draw_reference", "select_row_reference"]


@dataclass(frozen=True)
class ReferenceRow:
    """One row: ``(m,)`` ids ascending with their float16 values and draws, without unused slots; and its scalars."""

    ids: NDArray[np.int64]
    values: NDArray[np.float16]
    counts: NDArray[np.uint8]
    lse: float
    label_logprob: float
    lse_T: tuple[float, ...]


def select_row_reference(
    logits: NDArray[np.float32],
    selection: Selection,
    label: int = -1,
    row_key: int = 0,
    values: str = "logprob",
    temperatures: Sequence[float] = (),
) -> ReferenceRow:
    """Reduce one ``(V,)`` row of logits to the entries that are stored."""
    V = len(logits)
    lse = _log_sum_exp(logits, 1.0)
    logprobs = logits - np.float32(lse)
    by_logit = np.lexsort((np.arange(V), -logits))

    if selection.top_k is not None:
        kept = set(by_logit[: selection.top_k].tolist())
    elif selection.top_fraction is not None:
        kept = set(by_logit[: max(1, int(np.floor(selection.top_fraction * V + 0.5)))].tolist())
    elif selection.top_p is not None and selection.max_k is not None:
        reached = np.cumsum(np.exp(logprobs[by_logit]).astype(np.float64))
        needed = int(np.sum(reached < selection.top_p)) + 1
        kept = set(by_logit[: min(needed, selection.max_k, V)].tolist())
    else:
        kept = set()

    draws = np.zeros(V, dtype=np.uint8)
    if selection.samples is not None:
        for token in draw_reference(logits, selection.seed, row_key, selection.samples):
            draws[token] += 1
            kept.add(token)

    with np.errstate(over="ignore"):
        half = logprobs.astype(np.float16)
        stored = half if values == "logprob" else logits.astype(np.float16)
    ids = np.array(sorted(token for token in kept if np.isfinite(half[token])), dtype=np.int64)
    return ReferenceRow(
        ids=ids,
        values=stored[ids],
        counts=draws[ids],
        lse=lse,
        label_logprob=float(logits[label]) - lse if label >= 0 else float("nan"),
        lse_T=tuple(_log_sum_exp(logits, T) for T in temperatures),
    )


def draw_reference(logits: NDArray[np.float32], seed: int, row_key: int, samples: int) -> list[int]:
    """Draw ids of one row, in the order drawn."""
    wide = logits.astype(np.float64)
    cumulative = np.cumsum(np.exp(wide - wide.max()))
    state = _splitmix64_output(_splitmix64_output(seed + _GAMMA) ^ (row_key % 2**64))
    drawn = []
    for j in range(samples):
        u = (_splitmix64_output(state + (j + 1) * _GAMMA) >> 11) * 2.0**-53
        drawn.append(int(np.searchsorted(cumulative, u * cumulative[-1], side="right")))
    return drawn


_GAMMA = 0x9E3779B97F4A7C15


def _splitmix64_output(z: int) -> int:
    z %= 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def _log_sum_exp(logits: NDArray[np.float32], temperature: float) -> float:
    scaled = logits.astype(np.float64) / temperature
    largest = scaled.max()
    return float(largest + np.log(np.exp(scaled - largest).sum()))
