from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import torch

from logitstore.errors import InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

__all__ = ["TeacherRows"]

_PER_ENTRY = frozenset({"counts", "full_logits", "ids", "logprobs"})
"""Fields with one more axis than there are rows."""

_IN_BATCHES = ("ids", "logprobs", "lse", "label_logprob", "labels", "mask", "counts")


@dataclass(frozen=True, kw_only=True)
class TeacherRows:
    """What the teacher said about a batch of rows: tensors of one device, all optional; a loss says what it needs.

    Leading axes may be ``(R,)`` or anything that the student's logits have, ``(B, T)`` say. Row ``t`` is about the
    *next* token: its label is token ``t + 1``, and it belongs to the student's logits after token ``t``. Nothing here
    shifts anything.

    Attributes
    ----------
    ids
        ``(R, K)`` int32 or int64, kept token ids, unique within a row; unused slots hold -1, wherever they stand.
        (A uint32 array of a store, seen as int32, has its unused slots so.)
    logprobs
        ``(R, K)`` float, log-probabilities in nats over the *whole* vocabulary at temperature 1, not renormalised.
        Unused slots are not looked at.
    lse
        ``(R,)`` float, log-sum-exp of the teacher's logits: ``logprobs + lse`` is the raw logit.
    lse_T
        ``(R,)`` float, log-sum-exp of the teacher's logits divided by the temperature of the loss.
    label_logprob
        ``(R,)`` float, the teacher's log-probability of the label, kept or not; NaN where there is none.
    labels
        ``(R,)`` int64, the token to predict; negative (-100) where there is none.
    mask
        ``(R,)`` bool or uint8, true where the row is a training target; None takes all rows.
    counts
        ``(R, K)`` integer, how often each id was drawn, for random-sampling distillation.
    full_logits
        ``(R, V)`` float, all logits of a teacher that runs along.

    Raises
    ------
    InvalidArgumentError
        If the shapes do not belong together, or ids are unsigned.

    Examples
    --------
    >>> rows = TeacherRows(ids=torch.tensor([[5, 2], [7, -1]]), logprobs=torch.tensor([[-0.2, -2.0], [-0.1, 0.0]]))
    >>> rows.shape
    torch.Size([2])
    """

    ids: Tensor | None = None
    logprobs: Tensor | None = None
    lse: Tensor | None = None
    lse_T: Tensor | None = None
    label_logprob: Tensor | None = None
    labels: Tensor | None = None
    mask: Tensor | None = None
    counts: Tensor | None = None
    full_logits: Tensor | None = None

    def __post_init__(self) -> None:
        given = self.given()
        shapes = {
            name: tuple(tensor.shape[:-1] if name in _PER_ENTRY else tensor.shape) for name, tensor in given.items()
        }
        if not shapes:
            raise InvalidArgumentError("teacher rows must hold at least one tensor")
        if len(set(shapes.values())) > 1:
            raise InvalidArgumentError(f"all tensors must have the same rows; found {shapes}")
        slots = {name: given[name].shape[-1] for name in ("ids", "logprobs", "counts") if name in given}
        if len(set(slots.values())) > 1:
            raise InvalidArgumentError(f"ids, logprobs and counts must have the same slots; found {slots}")
        for name in ("ids", "labels"):
            if name in given and given[name].dtype not in (torch.int32, torch.int64):
                raise InvalidArgumentError(
                    f"{name} must be int32 or int64 with negative numbers for none, not {given[name].dtype}"
                )

    @classmethod
    def from_batch(cls, batch: Mapping[str, Tensor]) -> TeacherRows:
        """Take what a batch of `logitstore.stream` has of the teacher.

        But for ``lse_T``, which has a column per temperature where a loss wants one. Raw ``logits`` are not taken
        either: ``Collate(values="logprob")`` makes them logprobs.

        Examples
        --------
        >>> batch = {"tokens": torch.tensor([[3, 1]]), "labels": torch.tensor([[1, -100]])}
        >>> TeacherRows.from_batch(batch).given()
        {'labels': tensor([[   1, -100]])}
        """
        return cls(**{name: batch[name] for name in _IN_BATCHES if name in batch})

    @property
    def shape(self) -> torch.Size:
        """Shape of the rows, without slots or vocabulary."""
        name, tensor = next(iter(self.given().items()))
        return tensor.shape[:-1] if name in _PER_ENTRY else tensor.shape

    def given(self) -> dict[str, Tensor]:
        """Return the fields that are not None."""
        named = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {name: tensor for name, tensor in named if tensor is not None}

    def flat(self) -> TeacherRows:
        """Return the same rows along a single axis."""
        return TeacherRows(
            **{
                name: tensor.reshape(-1, tensor.shape[-1]) if name in _PER_ENTRY else tensor.reshape(-1)
                for name, tensor in self.given().items()
            }
        )

    def select(self, where: slice | Tensor) -> TeacherRows:
        """Return some of the rows, by slice (no copy) or by an int64 tensor of row numbers."""
        return TeacherRows(**{name: tensor[where] for name, tensor in self.given().items()})

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> TeacherRows:
        """Return the same rows on another device."""
        return TeacherRows(
            **{name: tensor.to(device, non_blocking=non_blocking) for name, tensor in self.given().items()}
        )

    def need(self, name: str) -> Tensor:
        """Return a field.

        Raises
        ------
        InvalidArgumentError
            If it is None.
        """
        tensor: Tensor | None = getattr(self, name)
        if tensor is None:
            raise InvalidArgumentError(f"this loss needs {name}; the rows hold {', '.join(self.given())}")
        return tensor
