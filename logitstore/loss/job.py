"""One call of a loss: which rows, in which chunks, and how their losses become one number."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, cast

import torch

from logitstore.kernels import use_kernels

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from logitstore.loss.base import Loss
    from logitstore.loss.kept import KeptSetLoss
    from logitstore.loss.rows import TeacherRows

__all__ = ["Job"]


class Job:
    """The rows that count, cut into chunks.

    Parameters
    ----------
    members
        Weights and losses to add up.
    rows
        ``R`` rows.
    counted
        ``(R,)`` bool.
    reduction
        "mean", "sum" or "none".
    chunk_rows
        Rows per chunk.
    parts
        Receives a list of ``(n,)`` tensors per name; None to keep none.
    """

    def __init__(
        self,
        members: tuple[tuple[float, Loss], ...],
        rows: TeacherRows,
        counted: Tensor,
        reduction: str,
        chunk_rows: int,
        parts: dict[str, list[Tensor]] | None,
    ) -> None:
        self.members, self.rows, self.counted = members, rows, counted
        self.reduction, self.chunk_rows, self.parts = reduction, chunk_rows, parts
        self.total = len(counted)
        self.count = int(counted.sum())

    @cached_property
    def index(self) -> Tensor | None:
        """Numbers of the rows that count; None if all do, so that chunks are views."""
        return None if self.count == self.total else self.counted.nonzero()[:, 0]

    def kernel_loss(self, logits: Tensor) -> KeptSetLoss | None:
        """Return the loss if kernels do all of it for such logits."""
        (_, loss), several = self.members[0], len(self.members) > 1
        return cast("KeptSetLoss", loss) if loss.sees_kept_alone and not several and use_kernels(logits) else None

    def chunks(self) -> Iterator[tuple[slice, slice | Tensor, TeacherRows]]:
        """Yield each chunk's place among the rows that count, its place among all rows, and the teacher's rows."""
        return self.chunks_of(self.chunk_rows)

    def chunks_of(self, size: int) -> Iterator[tuple[slice, slice | Tensor, TeacherRows]]:
        """Do the same with chunks of another size."""
        for start in range(0, self.count, size):
            place = slice(start, min(start + size, self.count))
            where = place if self.index is None else self.index[place]
            yield place, where, self.rows.select(where)

    def evaluate(
        self, logits: Tensor, rows: TeacherRows, scale: Tensor | None, memory: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Compute one chunk.

        Parameters
        ----------
        logits
            ``(n, V)`` the student's logits, any float type.
        rows
            ``n`` rows of the teacher.
        scale
            ``(n,)`` what to multiply each row's gradient by; None for no gradient.
        memory
            ``(n, V)`` float32 or float64 to compute in; may be the logits themselves, or where the gradient belongs.

        Returns
        -------
        tuple
            ``(n,)`` losses; and ``memory``, which now holds the gradient by the logits, or None without ``scale``.
        """
        value: Tensor | None = None
        gradient: Tensor | None = None
        for number, (weight, loss) in enumerate(self.members, 1):
            # The last one may overwrite the logits.
            last = number == len(self.members)
            buffer = (
                (memory if memory is logits else memory.copy_(logits)) if last else logits.to(memory.dtype, copy=True)
            )
            T = loss.temperature
            if T != 1:
                buffer.div_(T)
            own, parts = loss.step(buffer, rows, None if scale is None else scale * (weight * T))
            own = own * T**2
            if len(self.members) > 1:
                parts = parts | {loss.name: own}
            self.keep(parts)
            value = own * weight if value is None else value + own * weight
            if scale is not None:
                gradient = buffer if gradient is None else buffer.add_(gradient)
        assert value is not None
        return value, gradient

    def keep(self, parts: dict[str, Tensor]) -> None:
        """Keep the numbers of a chunk that are worth logging, if any are to be kept."""
        if self.parts is not None:
            for name, part in parts.items():
                self.parts.setdefault(name, []).append(part)

    def scratch(self, like: Tensor, width: int, dtype: torch.dtype | None = None) -> Tensor:
        """Return memory for a chunk of logits.

        Taken once per pass: first touching as much memory for every chunk costs about what the loss does.
        """
        return like.new_empty(min(self.chunk_rows, self.count), width, dtype=dtype or work_dtype(like))

    def reduce(self, values: list[Tensor], like: Tensor) -> Tensor:
        """Make the losses of the chunks one number, or ``(R,)`` numbers with 0 where a row does not count."""
        every = torch.cat([*values, like.new_zeros(0, dtype=work_dtype(like))])
        if self.reduction != "none":
            return every.sum() / self.divisor
        if self.index is None:
            return every
        return every.new_zeros(self.total).index_copy_(0, self.index, every)

    @property
    def divisor(self) -> int:
        """What the sum of all rows is divided by."""
        return max(1, self.count) if self.reduction == "mean" else 1

    def row_scale(self, above: Tensor, dtype: torch.dtype) -> Tensor:
        """Return ``(count,)`` what the gradient of each row is multiplied by, given the gradient of the result."""
        above = above.to(dtype)
        if self.reduction != "none":
            return (above / self.divisor).expand(self.count)
        return above if self.index is None else above[self.index]

    def give_parts(self, parts: dict[str, Tensor] | None) -> None:
        """Put the means of what was kept into the caller's dictionary."""
        if parts is not None and self.parts is not None:
            parts.update({name: torch.cat(tensors).mean() for name, tensors in self.parts.items()})


def work_dtype(tensor: Tensor) -> torch.dtype:
    """Return the type to compute in."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
