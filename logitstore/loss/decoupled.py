from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from logitstore.loss.base import check_temperature
from logitstore.loss.kept import KeptSetLoss, StudentRows, Terms
from logitstore.loss.teacher import dot, kept_and_outside, renormalised

if TYPE_CHECKING:
    from logitstore.loss.rows import TeacherRows

__all__ = ["DecoupledTopK"]


@dataclass(frozen=True)
class DecoupledTopK(KeptSetLoss):
    r"""Decoupled top-K distillation: how much mass lies on the kept ids, and apart from that, how it is shared there.

    .. math:: KL(Bern(a) \| Bern(b)) + a \tau^2 KL(\hat p_\tau \| \hat q_\tau)

    in nats; a and b are the masses of teacher and student on the kept ids S at temperature 1, and p-hat, q-hat both
    distributions restricted to S, normalised there, with logits divided by tau. At tau = 1 this is `ForwardKL` "tail"
    (the chain rule of the divergence); with k = V and tau = 1, the full divergence.

    Mass outside S is one number, 1 - a, not biased, and its split outside is not looked at. Temperature acts in the
    conditional term alone, so no ``lse_T`` is needed and heat moves no mass out of S (over the whole vocabulary it
    does: at T = 4 a top-128 set of a 30B teacher held 2.8 % of the mass). The factor tau squared is ours, in line with
    the other losses: peers differ in whether they apply it.

    Gradient: from the first term to all logits, from the second only to those in S.

    Needs ids, logprobs. Parts: mass (the first term), conditional (the second, with its factors).

    Parameters
    ----------
    tau
        Temperature of the conditional term, positive.

    Raises
    ------
    InvalidArgumentError
        If it is not.

    Examples
    --------
    Masses 0.75 against 0.5: 0.1308 nats. Shares 2/3 and 1/3 against 1/2 each, weighed 0.75: 0.0425 nats.

    >>> from logitstore.loss import TeacherRows
    >>> rows = TeacherRows(ids=torch.tensor([[2, 0]]), logprobs=torch.tensor([[0.5, 0.25]]).log())
    >>> parts = {}
    >>> DecoupledTopK(tau=1)(torch.zeros(1, 4), rows, parts=parts)
    tensor(0.1733)
    >>> parts
    {'mass': tensor(0.1308), 'conditional': tensor(0.0425)}
    >>> DecoupledTopK(tau=2)(torch.zeros(1, 4), rows)
    tensor(0.1752)

    References
    ----------
    LFM2 Technical Report, arXiv 2511.23404.
    """

    name: ClassVar[str] = "decoupled"
    tau: float = 1.0

    def __post_init__(self) -> None:
        check_temperature("tau", self.tau)

    @property
    def needs(self) -> tuple[str, ...]:
        """See `Loss.needs`."""
        return ("ids", "logprobs")

    def terms(self, student: StudentRows, rows: TeacherRows) -> Terms:
        """See `KeptSetLoss.terms`."""
        tau = self.tau
        _, outside = kept_and_outside(rows, student)
        a = 1 - outside
        log_b = student.kept.logsumexp(1, keepdim=True)
        mass = torch.xlogy(a, a) - a * log_b[:, 0] + torch.xlogy(outside, outside)
        mass -= dot(outside[:, None], student.rest[:, None])

        log_p, log_q = renormalised(rows, student, tau), (student.kept / tau).log_softmax(1)
        p, q = log_p.exp(), log_q.exp()
        conditional = a * tau**2 * dot(p, log_p - log_q)
        by_kept = a[:, None] * (tau * (q - p) - (student.kept - log_b).exp())
        return Terms(
            value=mass + conditional,
            kept=by_kept,
            rest=-outside,
            parts={"mass": mass, "conditional": conditional},
        )
