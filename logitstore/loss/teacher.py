"""What the losses ask of the teacher's side of stored rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from logitstore.loss.kept import StudentRows
    from logitstore.loss.rows import TeacherRows

__all__ = ["dot", "kept_and_outside", "renormalised"]


def kept_and_outside(rows: TeacherRows, student: StudentRows, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return the teacher's log p at the kept ids, over the whole vocabulary, and its mass outside.

    At a temperature T other than 1, log p is ``(logprob + lse) / T - lse_T``.

    Returns
    -------
    tuple
        ``(n, K)`` log p, -inf in unused slots; and ``(n,)`` 1 - a, 0 where no id is outside. Log-probabilities stored
        as float16 sum to 1 within about 1e-4, so that much of 1 - a is rounding; below 0 it is 0.
    """
    # 1 - a is a small difference of large numbers: in float32 it would have four digits where it is 1e-3.
    exact = torch.float32 if student.kept.device.type == "mps" else torch.float64
    logprobs = rows.need("logprobs").to(exact)
    if temperature != 1:
        lse, lse_T = (rows.need(name).to(exact)[:, None] for name in ("lse", "lse_T"))
        logprobs = (logprobs + lse) / temperature - lse_T
    logprobs = logprobs.masked_fill(~student.used, -torch.inf)
    outside = (1 - logprobs.exp().sum(1)).clamp(min=0).to(student.kept.dtype)
    nothing = student.used.sum(1) == student.vocab_size
    return logprobs.to(student.kept.dtype), outside.masked_fill(nothing, 0)


def renormalised(rows: TeacherRows, student: StudentRows, temperature: float = 1.0) -> Tensor:
    """Return ``(n, K)`` log of p/a, exact at any temperature: what it is divided by cancels."""
    logprobs = rows.need("logprobs").to(student.kept.dtype) / temperature
    return logprobs.masked_fill(~student.used, -torch.inf).log_softmax(1)


def dot(weights: Tensor, values: Tensor) -> Tensor:
    """Return the sums of ``weights * values`` over the last axis, where 0 times infinity is 0."""
    return (weights * values).masked_fill_(weights == 0, 0).sum(-1)
