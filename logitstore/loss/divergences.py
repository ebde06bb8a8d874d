"""Divergences that weigh by the student as well: over the kept ids and one bucket that stands for all others."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from logitstore.errors import InvalidArgumentError
from logitstore.loss.base import check_temperature
from logitstore.loss.kept import KeptSetLoss, StudentRows, Terms
from logitstore.loss.teacher import dot, kept_and_outside

if TYPE_CHECKING:
    from torch import Tensor

    from logitstore.loss.rows import TeacherRows

__all__ = ["TAIL_FLOOR", "JensenShannon", "ReverseKL", "TotalVariation"]

TAIL_FLOOR = 1e-4
"""Smallest teacher's mass outside the kept ids that `ReverseKL` divides by: float16 cannot tell it from 0."""


class _Bucketed(KeptSetLoss):
    """Puts the bucket behind the kept ids, so that a divergence sees two distributions of K + 1 numbers."""

    @property
    def needs(self) -> tuple[str, ...]:
        """See `Loss.needs`."""
        return ("ids", "logprobs", "lse", "lse_T") if self.temperature != 1 else ("ids", "logprobs")

    def divergence(self, log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
        """Return value ``(n,)`` and derivative ``(n, K + 1)`` by log q, given both as ``(n, K + 1)`` logarithms."""
        raise NotImplementedError

    def terms(self, student: StudentRows, rows: TeacherRows) -> Terms:
        """See `KeptSetLoss.terms`."""
        log_p, outside = kept_and_outside(rows, student, self.temperature)
        value, by_log_q = self.divergence(
            torch.cat([log_p, outside.log()[:, None]], 1), torch.cat([student.kept, student.rest[:, None]], 1)
        )
        return Terms(value, kept=by_log_q[:, :-1], rest=by_log_q[:, -1])


@dataclass(frozen=True)
class ReverseKL(_Bucketed):
    r"""Kullback-Leibler divergence from the student to the teacher, with a bucket for all ids that are not kept.

    .. math:: \sum_S q \log(q/p) + (1-b) \log\frac{1-b}{1-a}

    in nats; p the teacher, q the student, S the kept ids, a and b the masses of p and q on S. Seeks modes: it charges
    the student for what it says and the teacher does not.

    Mass outside S is compared as a whole: a lower bound of the full reverse divergence, with the same optimum on S
    (q = p) and no opinion on how the student spreads the rest. The exact one needs all of p. A teacher's 1 - a below
    `TAIL_FLOOR` is taken for that, else a student's first step outside would cost infinitely much.

    Gradient flows to all logits: with r = log(q/p), of the bucket outside S, it is q (r - sum q r).

    Temperature: as in `ForwardKL` "tail", squared factor included; needs lse and lse_T, and at T = 4 a top-128 set of
    a 30B teacher held 2.8 % of the mass: nearly all is in the bucket.

    Needs ids, logprobs; and lse, lse_T for a temperature.

    Examples
    --------
    0.25 log(0.25 / 0.5) + 0.25 log(0.25 / 0.25) + 0.5 log(0.5 / 0.25) = 0.1733.

    >>> from logitstore.loss import TeacherRows
    >>> rows = TeacherRows(ids=torch.tensor([[2, 0]]), logprobs=torch.tensor([[0.5, 0.25]]).log())
    >>> logits = torch.zeros(1, 4, requires_grad=True)
    >>> loss = ReverseKL()(logits, rows)
    >>> loss
    tensor(0.1733, grad_fn=<_FromLogitsBackward>)
    >>> loss.backward()
    >>> logits.grad
    tensor([[-0.0433,  0.1300, -0.2166,  0.1300]])

    References
    ----------
    MiniLLM, arXiv 2306.08543 (over the full vocabulary); the bucket as in TRL.
    """

    name: ClassVar[str] = "reverse_kl"
    temperature: float = 1.0

    def __post_init__(self) -> None:
        check_temperature("temperature", self.temperature)

    def divergence(self, log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
        """See `_Bucketed.divergence`."""
        log_p = torch.cat([log_p[:, :-1], log_p[:, -1:].clamp(min=math.log(TAIL_FLOOR))], 1)
        # A logarithm of 0 stands for nothing to compare: q is 0 there, or the slot is unused.
        ratio = torch.where(log_q == -torch.inf, torch.zeros_like(log_q), log_q - log_p)
        by_log_q = log_q.exp() * ratio
        return by_log_q.sum(1), by_log_q


@dataclass(frozen=True)
class JensenShannon(_Bucketed):
    r"""Generalised Jensen-Shannon divergence with a bucket for all ids that are not kept.

    .. math:: \beta KL(p \| m) + (1-\beta) KL(q \| m), \quad m = \beta p + (1-\beta) q

    in nats; p the teacher and q the student on S, and their masses outside, 1 - a and 1 - b, as one more token. Bounded
    by the entropy of beta. Divided by beta it tends to the forward divergence as beta falls to 0, divided by 1 - beta
    to the reverse one as it rises to 1.

    Mass outside S is compared as a whole: a lower bound of the full divergence, with the same optimum on S (q = p) and
    no opinion on how the student spreads the rest. Gradient flows to all logits: with r = log(q/m), of the bucket
    outside S, it is (1-beta) q (r - sum q r).

    Temperature: as in `ForwardKL` "tail", squared factor included; needs lse and lse_T, and at T = 4 a top-128 set of
    a 30B teacher held 2.8 % of the mass: nearly all is in the bucket.

    Needs ids, logprobs; and lse, lse_T for a temperature.

    Parameters
    ----------
    beta
        Weight of the teacher in the mixture, between 0 and 1, both excluded.
    temperature
        T, positive.

    Raises
    ------
    InvalidArgumentError
        If an option is out of its range.

    Examples
    --------
    Teacher (0.5, 0.25, rest 0.25), student (0.25, 0.25, rest 0.5), so m = (0.375, 0.25, 0.375), and both divergences
    are 0.5 log(4/3) + 0.25 log(2/3) = 0.0425.

    >>> from logitstore.loss import TeacherRows
    >>> rows = TeacherRows(ids=torch.tensor([[2, 0]]), logprobs=torch.tensor([[0.5, 0.25]]).log())
    >>> logits = torch.zeros(1, 4, requires_grad=True)
    >>> loss = JensenShannon(beta=0.5)(logits, rows)
    >>> loss
    tensor(0.0425, grad_fn=<_FromLogitsBackward>)
    >>> loss.backward()
    >>> logits.grad
    tensor([[-0.0053,  0.0307, -0.0560,  0.0307]])

    References
    ----------
    On-Policy Distillation of Language Models (GKD), arXiv 2306.13649.
    """

    name: ClassVar[str] = "jensen_shannon"
    beta: float = 0.5
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.beta < 1:
            raise InvalidArgumentError(
                f"beta must lie between 0 and 1, both excluded, not {self.beta!r};"
                " the limits are forward_kl and reverse_kl"
            )
        check_temperature("temperature", self.temperature)

    def divergence(self, log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
        """See `_Bucketed.divergence`."""
        beta = self.beta
        log_m = torch.logaddexp(log_p + math.log(beta), log_q + math.log1p(-beta))
        p, q = log_p.exp(), log_q.exp()
        by_log_q = (1 - beta) * (q * (log_q - log_m)).masked_fill_(q == 0, 0)
        return beta * dot(p, log_p - log_m) + by_log_q.sum(1), by_log_q


@dataclass(frozen=True)
class TotalVariation(_Bucketed):
    r"""Total variation distance with a bucket for all ids that are not kept.

    .. math:: \frac12 \left( \sum_S |p - q| + |b - a| \right)

    Between 0 and 1, without a unit; p the teacher, q the student, a and b their masses on S. Mass outside S is
    compared as a whole: a lower bound of the full distance, with the same optimum on S. Gradient flows to all logits:
    with r = sign(q - p) / 2, of the bucket outside S, it is q (r - sum q r). Where p and q are equal, r is 0.

    Temperature: as in `ForwardKL` "tail", squared factor included; needs lse and lse_T, and at T = 4 a top-128 set of
    a 30B teacher held 2.8 % of the mass: nearly all is in the bucket.

    Needs ids, logprobs; and lse, lse_T for a temperature.

    Examples
    --------
    Half of |0.5 - 0.25| + |0.25 - 0.25| + |0.25 - 0.5|.

    >>> from logitstore.loss import TeacherRows
    >>> rows = TeacherRows(ids=torch.tensor([[2, 0]]), logprobs=torch.tensor([[0.5, 0.25]]).log())
    >>> TotalVariation()(torch.zeros(1, 4), rows)
    tensor(0.2500)

    References
    ----------
    DistillKit.
    """

    name: ClassVar[str] = "total_variation"
    temperature: float = 1.0

    def __post_init__(self) -> None:
        check_temperature("temperature", self.temperature)

    def divergence(self, log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
        """See `_Bucketed.divergence`."""
        q = log_q.exp()
        difference = q - log_p.exp()
        return difference.abs().sum(1) / 2, q * difference.sign() / 2
