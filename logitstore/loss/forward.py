from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

import torch

from logitstore.errors import InvalidArgumentError
from logitstore.loss.base import check_choice, check_temperature
from logitstore.loss.kept import KeptSetLoss, StudentRows, Target, Terms
from logitstore.loss.teacher import dot, kept_and_outside, renormalised

if TYPE_CHECKING:
    from torch import Tensor

    from logitstore.kernels.one_pass import RowSums
    from logitstore.loss.rows import TeacherRows

__all__ = ["ForwardKL", "Outside", "SampledKL"]

Outside = Literal["renorm", "residual", "submass", "tail"]


@dataclass(frozen=True)
class ForwardKL(KeptSetLoss):
    r"""Kullback-Leibler divergence from the teacher to the student over the kept ids, in nats.

    p is the teacher, q the student, both over the whole vocabulary; S the kept ids, a and b the masses of p and q on
    S, y the label. What becomes of the teacher's mass outside, 1 - a:

    "renorm"
        dropped, and the rest scaled up: :math:`\sum_S (p/a) \log((p/a)/q)`. Biased: the optimum is q = p/a on S and 0
        outside, a student that is too sure.
    "submass"
        dropped: :math:`\sum_S p (\log p - \log q)`, which is sum_S p (log p - z) + a log Z with the student's logits z.
        The same biased optimum; each row weighs a instead of 1. Can be negative.
    "tail"
        one more token, the "ghost", that stands for all others:
        :math:`\sum_S p \log(p/q) + (1-a) \log((1-a)/(1-b))`. Not biased on S: the optimum is q = p there, and any
        split of 1 - a outside. Nothing is learnt about that split: the student keeps its own proportions.
    "residual"
        given to the label: the target is p + (1-a) onehot(y). Biased towards S, as a label inside S gets it too: on
        average over labels drawn from p, the target is (2-a) p on S and (1-a) p outside.

    With k = V all four are the full divergence. Gradient flows to all of the student's logits, since q is normalised
    over the whole vocabulary: q - target ("renorm", "residual"), a q - target ("submass"), where the target is 0
    outside S but for the label; with "tail", q - p on S and q - (1-a) q/(1-b) outside.

    Temperature: p and q are those of logits divided by T, and the loss is multiplied by T squared so that gradients
    keep their size (Hinton et al. 2015). "renorm" is exact from what is kept. "submass" and "tail" need the teacher's
    log-sum-exp at T (``lse_T``, stored by ``logitstore build --temperature``). Beware: heat moves mass out of S. At
    T = 4 a top-128 set of a 30B teacher held 2.8 % of the mass, so "renorm" is then about a small sample of the
    distribution, and "tail" mostly about its one ghost.

    Needs ids, logprobs; labels for "residual"; lse and lse_T for a temperature, except with "renorm".

    Parameters
    ----------
    outside
        "renorm", "submass", "tail" or "residual".
    temperature
        T, positive; 1 with "residual", as a label has no temperature.

    Raises
    ------
    InvalidArgumentError
        If an option is out of its range, or "residual" comes with a temperature.

    Examples
    --------
    Teacher 0.5, 0.25 and a quarter outside; a student that says 0.25 to each of four tokens. "tail" is
    0.5 log 2 + 0.25 log(0.25 / 0.5) = 0.1733; "renorm" is 2/3 log(8/3) + 1/3 log(4/3) = 0.7498.

    >>> from logitstore.loss import TeacherRows
    >>> rows = TeacherRows(ids=torch.tensor([[2, 0]]), logprobs=torch.tensor([[0.5, 0.25]]).log())
    >>> logits = torch.zeros(1, 4, requires_grad=True)
    >>> ForwardKL("renorm")(logits, rows)
    tensor(0.7498, grad_fn=<_FromLogitsBackward>)
    >>> loss = ForwardKL("tail")(logits, rows)
    >>> loss
    tensor(0.1733, grad_fn=<_FromLogitsBackward>)
    >>> loss.backward()
    >>> logits.grad
    tensor([[ 0.0000,  0.1250, -0.2500,  0.1250]])

    References
    ----------
    "renorm": DistillKit ("zero"), Axolotl. "submass": arXiv 2608.03796. "tail": Megatron-LM, TRL, DistillKit.
    "residual": compared in arXiv 2503.16870. Temperature: Hinton, Vinyals, Dean, arXiv 1503.02531.
    """

    name: ClassVar[str] = "forward_kl"
    outside: Outside = "tail"
    temperature: float = 1.0

    def __post_init__(self) -> None:
        check_choice("outside", self.outside, get_args(Outside))
        check_temperature("temperature", self.temperature)
        if self.outside == "residual" and self.temperature != 1:
            raise InvalidArgumentError(f"temperature must be 1 with outside='residual', not {self.temperature!r}")

    @property
    def needs(self) -> tuple[str, ...]:
        """See `Loss.needs`."""
        fields = ("ids", "logprobs")
        if self.outside == "residual":
            return (*fields, "labels")
        return (*fields, "lse", "lse_T") if self.temperature != 1 and self.outside != "renorm" else fields

    def terms(self, student: StudentRows, rows: TeacherRows) -> Terms:
        """See `KeptSetLoss.terms`."""
        if self.outside == "renorm":
            logs = renormalised(rows, student, self.temperature)
            target = logs.exp()
            return Terms(dot(target, logs - student.kept), kept=-target)
        logs, outside = kept_and_outside(rows, student, self.temperature)
        target = logs.exp()
        if self.outside == "submass":
            return Terms(dot(target, logs - student.kept), kept=-target)
        if self.outside == "tail":
            value = (
                dot(target, logs - student.kept)
                + torch.xlogy(outside, outside)
                - dot(outside[:, None], student.rest[:, None])
            )
            return Terms(value, kept=-target, rest=-outside)
        labels = rows.need("labels")
        at_label = rows.need("ids") == labels[:, None]
        target = target + outside[:, None] * at_label
        outside = torch.where(at_label.any(1), torch.zeros_like(outside), outside)
        value = dot(target, target.log() - student.kept) + torch.xlogy(outside, outside)
        return Terms(value - dot(outside[:, None], student.label[:, None]), kept=-target, label=-outside)

    @property
    def target(self) -> Target | None:
        """See `KeptSetLoss.target`."""
        if self.temperature != 1 or self.outside == "residual":
            return None
        return Target(renorm=self.outside == "renorm", tail=self.outside == "tail")

    def value_of(self, sums: RowSums, rows: TeacherRows) -> tuple[Tensor, dict[str, Tensor]]:  # noqa: ARG002
        """See `KeptSetLoss.value_of`."""
        value = sums.entropy - sums.cross
        if self.outside == "renorm":
            return value / sums.mass - sums.mass.log(), {}
        if self.outside == "tail":
            outside = sums.outside
            value = value + torch.xlogy(outside, outside) - dot(outside[:, None], sums.rest[:, None])
        return value, {}


