"""What the losses ask of the teacher's side of stored rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from logitstore.loss.kept import StudentRows
    from logitstore.loss.rows import TeacherRows

__all__ = ["dot", "kept_logprobs", "mass_outside", "renormalised"]


def kept_logprobs(rows: TeacherRows, student: StudentRows, temperature: float = 1.0) -> Tensor:
    """Return ``(n, K)`` log p at the kept ids, over the whole vocabulary; -inf in unused slots.

    At a temperature T other than 1 that is ``(logprob + lse) / T - lse_T``.
    """
    logprobs = rows.need("logprobs").to(student.kept.dtype)
    if temperature != 1:
        lse, lse_T = (rows.need(name).to(student.kept.dtype)[:, None] for name in ("lse", "lse_T"))
        logprobs = (logprobs + lse) / temperature - lse_T
    return logprobs.masked_fill(~student.used, -torch.inf)


def renormalised(rows: TeacherRows, student: StudentRows, temperature: float = 1.0) -> Tensor:
    """Return ``(n, K)`` log of p/a, exact at any temperature: what it is divided by cancels."""
    logprobs = rows.need("logprobs").to(student.kept.dtype) / temperature
    return logprobs.masked_fill(~student.used, -torch.inf).log_softmax(1)


def mass_outside(logprobs: Tensor, student: StudentRows) -> Tensor:
    """Return ``(n,)`` 1 - a, the teacher's mass outside the kept ids; 0 where nothing is outside.

    Log-probabilities stored as float16 sum to 1 within about 1e-3, so that much of it is rounding; below 0 is 0.
    """
    outside = (1 - logprobs.exp().sum(1)).clamp(min=0)
    return torch.where(student.used.sum(1) == student.vocab_size, torch.zeros_like(outside), outside)


def dot(weights: Tensor, values: Tensor) -> Tensor:
    """Return the sums of ``weights * values`` over the last axis, where 0 times infinity is 0."""
    return (weights * values).masked_fill_(weights == 0, 0).sum(-1)
