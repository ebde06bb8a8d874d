from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

import torch

from logitstore.errors import InvalidArgumentError
from logitstore.loss.fused import fused_loss
from logitstore.loss.job import Job
from logitstore.loss.plain import plain_loss

if TYPE_CHECKING:
    from torch import Tensor

    from logitstore.loss.rows import TeacherRows

__all__ = ["Loss", "Reduction", "check_choice", "check_temperature"]

Reduction = Literal["mean", "none", "sum"]

_CHUNK_BYTES = 2**28
"""Size of a chunk of logits in float32: 523 rows at V = 128,256, which a matrix product needs to be efficient."""

_CPU_FUSED_CHUNK_BYTES = 2**26
"""The same on a CPU: enough for the product, and what is done to the kept entries of a chunk stays in the cache."""

_CPU_CHUNK_BYTES = 2**23
"""The same without a matrix product: several passes over it should find it in the cache."""


class Loss(ABC):
    """A loss of rows: a frozen dataclass whose fields are its options. Calling it gives a value to call backward on.

    A row *counts* if its mask says so and it holds all that the loss needs: a label, at least one kept entry, … Rows
    that do not count are not computed: they give 0, get gradient 0, and are not in the mean's denominator. All is
    computed in float32 whatever the inputs are, or in float64 if they are.
    """

    name: ClassVar[str]
    """What `make_loss` calls it."""

    sees_kept_alone: ClassVar[bool] = False
    """Whether it is a `KeptSetLoss`, which the kernels of `logitstore.kernels` serve."""

    temperature: float = 1.0
    """The student's logits are divided by it, and the loss multiplied by its square."""

    @property
    @abstractmethod
    def needs(self) -> tuple[str, ...]:
        """The fields of `TeacherRows` that this loss reads."""

    @abstractmethod
    def step(self, buffer: Tensor, rows: TeacherRows, scale: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute ``n`` rows in the memory of their logits.

        Parameters
        ----------
        buffer
            ``(n, V)`` the student's logits, divided by the temperature; overwritten, with the gradient by them if
            ``scale`` is given.
        rows
            ``n`` rows, all of which count.
        scale
            ``(n,)`` what each row's gradient is multiplied by; None for no gradient.

        Returns
        -------
        tuple
            ``(n,)`` losses without ``scale``, and ``(n,)`` numbers worth logging, by name.
        """

    def members(self) -> tuple[tuple[float, Loss], ...]:
        """Return weights and losses that are computed one after the other and added up."""
        return ((1.0, self),)

    def counted(self, rows: TeacherRows) -> Tensor:
        """Return which rows count, bool of the rows' shape.

        Raises
        ------
        InvalidArgumentError
            If the rows lack a field that this loss needs.
        """
        device = next(iter(rows.given().values())).device
        counted = torch.ones(rows.shape, dtype=torch.bool, device=device) if rows.mask is None else rows.mask.bool()
        for name in self.needs:
            if getattr(rows, name) is None:
                raise InvalidArgumentError(f"{self.name} needs {name}; the rows hold {', '.join(rows.given())}")
            field = rows.need(name)
            if name == "ids":
                counted = counted & (field >= 0).any(-1)
            elif name == "labels":
                counted = counted & (field >= 0)
            elif name == "counts":
                counted = counted & (field != 0).any(-1)
            elif name in ("label_logprob", "lse", "lse_T"):
                counted = counted & ~field.isnan()
        return counted

    def __call__(
        self,
        logits: Tensor,
        rows: TeacherRows,
        *,
        reduction: Reduction = "mean",
        inplace: bool = False,
        chunk_rows: int | None = None,
        parts: dict[str, Tensor] | None = None,
    ) -> Tensor:
        """Compute the loss from the student's logits.

        Beside the logits there is a chunk of rows in float32, and in the backward pass their gradient. On a GPU with
        Triton there is no such chunk: the logits are read in their own type, see `logitstore.kernels`.

        Parameters
        ----------
        logits
            ``(R, V)`` or with more leading axes, raw logits of the student at temperature 1, any float type. Padding
            of the vocabulary must have been cut off.
        rows
            The teacher's rows, with the same leading axes.
        reduction
            "mean" over the rows that count (0 if none does), "sum", or "none": a loss per row.
        inplace
            Write the gradient over the logits, which are lost with this call: no second ``(R, V)``. The backward pass
            can then run once. (With kernels it may be the backward pass that writes.)
        chunk_rows
            Rows computed at a time; by default 256 MiB of float32, on a CPU 8 MiB.
        parts
            A dictionary that receives numbers worth logging: detached means over the rows that count.

        Returns
        -------
        Tensor
            Nats, float32 (float64 for float64 logits).

        Raises
        ------
        InvalidArgumentError
            If shapes differ, the rows lack a field, or an id or label does not fit the vocabulary.
        """
        V = logits.shape[-1]
        chunk_rows = _rows_in(_CPU_CHUNK_BYTES if logits.device.type == "cpu" else _CHUNK_BYTES, V, chunk_rows)
        job = self._job(rows, logits.shape, V, reduction, chunk_rows, keep_parts=parts is not None)
        result = plain_loss(job, logits.reshape(-1, V), inplace)
        job.give_parts(parts)
        return result.reshape(rows.shape) if reduction == "none" else result

    def fused(
        self,
        hidden: Tensor,
        weight: Tensor,
        rows: TeacherRows,
        *,
        bias: Tensor | None = None,
        reduction: Reduction = "mean",
        chunk_rows: int | None = None,
        parts: dict[str, Tensor] | None = None,
    ) -> Tensor:
        """Compute the loss from hidden states and the LM head, a chunk of rows at a time.

        The student's logits ``hidden @ weight.T + bias`` never exist but for a chunk. Gradients by all three are
        computed at once with the value, those of weight and bias summed up in float32, and multiplied by what comes
        from above in the backward pass, which can run once. (With "none", whose rows are not known to weigh the same,
        the backward pass computes everything a second time.) Under autocast the products run in its type.

        Parameters
        ----------
        hidden
            ``(R, H)`` or with more leading axes, what goes into the LM head.
        weight
            ``(V, H)`` of the LM head.
        bias
            ``(V,)`` or None.
        rows, reduction, parts
            As in `__call__`.
        chunk_rows
            Rows computed at a time; by default 256 MiB of logits in float32, on a CPU 64 MiB.

        Returns
        -------
        Tensor
            As in `__call__`.

        Raises
        ------
        InvalidArgumentError
            As in `__call__`, or if hidden and weight differ in width, or in type without autocast.
        """
        if weight.ndim != 2 or hidden.shape[-1] != weight.shape[1]:
            raise InvalidArgumentError(
                f"hidden (R, H) must fit weight (V, H); found {tuple(hidden.shape)} and {tuple(weight.shape)}"
            )
        chunk_bytes = _CPU_FUSED_CHUNK_BYTES if hidden.device.type == "cpu" else _CHUNK_BYTES
        chunk_rows = _rows_in(chunk_bytes, len(weight), chunk_rows)
        job = self._job(rows, hidden.shape, len(weight), reduction, chunk_rows, keep_parts=parts is not None)
        result = fused_loss(job, hidden.reshape(-1, hidden.shape[-1]), weight, bias)
        job.give_parts(parts)
        return result.reshape(rows.shape) if reduction == "none" else result

    def _job(
        self,
        rows: TeacherRows,
        shape: torch.Size,
        vocab_size: int,
        reduction: Reduction,
        chunk_rows: int,
        *,
        keep_parts: bool,
    ) -> Job:
        if shape[:-1] != rows.shape:
            raise InvalidArgumentError(
                f"the student's rows must be the teacher's; found {tuple(shape[:-1])} and {tuple(rows.shape)}"
            )
        check_choice("reduction", reduction, get_args(Reduction))
        if chunk_rows < 1:
            raise InvalidArgumentError(f"chunk_rows must be at least 1, not {chunk_rows}")
        for name in ("ids", "labels"):
            if name in self.needs and (found := rows.need(name)).numel() and int(found.max()) >= vocab_size:
                raise InvalidArgumentError(
                    f"{name} must be smaller than the student's vocabulary, {vocab_size}; found {int(found.max())}"
                )
        if "full_logits" in self.needs and rows.need("full_logits").shape[-1] != vocab_size:
            raise InvalidArgumentError(
                f"teacher and student must share a vocabulary; found {rows.need('full_logits').shape[-1]} logits"
                f" against {vocab_size}"
            )
        flat = rows.flat()
        counted = self.counted(flat)
        # Only what is read: the rest need not be gathered.
        flat = type(flat)(**{name: flat.need(name) for name in self.needs})
        return Job(self.members(), flat, counted, reduction, chunk_rows, {} if keep_parts else None)


def _rows_in(chunk_bytes: int, vocab_size: int, chunk_rows: int | None) -> int:
    return max(1, chunk_bytes // (4 * max(1, vocab_size))) if chunk_rows is None else chunk_rows


def check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise InvalidArgumentError unless the value is one of those allowed."""
    if value not in allowed:
        raise InvalidArgumentError(f"{name} must be one of {', '.join(allowed)}, not {value!r}")


def check_temperature(name: str, value: float) -> None:
    """Raise InvalidArgumentError unless the value is positive and finite."""
    if not 0 < value < float("inf"):
        raise InvalidArgumentError(f"{name} must be positive and finite, not {value!r}")