@dataclass(frozen=True)
class SampledKL(KeptSetLoss):
    r"""Random-sampling distillation: the divergence from the shares of N draws of the teacher to the student, in nats.

    .. math:: \sum_i (c_i/N) \log\frac{c_i/N}{q_i}

    with c the counts of a row, N their sum (it may differ from row to row), and q the student over the whole
    vocabulary. Ids with count 0 (a top-k set stored beside the draws) are ignored, and so are log-probabilities.

    The draws cover the whole vocabulary in proportion to p, so nothing is left out: the expectation of c/N is p, and
    the gradient, q - c/N, is in expectation that of the full divergence: unbiased. The *value* is not: it is larger
    than the full divergence on average, by the entropy that N draws lack.

    Gradient flows to all logits. Needs ids and counts. No temperature: the draws were made at one.

    Examples
    --------
    Three of four draws hit token 2: 0.75 log(0.75 / 0.25) + 0.25 log(0.25 / 0.25) = 0.8240.

    >>> from logitstore.loss import TeacherRows
    >>> rows = TeacherRows(ids=torch.tensor([[2, 0]]), counts=torch.tensor([[3, 1]], dtype=torch.uint8))
    >>> logits = torch.zeros(1, 4, requires_grad=True)
    >>> loss = SampledKL()(logits, rows)
    >>> loss
    tensor(0.8240, grad_fn=<_FromLogitsBackward>)
    >>> loss.backward()
    >>> logits.grad
    tensor([[ 0.0000,  0.2500, -0.5000,  0.2500]])

    References
    ----------
    Sparse Logit Sampling: Accelerating Knowledge Distillation in LLMs. ACL 2025, arXiv 2503.16870.
    """

    name: ClassVar[str] = "sampled_kl"

    @property
    def needs(self) -> tuple[str, ...]:
        """See `Loss.needs`."""
        return ("ids", "counts")

    def terms(self, student: StudentRows, rows: TeacherRows) -> Terms:
        """See `KeptSetLoss.terms`."""
        counts = rows.need("counts").to(student.kept.dtype) * student.used
        target = counts / counts.sum(1, keepdim=True).clamp(min=1)
        return Terms(dot(target, target.log() - student.kept), kept=-target)
