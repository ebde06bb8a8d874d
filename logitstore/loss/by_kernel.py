"""A loss of kept ids by the kernels: value and gradient in one go, or, where it must wait, the gradient later."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.autograd.function import once_differentiable

if TYPE_CHECKING:
    from torch import Tensor

    from logitstore.loss.job import Job
    from logitstore.loss.kept import KeptGradient, KeptSetLoss
    from logitstore.loss.rows import TeacherRows

__all__ = ["chunk_by_kernel", "loss_by_kernel"]

_ENTRIES = 2**24
_MARKS = 2**31
"""Kept entries and logits (of which each is marked by a bit) of a chunk: 64 MiB a float32 tensor, and 256 MiB."""


def loss_by_kernel(loss: KeptSetLoss, job: Job, logits: Tensor, inplace: bool) -> Tensor:
    """Return the reduced loss of ``(R, V)`` logits."""
    wanted = torch.is_grad_enabled() and logits.requires_grad
    # A sum is divided by something yet, and rows for themselves are weighed. The gradient of a mean is final but for
    # what scales a loss, which float16, whose range ends soon, asks for.
    at_once = wanted and loss.target is not None and job.reduction == "mean" and logits.dtype != torch.float16
    function = _AtOnce if at_once else _ByKernel
    result: Tensor = function.apply(logits, loss, job, inplace and wanted)  # type: ignore[no-untyped-call]
    return result


def chunk_by_kernel(
    loss: KeptSetLoss, job: Job, logits: Tensor, rows: TeacherRows, scale: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Do what `Job.evaluate` does, with the gradient in the memory and the type of the logits."""
    from logitstore.kernels.learn import write_kept, write_outside_kept

    if scale is not None and loss.target is not None:
        value, parts = loss.in_one_pass(logits, logits, rows, scale)
        job.keep(parts)
        return value, logits
    T = loss.temperature
    value, parts, gradient = loss.read_logits(logits, None, rows)
    job.keep(parts)
    if scale is None:
        return value * T**2, None
    scale = scale * T
    write_outside_kept(logits, logits, gradient.shift, gradient.outside * scale, temperature=T)
    write_kept(logits, gradient.ids, gradient.values * scale[:, None])
    return value * T**2, logits


class _AtOnce(torch.autograd.Function):
    """Values and the gradient of their mean, which the backward pass hands out; times what comes from above."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, loss: KeptSetLoss, job: Job, inplace: bool) -> Tensor:
        ctx.loss, ctx.job, ctx.inplace = loss, job, inplace
        given = _rows_in_memory(logits.detach())
        ctx.gradient = given if inplace else torch.empty_like(given)
        with torch.autocast(logits.device.type, enabled=False):
            values, parts = _at_once(loss, job, given, ctx.gradient)
        job.keep(parts if job.index is None else {name: part[job.index] for name, part in parts.items()})
        if inplace:
            torch.autograd.graph.increment_version(logits)
        else:
            ctx.save_for_backward(logits)
        return job.reduce([values if job.index is None else values[job.index]], logits)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor, None, None, None]:
        from logitstore.kernels.one_pass import multiply_rows

        gradient, ctx.gradient = ctx.gradient, None
        if gradient is None:
            if ctx.inplace:
                raise RuntimeError("the gradient of a loss with inplace=True was used up by an earlier backward pass")
            given = _rows_in_memory(ctx.saved_tensors[0])
            gradient = torch.empty_like(given)
            _at_once(ctx.loss, ctx.job, given, gradient)
        multiply_rows(gradient, above.float())
        return gradient, None, None, None


def _at_once(loss: KeptSetLoss, job: Job, logits: Tensor, gradient: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    scale = torch.full((job.total,), 1 / job.divisor, device=logits.device)
    return loss.in_one_pass(gradient, logits, job.rows, scale, None if job.index is None else job.counted)


class _ByKernel(torch.autograd.Function):
    """Values now, and of the gradient all but its ``(R, V)``, which the backward pass writes already scaled."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, loss: KeptSetLoss, job: Job, inplace: bool) -> Tensor:
        ctx.loss, ctx.job, ctx.inplace = loss, job, inplace
        given = _rows_in_memory(logits.detach())
        values: list[Tensor] = []
        pieces: list[tuple[slice, KeptGradient]] = []
        slots = 0 if job.rows.ids is None else job.rows.ids.shape[1]
        size = max(job.chunk_rows, min(_ENTRIES // (slots + 1), _MARKS // max(1, given.shape[1])))
        with torch.autocast(logits.device.type, enabled=False):
            for place, where, rows in job.chunks_of(size):
                own, numbers = (given[where], None) if isinstance(where, slice) else (given, where)
                value, parts, gradient = loss.read_logits(own, numbers, rows)
                job.keep(parts)
                values.append(value * loss.temperature**2)
                if ctx.needs_input_grad[0]:
                    pieces.append((place, gradient))
        ctx.pieces = pieces
        if inplace:
            ctx.given = given
            # So that autograd refuses where another node still needs the logits.
            torch.autograd.graph.increment_version(logits)
        else:
            ctx.save_for_backward(logits)
        return job.reduce(values, logits)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor, None, None, None]:
        from logitstore.kernels.learn import write_kept, write_outside_kept

        job, T = ctx.job, ctx.loss.temperature
        if ctx.inplace:
            logits, ctx.given = ctx.given, None
            if logits is None:
                raise RuntimeError("the gradient of a loss with inplace=True was used up by an earlier backward pass")
            gradient = logits
        else:
            logits = _rows_in_memory(ctx.saved_tensors[0])
            gradient = torch.empty_like(logits)
        scale = job.row_scale(above, torch.float32) * T
        shift, factor = (torch.zeros(len(logits), device=logits.device) for _ in range(2))
        for place, piece in ctx.pieces:
            where = place if job.index is None else job.index[place]
            shift[where], factor[where] = piece.shift, piece.outside * scale[place]
        write_outside_kept(gradient, logits, shift, factor, temperature=T)
        for place, piece in ctx.pieces:
            values = piece.values * scale[place, None]
            if job.index is None:
                write_kept(gradient[place], piece.ids, values)
            else:
                write_kept(gradient, piece.ids, values, numbers=job.index[place])
        return gradient, None, None, None


def _rows_in_memory(logits: Tensor) -> Tensor:
    """Return logits whose rows are contiguous and do not overlap."""
    return logits if logits.stride(1) == 1 and logits.stride(0) >= logits.shape[1] else logits.contiguous()
