"""A loss from the student's logits, with as few tensors of their size as there can be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.autograd.function import once_differentiable

from logitstore.loss.by_kernel import loss_by_kernel
from logitstore.loss.job import work_dtype

if TYPE_CHECKING:
    from torch import Tensor

    from logitstore.loss.job import Job

__all__ = ["plain_loss"]


def plain_loss(job: Job, logits: Tensor, inplace: bool) -> Tensor:
    """Return the reduced loss of ``(R, V)`` logits."""
    loss = job.kernel_loss(logits)
    if loss is not None:
        return loss_by_kernel(loss, job, logits, inplace)
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
        scratch = job.scratch(logits, logits.shape[1])
        values = []
        with torch.autocast(logits.device.type, enabled=False):
            for place, where, rows in job.chunks():
                memory = scratch[: place.stop - place.start]
                values.append(job.evaluate(logits[where], rows, None, memory)[0])
        return job.reduce(values, logits)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor, None]:
        job, (logits,) = ctx.job, ctx.saved_tensors
        scale = job.row_scale(above, work_dtype(logits))
        gradient = torch.empty_like(logits) if job.index is None else torch.zeros_like(logits)
        # Contiguous rows of the right type are computed where they belong.
        direct = job.index is None and logits.dtype == work_dtype(logits)
        scratch = None if direct else job.scratch(logits, logits.shape[1])
        with torch.autocast(logits.device.type, enabled=False):
            for place, where, rows in job.chunks():
                memory = gradient[where] if scratch is None else scratch[: place.stop - place.start]
                job.evaluate(logits[where], rows, scale[place], memory)
                if scratch is not None:
                    gradient[where] = memory.to(gradient.dtype)
        return gradient, None


class _InPlace(torch.autograd.Function):
    """The gradient at once, over the logits. It is not scaled yet: a mean's 1/R would sink float16 below its range."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, job: Job) -> Tensor:
        ctx.job = job
        # Counts as a change of the logits, so autograd itself refuses where another node still needs them.
        given = logits.detach()
        direct = job.index is None and logits.dtype == work_dtype(logits)
        scratch = None if direct else job.scratch(logits, logits.shape[1])
        scale = torch.ones(job.count, dtype=work_dtype(logits), device=logits.device)
        values = []
        with torch.autocast(logits.device.type, enabled=False):
            for place, where, rows in job.chunks():
                chunk = given[where]
                memory = chunk if scratch is None else scratch[: place.stop - place.start]
                values.append(job.evaluate(chunk, rows, scale[place], memory)[0])
                if scratch is not None:
                    given[where] = memory.to(given.dtype)
        if job.index is not None:
            given.masked_fill_(~job.counted[:, None], 0)
        ctx.gradient = given
        return job.reduce(values, logits)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor, None]:
        gradient, ctx.gradient = ctx.gradient, None
        if gradient is None:
            raise RuntimeError("the gradient of a loss with inplace=True was used up by an earlier backward pass")
        above = above.to(work_dtype(gradient)) / ctx.job.divisor
        return gradient.mul_(above if above.ndim == 0 else above[:, None]), None
