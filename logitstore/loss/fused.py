"""A loss fused with the LM head: logits exist for a chunk of rows, and become gradients before the next chunk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.autograd.function import once_differentiable

from logitstore.errors import InvalidArgumentError
from logitstore.loss.by_kernel import chunk_by_kernel
from logitstore.loss.job import work_dtype

if TYPE_CHECKING:
    from torch import Tensor

    from logitstore.loss.job import Job

__all__ = ["fused_loss"]

_Gradients = list["Tensor | None"]


def fused_loss(job: Job, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return the reduced loss of ``(R, H)`` hidden states under the head ``(V, H)``."""
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    if hidden.dtype != weight.dtype and not torch.is_autocast_enabled(device):
        raise InvalidArgumentError(
            f"hidden and weight must be of one type outside autocast; found {hidden.dtype} and {weight.dtype}"
        )
    wanted = [
        tensor is not None and tensor.requires_grad and torch.is_grad_enabled() for tensor in (hidden, weight, bias)
    ]
    result: Tensor = _Fused.apply(hidden, weight, bias, job, dtype, wanted)  # type: ignore[no-untyped-call]
    return result


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, job: Job, dtype: torch.dtype, wanted: list[bool]
    ) -> Tensor:
        ctx.job, ctx.dtype, ctx.wanted = job, dtype, wanted
        ctx.types = [None if tensor is None else tensor.dtype for tensor in (hidden, weight, bias)]
        scale = None
        if any(wanted) and job.reduction != "none":
            # Unscaled: a mean's 1/R comes in the backward pass, together with what multiplies the loss.
            scale = torch.ones(job.count, dtype=work_dtype(hidden), device=hidden.device)
        values, ctx.gradients = _pass(job, hidden, weight, bias, dtype, wanted, scale)
        if job.reduction == "none":
            ctx.save_for_backward(hidden, weight, bias)
        return job.reduce(values, hidden)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor | None, ...]:
        job = ctx.job
        if job.reduction == "none":
            hidden, weight, bias = ctx.saved_tensors
            scale = job.row_scale(above, work_dtype(hidden))
            # What was kept for logging must not be kept twice.
            job.parts = None
            _, gradients = _pass(job, hidden, weight, bias, ctx.dtype, ctx.wanted, scale)
        else:
            gradients, ctx.gradients = ctx.gradients, None
            if gradients is None:
                raise RuntimeError(
                    "the gradient of a fused loss was used up by an earlier backward pass; compute the loss again,"
                    ' or use reduction="none", which computes its gradient in every backward pass'
                )
            for gradient in gradients:
                if gradient is not None:
                    gradient.mul_(above.to(work_dtype(gradient)) / job.divisor)
        typed = [None if tensor is None else tensor.to(kind) for tensor, kind in zip(gradients, ctx.types, strict=True)]
        return *typed, None, None, None


def _pass(
    job: Job,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
    wanted: list[bool],
    scale: Tensor | None,
) -> tuple[list[Tensor], _Gradients]:
    """Go once through all chunks; return their losses, and gradients where they are wanted and ``scale`` is given."""
    work = work_dtype(hidden)
    gradients: _Gradients = [
        torch.zeros_like(tensor, dtype=kind) if wants and scale is not None and tensor is not None else None
        for tensor, wants, kind in zip((hidden, weight, bias), wanted, (hidden.dtype, work, work), strict=True)
    ]
    of_hidden, of_weight, of_bias = gradients
    values = []
    with torch.autocast(hidden.device.type, enabled=False):
        head = weight.to(dtype)
        offset = None if bias is None else bias.to(dtype)
        all_logits = job.scratch(hidden, len(head), dtype)
        loss = job.kernel_loss(all_logits)
        scratch = all_logits if dtype == work or loss is not None else job.scratch(hidden, len(head))
        for place, where, rows in job.chunks():
            inputs = hidden[where].to(dtype)
            logits = all_logits[: len(inputs)]
            if offset is None:
                torch.mm(inputs, head.T, out=logits)
            else:
                torch.addmm(offset, inputs, head.T, out=logits)
            own_scale = None if scale is None else scale[place]
            if loss is not None:
                value, gradient = chunk_by_kernel(loss, job, logits, rows, own_scale)
            else:
                memory = logits if dtype == work else scratch[: len(inputs)]
                value, gradient = job.evaluate(logits, rows, own_scale, memory)
            values.append(value)
            if gradient is None:
                continue
            if of_bias is not None:
                of_bias += gradient.sum(0, dtype=work)
            gradient = gradient if gradient.dtype == dtype else logits.copy_(gradient)
            if of_hidden is not None:
                of_hidden[where] = (gradient @ head).to(of_hidden.dtype)
            if of_weight is not None and dtype == work:
                of_weight.addmm_(gradient.T, inputs)
            elif of_weight is not None:
                of_weight += gradient.T @ inputs
    return values, gradients
