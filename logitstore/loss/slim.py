from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

import torch

from logitstore.loss.base import check_choice
from logitstore.loss.kept import KeptSetLoss, StudentRows, Target, Terms
from logitstore.loss.teacher import dot, kept_and_outside, renormalised

if TYPE_CHECKING:
    from torch import Tensor

    from logitstore.kernels.one_pass import RowSums
    from logitstore.loss.rows import TeacherRows

__all__ = ["Slim", "Support", "Weight"]

Support = Literal["renorm", "submass", "zero_logit"]
Weight = Literal["eq4", "text"]


@dataclass(frozen=True)
class Slim(KeptSetLoss):
    r"""SLIM: cross-entropy on the label, plus cross-entropy on the teacher's kept logits with a weight per row.

    With p the teacher, q the student, y the label and S the kept ids,

    .. math:: L = -\log q(y) + w \left( -\sum_{v \in S} \tilde p(v) \log q(v) \right)

    in nats. w lies between 0 and 1 and is a number: no gradient flows through it. Gradient flows through log q(y) and
    log q(v), hence through all of the student's logits.

    What is known. The paper keeps the top 5 % of the teacher's logits of each token and takes the rest as zeros; its
    loss is a weighted sum of cross-entropy and a KL term; the KL term's weight is set per token from the ratio of the
    teacher's and the student's confidence, and is larger where the teacher is the more confident.

    What is our reading, as the paper does not say or contradicts itself:

    * ``weight``: the paper's text and its equation 4 put the ratio opposite ways up, so both are here. "text" is
      ``w = 1 - exp(-p(y) / q(y))``, near 1 where the teacher is surer of the label than the student. "eq4" is
      ``w = 1 - exp(-q(y) / p(y))``, as printed.
    * ``support``: whether the kept set is renormalised, and whether the "zeros" are logits or probabilities. "renorm"
      is p / sum_S p. "submass" is p as it is: the zeros are probabilities. "zero_logit" is the softmax over the
      vocabulary of the kept raw logits and 0 for every other token, of which the sum above takes the ids in S.
    * Temperature 1. Cross-entropy instead of KL: they differ by the teacher's entropy, which has no gradient.

    Mass outside S is left out of the sum, so the second term is biased: with every support its optimum alone is
    q = p / sum_S p on S and 0 outside. The supports differ in how much a row weighs: 1, or sum_S p, or with
    "zero_logit" a share that depends on where the teacher's logits happen to lie, since zeros, unlike a softmax, are
    not blind to an offset. The label's term sees all of the vocabulary.

    Needs ids, logprobs, labels, label_logprob; and lse for "zero_logit". Rows without a label do not count. Parts:
    cross_entropy and distillation, which add up to the loss; kept_cross_entropy and weight, the factors of the latter.

    Parameters
    ----------
    weight
        "text" or "eq4".
    support
        "renorm", "submass" or "zero_logit".

    Raises
    ------
    InvalidArgumentError
        For any other word.

    Examples
    --------
    The teacher gives the label 0.5, the student one quarter: w = 1 - exp(-2) = 0.8647. Renormalised over the two kept
    ids the teacher says 2/3 and 1/3, the student log 4 = 1.3863 everywhere, so L = 1.3863 + 0.8647 * 1.3863.

    >>> from logitstore.loss import TeacherRows
    >>> p = torch.tensor([[0.5, 0.25]])
    >>> rows = TeacherRows(ids=torch.tensor([[2, 0]]), logprobs=p.log(), labels=torch.tensor([2]),
    ...                    label_logprob=p[:, 0].log())
    >>> logits = torch.zeros(1, 4, requires_grad=True)
    >>> loss = Slim()(logits, rows)
    >>> loss
    tensor(2.5850, grad_fn=<_FromLogitsBackward>)
    >>> loss.backward()
    >>> logits.grad
    tensor([[ 0.1779,  0.4662, -1.1103,  0.4662]])

    References
    ----------
    Raman, Mani, Liang, Lipton: For Distillation, Tokens Are Not All You Need. NeurIPS 2023 workshop on instruction
    tuning, openreview 2fc5GOPYip.
    """

    name: ClassVar[str] = "slim"
    weight: Weight = "text"
    support: Support = "renorm"

    def __post_init__(self) -> None:
        check_choice("weight", self.weight, get_args(Weight))
        check_choice("support", self.support, get_args(Support))

    @property
    def needs(self) -> tuple[str, ...]:
        """See `Loss.needs`."""
        fields = ("ids", "logprobs", "labels", "label_logprob")
        return (*fields, "lse") if self.support == "zero_logit" else fields

    def terms(self, student: StudentRows, rows: TeacherRows) -> Terms:
        """See `KeptSetLoss.terms`."""
        target = self._target(student, rows)
        value, parts = self._joined(student.label, rows, -dot(target, student.kept))
        w = parts["weight"]
        return Terms(value, kept=-w[:, None] * target, label=-torch.ones_like(w), parts=parts)

    @property
    def target(self) -> Target | None:
        """See `KeptSetLoss.target`."""
        if self.support == "zero_logit":
            return None
        return Target(renorm=self.support == "renorm", label=True, weight=self.weight)

    def value_of(self, sums: RowSums, rows: TeacherRows) -> tuple[Tensor, dict[str, Tensor]]:
        """See `KeptSetLoss.value_of`."""
        kept = -sums.cross / sums.mass if self.support == "renorm" else -sums.cross
        return self._joined(sums.label, rows, kept)

    def _joined(self, label: Tensor, rows: TeacherRows, kept: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and its parts, given log q of the label and the cross-entropy on the kept ids."""
        w = self._weight(label, rows)
        parts = {"cross_entropy": -label, "distillation": w * kept, "kept_cross_entropy": kept, "weight": w}
        return parts["cross_entropy"] + parts["distillation"], parts

    def _weight(self, label: Tensor, rows: TeacherRows) -> Tensor:
        # log of teacher over student; exp overflows to infinity, where w is 1.
        ratio = rows.need("label_logprob").to(label.dtype) - label
        return -torch.expm1(-torch.exp(ratio if self.weight == "text" else -ratio))

    def _target(self, student: StudentRows, rows: TeacherRows) -> Tensor:
        if self.support == "renorm":
            return renormalised(rows, student).exp()
        logprobs, _ = kept_and_outside(rows, student)
        if self.support == "submass":
            return logprobs.exp()
        logits = logprobs + rows.need("lse").to(logprobs.dtype)[:, None]
        zeros = (student.vocab_size - student.used.sum(1)).to(logits.dtype).log()
        return (logits - torch.logaddexp(logits.logsumexp(1), zeros)[:, None]).exp()
