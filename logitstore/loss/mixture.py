from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from logitstore.errors import InvalidArgumentError
from logitstore.loss.baselines import CrossEntropy
from logitstore.loss.kept import KeptSetLoss, StudentRows, Terms

if TYPE_CHECKING:
    from logitstore.loss.base import Loss
    from logitstore.loss.rows import TeacherRows

__all__ = ["Mixture"]


@dataclass(frozen=True)
class Mixture(KeptSetLoss):
    """A loss mixed with cross-entropy on the label: ``(1 - ce_weight) * loss + ce_weight * cross_entropy``, in nats.

    What happens outside the kept ids, and what gradient flows, is what both say; the label's term sees the whole
    vocabulary at temperature 1, whatever the temperature of the other. A row counts if it counts for both: one
    denominator for both means. Needs what the loss needs, and labels. Parts: both values by the names of the losses,
    before they are weighed, and the parts of the loss.

    Parameters
    ----------
    loss
        Any loss that is not a mixture itself.
    ce_weight
        Between 0 and 1.

    Raises
    ------
    InvalidArgumentError
        If the weight is out of its range, or the loss a mixture.

    Examples
    --------
    >>> from logitstore.loss import ForwardKL, TeacherRows
    >>> rows = TeacherRows(ids=torch.tensor([[2, 0]]), logprobs=torch.tensor([[0.5, 0.25]]).log(),
    ...                    labels=torch.tensor([2]))
    >>> parts = {}
    >>> Mixture(ForwardKL("tail"), ce_weight=0.1)(torch.zeros(1, 4), rows, parts=parts)
    tensor(0.2946)
    >>> parts
    {'forward_kl': tensor(0.1733), 'cross_entropy': tensor(1.3863)}
    """

    name: ClassVar[str] = "mixture"
    loss: Loss
    ce_weight: float

    def __post_init__(self) -> None:
        if not 0 <= self.ce_weight <= 1:
            raise InvalidArgumentError(f"ce_weight must lie between 0 and 1, not {self.ce_weight!r}")
        if isinstance(self.loss, Mixture):
            raise InvalidArgumentError("a mixture must be of one loss and cross-entropy; found a mixture inside")

    @property
    def needs(self) -> tuple[str, ...]:
        """See `Loss.needs`."""
        return tuple(dict.fromkeys((*self.loss.needs, "labels")))

    def members(self) -> tuple[tuple[float, Loss], ...]:
        """See `Loss.members`."""
        if isinstance(self.loss, KeptSetLoss) and self.loss.temperature == 1:
            # One softmax serves both.
            return ((1.0, self),)
        return ((1 - self.ce_weight, self.loss), (self.ce_weight, CrossEntropy()))

    def terms(self, student: StudentRows, rows: TeacherRows) -> Terms:
        """See `KeptSetLoss.terms`."""
        assert isinstance(self.loss, KeptSetLoss)
        inner, share = self.loss.terms(student, rows), 1 - self.ce_weight
        label = torch.full_like(student.label, -self.ce_weight)
        return Terms(
            value=inner.value * share - student.label * self.ce_weight,
            kept=None if inner.kept is None else inner.kept * share,
            rest=None if inner.rest is None else inner.rest * share,
            label=label if inner.label is None else label.add_(inner.label, alpha=share),
            parts={self.loss.name: inner.value, "cross_entropy": -student.label, **inner.parts},
        )
