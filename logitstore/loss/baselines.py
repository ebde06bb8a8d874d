"""What the losses of stored rows are compared with: the label alone, and a teacher that runs along."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from logitstore.loss.base import Loss, check_temperature
from logitstore.loss.kept import KeptSetLoss, StudentRows, Target, Terms

if TYPE_CHECKING:
    from torch import Tensor

    from logitstore.kernels.one_pass import RowSums
    from logitstore.loss.rows import TeacherRows

__all__ = ["CrossEntropy", "FullKL"]


@dataclass(frozen=True)
class CrossEntropy(KeptSetLoss):
    """Cross-entropy on the label, -log q(y) in nats: supervised fine-tuning, or plain language modelling.

    Equal to `torch.nn.functional.cross_entropy`. There is no teacher, so nothing is left out; gradient flows to all
    logits: q - onehot(y). Needs labels.

    Examples
    --------
    >>> from logitstore.loss import TeacherRows
    >>> CrossEntropy()(torch.zeros(2, 4), TeacherRows(labels=torch.tensor([3, -100])))
    tensor(1.3863)
    """

    name: ClassVar[str] = "cross_entropy"

    @property
    def needs(self) -> tuple[str, ...]:
        """See `Loss.needs`."""
        return ("labels",)

    def terms(self, student: StudentRows, rows: TeacherRows) -> Terms:  # noqa: ARG002 - the label is in the student
        """See `KeptSetLoss.terms`."""
        return Terms(-student.label, label=-torch.ones_like(student.label))

    @property
    def target(self) -> Target | None:
        """See `KeptSetLoss.target`."""
        return Target(kept=False, label=True)

    def value_of(self, sums: RowSums, rows: TeacherRows) -> tuple[Tensor, dict[str, Tensor]]:  # noqa: ARG002
        """See `KeptSetLoss.value_of`."""
        return -sums.label, {}


@dataclass(frozen=True)
class FullKL(Loss):
    r"""Vanilla distillation: the divergence from a live teacher to the student over the whole vocabulary.

    .. math:: T^2 \sum_v p_T(v) \log\frac{p_T(v)}{q_T(v)}

    in nats; p_T and q_T are the softmax of both logits divided by T. Nothing is left out, nothing is biased, and the
    teacher's logits ``(R, V)`` must be there. Gradient flows to all of the student's logits, T (q_T - p_T); none to
    the teacher's. Needs full_logits.

    Parameters
    ----------
    temperature
        T, positive.

    Raises
    ------
    InvalidArgumentError
        If it is not.

    Examples
    --------
    >>> from logitstore.loss import TeacherRows
    >>> teacher = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log()
    >>> FullKL()(torch.zeros(1, 4), TeacherRows(full_logits=teacher))
    tensor(0.1733)

    References
    ----------
    Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network, arXiv 1503.02531.
    """

    name: ClassVar[str] = "full_kl"
    temperature: float = 1.0

    def __post_init__(self) -> None:
        check_temperature("temperature", self.temperature)

    @property
    def needs(self) -> tuple[str, ...]:
        """See `Loss.needs`."""
        return ("full_logits",)

    def step(self, buffer: Tensor, rows: TeacherRows, scale: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Loss.step`."""
        log_p = (rows.need("full_logits").to(buffer.dtype) / self.temperature).log_softmax(1)
        # Against the largest logit first, as in the kept-set losses.
        buffer.sub_(buffer.amax(1, keepdim=True))
        buffer.sub_(buffer.logsumexp(1, keepdim=True))
        p = log_p.exp()
        # Where p is 0, its logarithm may be infinite.
        value = log_p.sub_(buffer).mul_(p).masked_fill_(p == 0, 0).sum(1)
        if scale is not None:
            buffer.exp_().sub_(p).mul_(scale[:, None])
        return value, {}
