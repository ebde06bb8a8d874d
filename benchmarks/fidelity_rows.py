"""What a live teacher really says, and how far from it is what a student would be given instead."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from rich.progress import track

from logitstore.codec.compact import generalised_kl
from logitstore.corpus import CorpusConfig, iter_documents
from logitstore.select import Selection, select_rows
from logitstore.teacher import TeacherConfig, load_teacher

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Columns = dict[str, NDArray[Any]]

DRAWS = 50
LEAST_TAIL = 1e-4
"""Probability that is left for ids that are not kept, however large the sum of the kept ones has become.

Log-probabilities stored as float16 sum to 1 within about so much; without it, rows that keep nearly everything would be
infinitely far from the teacher."""


@dataclass(frozen=True)
class Rows:
    """Rows of a teacher, whose whole distribution was seen.

    Attributes
    ----------
    ids
        ``(R, K)`` uint32, the most probable first.
    logprobs
        ``(R, K)`` float32.
    draws
        ``ids``, ``values`` and ``counts`` ``(R, DRAWS)`` of random draws from the whole distribution.
    entropy
        ``(R,)`` float64, nats.
    squares
        ``(R,)`` float64, sum of all squared probabilities.
    vocab_size
        Of the teacher.
    """

    ids: NDArray[np.uint32]
    logprobs: NDArray[np.float32]
    draws: Columns
    entropy: NDArray[np.float64]
    squares: NDArray[np.float64]
    vocab_size: int

    def __getitem__(self, rows: slice) -> Rows:
        draws = {name: array[rows] for name, array in self.draws.items()}
        return Rows(self.ids[rows], self.logprobs[rows], draws, self.entropy[rows], self.squares[rows], self.vocab_size)

    def top(self, k: int) -> tuple[Columns, NDArray[np.float64]]:
        """Return the k most probable entries as a store has them, by ascending id, and exact log-probabilities."""
        order = np.argsort(self.ids[:, :k], axis=1)
        ids = np.take_along_axis(self.ids[:, :k], order, 1)
        exact = np.take_along_axis(self.logprobs[:, :k], order, 1)
        return {"ids": ids, "values": exact.astype(np.float16)}, exact.astype(np.float64)


@torch.inference_mode()
def teacher_rows(model: str, text: tuple[str, ...], *, rows: int, widest: float, seq_len: int) -> Rows:
    """Run a teacher over the beginning of a text; logits exist for 512 rows at a time.

    ``widest`` is the largest k, or the largest share of the vocabulary, that will be asked for.
    """
    teacher = load_teacher(TeacherConfig(model, dtype="float32"))
    V = teacher.vocab_size
    k = round(widest * V) if widest < 1 else int(widest)
    parts: list[tuple[torch.Tensor, ...]] = []
    total = 0
    chunks = _chunks(teacher, text, seq_len)
    for logits in track(islice(chunks, -(-rows // 512)), "teacher", total=-(-rows // 512)):
        logprobs = logits.float().log_softmax(1)
        top = logprobs.topk(k)
        p = logprobs.exp()
        keys = torch.arange(total, total + len(logits))
        drawn = select_rows(logits, Selection(samples=DRAWS), torch.full_like(keys, -1), keys)
        assert drawn.counts is not None
        parts.append(
            (
                top.indices.int(), top.values, drawn.ids, drawn.values, drawn.counts,
                -(p * logprobs).sum(1, dtype=torch.float64), (p * p).sum(1, dtype=torch.float64),
            )
        )  # fmt: skip
        total += len(logits)
    ids, values, drawn_ids, drawn_values, counts, entropy, squares = (
        torch.cat(tensors)[:rows].cpu().numpy() for tensors in zip(*parts, strict=True)
    )
    draws = {"ids": drawn_ids.view(np.uint32), "values": drawn_values, "counts": counts}
    return Rows(ids.view(np.uint32), values, draws, entropy, squares, V)


def _chunks(teacher: Any, text: tuple[str, ...], seq_len: int) -> Iterator[torch.Tensor]:
    """Logits of 512 rows at a time, of all documents one after the other."""
    documents = iter_documents(CorpusConfig(data=text, seq_len=seq_len), teacher.tokenizer)
    tokens = (found.document.tokens for found in documents)
    waiting: list[torch.Tensor] = []
    while batch := list(islice(tokens, 16)):
        for chunk in teacher.forward_rows(batch, rows_per_chunk=512):
            waiting.append(chunk.logits)
            joined = torch.cat(waiting)
            if len(joined) >= 512:
                yield joined[:512]
                joined = joined[512:]
            waiting = [joined]


def distances(rows: Rows, exact: NDArray[np.float64], stored: NDArray[np.float64]) -> dict[str, float]:
    """Compare what is stored of kept entries with the teacher; means over rows.

    A student sees the stored probabilities ``p̂`` of the kept ids ``S``, and what they leave of 1, at least LEAST_TAIL,
    spread evenly over all other ids. With that distribution over the whole vocabulary,

    * *KL, full* is the generalised KL ``sum p·log(p/p̂) − p + p̂`` over all ids, which is the KL where ``p̂`` sums to 1;
    * *KL, kept* is the same sum over ``S`` alone, which is the codec's part;
    * *squared error* is ``sum (p − p̂)²`` over all ids: of the gradient of a student's logits.
    """
    V, k = rows.vocab_size, exact.shape[1]
    p, p_stored = np.exp(exact), np.exp(stored)
    kept, kept_stored = p.sum(axis=1), p_stored.sum(axis=1)
    tail = np.maximum(1 - kept_stored, LEAST_TAIL)
    even = tail / (V - k)
    # Of the ids that are not kept, only sums are needed: these are those of all ids less those of the kept ones.
    entropy_outside = -rows.entropy - (p * exact).sum(axis=1)
    outside = np.maximum(1 - kept, 0)
    kl = (p * (exact - stored)).sum(axis=1) + entropy_outside - outside * np.log(even) - 1 + kept_stored + tail
    squares_outside = rows.squares - (p * p).sum(axis=1)
    error = ((p - p_stored) ** 2).sum(axis=1) + squares_outside - 2 * even * outside + even**2 * (V - k)
    return {
        "kept mass": float(kept.mean()),
        "KL, full": float(kl.mean()),
        "KL, kept": float(generalised_kl(exact, stored).mean()),
        "squared error": float(error.mean()),
    }


def error_of_draws(rows: Rows) -> float:
    """Return the squared error of ``counts / N`` as the target, mean over rows. It has no bias: it is all noise."""
    counts, values = rows.draws["counts"].astype(np.float64) / DRAWS, rows.draws["values"].astype(np.float64)
    return float(((counts**2).sum(axis=1) - 2 * (counts * np.exp(values)).sum(axis=1) + rows.squares).mean())
