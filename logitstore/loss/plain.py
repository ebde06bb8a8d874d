"""A loss from the student's logits, with as few tensors of their size as there can be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.autograd.function import once_differentiable

from logitstore.loss.job import work_dtype

if TYPE_CHECKING:
    from torch import Tensor

    from logitstore.loss.job import Job

__all__ = ["plain_loss"]


def plain_loss(job: Job, logits: Tensor, inplace: bool) -> Tensor:
    """Return the reduced loss of ``(R, V)`` logits."""
    wanted = torch.is_grad_enabled() and logits.requires_grad
    function = _InPlace if inplace and wanted else _FromLogits
    result: Tensor = function.apply(logits, job)  # type: ignore[no-untyped-call]
    return result


class _FromLogits(torch.autograd.Function):
    """Values now; the gradient in the backward pass, from the logits, so that it is scaled before it is rounded."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, job: Job) -> Tensor:
        ctx.job = job
        ctx.save_for_backward(logits)
        with torch.autocast(logits.device.type, enabled=False):
            values = [job.evaluate(logits[where], rows, None, reuse=False)[0] for _, where, rows in job.chunks()]
        return job.reduce(values, logits)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor, None]:
        job, (logits,) = ctx.job, ctx.saved_tensors
        scale = job.row_scale(above, work_dtype(logits))
        gradient = torch.empty_like(logits) if job.index is None else torch.zeros_like(logits)
        with torch.autocast(logits.device.type, enabled=False):
            for place, where, rows in job.chunks():
                gradient[where] = job.evaluate(logits[where], rows, scale[place], reuse=False)[1].to(logits.dtype)
        return gradient, None


class _InPlace(torch.autograd.Function):
    """The gradient at once, over the logits. It is not scaled yet: a mean's 1/R would sink float16 below its range."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, job: Job) -> Tensor:
        ctx.job = job
        # Counts as a change of the logits, so autograd itself refuses where another node still needs them.
        memory = logits.detach()
        values = []
        with torch.autocast(logits.device.type, enabled=False):
            for place, where, rows in job.chunks():
                chunk = memory[where]
                scale = torch.ones(place.stop - place.start, dtype=work_dtype(logits), device=logits.device)
                value, gradient = job.evaluate(chunk, rows, scale, reuse=True)
                values.append(value)
                if gradient is not chunk or job.index is not None:
                    assert gradient is not None
                    memory[where] = gradient.to(memory.dtype)
        if job.index is not None:
            memory.masked_fill_(~job.counted[:, None], 0)
        ctx.gradient = memory
        return job.reduce(values, logits)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor, None]:
        gradient, ctx.gradient = ctx.gradient, None
        if gradient is None:
            raise RuntimeError("the gradient of a loss with inplace=True was used up by an earlier backward pass")
        above = above.to(work_dtype(gradient)) / ctx.job.divisor
        return gradient.mul_(above if above.ndim == 0 else above[:, None]), None
