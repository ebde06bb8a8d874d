"""The step that all losses of stored rows share: from logits to value and gradient, in the memory of the logits.

Such a loss sees the student through three things: log q at the kept ids S, log of the mass outside S, log q of the
label. With u = dL/d log q for each of the three, and sum u over all of them,

    dL/dz_j = u_j - q_j * sum u                                for j in S
    dL/dz_j = q_j / q(outside) * u_outside - q_j * sum u       for j outside S

and u_label on top at the label. So each loss is a few lines about ``(n, K)`` numbers, and what is large is done once,
here. The mass outside is summed over the tokens outside and never had as 1 - b: where S holds nearly everything, that
difference would be rounding, and the gradient is a quotient of two of them.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from logitstore.loss.base import Loss

if TYPE_CHECKING:
    from torch import Tensor

    from logitstore.loss.rows import TeacherRows

__all__ = ["KeptSetLoss", "StudentRows", "Terms"]


@dataclass(frozen=True)
class StudentRows:
    """The student's log-probabilities of ``n`` rows, in nats, float32 (float64 for float64 logits).

    Attributes
    ----------
    kept
        ``(n, K)`` log q at the kept ids; -inf in unused slots.
    rest
        ``(n,)`` log of the mass outside the kept ids; -inf where nothing is outside.
    label
        ``(n,)`` log q of the label; meaningless where there is none.
    used
        ``(n, K)`` bool, false in unused slots.
    vocab_size
        V.
    """

    kept: Tensor
    rest: Tensor
    label: Tensor
    used: Tensor
    vocab_size: int


@dataclass(frozen=True)
class Terms:
    """A loss of ``n`` rows and its derivatives by the log-probabilities in `StudentRows`; None is zero.

    Derivatives are wanted up to a multiple of q, which moves along no distribution: the step projects it away.

    Attributes
    ----------
    value
        ``(n,)`` loss in nats.
    kept
        ``(n, K)`` derivative by log q at the kept ids, 0 in unused slots.
    rest, label
        ``(n,)`` derivatives by the log of the mass outside, and by log q of the label.
    parts
        ``(n,)`` numbers worth logging, by name.
    """

    value: Tensor
    kept: Tensor | None = None
    rest: Tensor | None = None
    label: Tensor | None = None
    parts: dict[str, Tensor] = field(default_factory=dict)


class KeptSetLoss(Loss):
    """A loss that needs of the student what `StudentRows` holds."""

    @abstractmethod
    def terms(self, student: StudentRows, rows: TeacherRows) -> Terms:
        """Return value and derivatives of ``n`` rows."""

    def step(self, buffer: Tensor, rows: TeacherRows, scale: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Loss.step`."""
        n, V = buffer.shape
        labels = None if rows.labels is None else rows.labels.long().clamp(min=0)[:, None]
        at_label = buffer.new_zeros(n) if labels is None else buffer.gather(1, labels)[:, 0]
        index, used = _slots(rows, n, buffer.device)
        at_kept = buffer.gather(1, index).masked_fill_(~used, -torch.inf)

        # Kept tokens are taken out of the buffer, which then holds exp(z - shift) of the others.
        buffer.scatter_(1, index, -torch.inf)
        shift = buffer.amax(1)
        top = torch.maximum(shift, at_kept.amax(1)) if index.shape[1] else shift
        # Nothing outside: any finite shift leaves zeros.
        shift = torch.where(shift == -torch.inf, top, shift)
        total = buffer.sub_(shift[:, None]).exp_().sum(1)

        # Relative to the row's largest logit: a log-sum-exp near 1e4 has three decimals in float32.
        log_rest = total.log() + (shift - top)
        at_kept -= top[:, None]
        log_all = torch.logaddexp(log_rest, at_kept.logsumexp(1)) if index.shape[1] else log_rest
        student = StudentRows(
            kept=at_kept.sub_(log_all[:, None]),
            rest=log_rest - log_all,
            label=at_label - top - log_all,
            used=used,
            vocab_size=V,
        )
        terms = self.terms(student, rows)
        if scale is not None:
            _write_gradient(buffer, total, student, terms, index, labels, scale)
        return terms.value, terms.parts


def _slots(rows: TeacherRows, n: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return indices ``(n, K)`` that may be gathered, and which of them are used."""
    if rows.ids is None:
        nothing = torch.zeros(n, 0, dtype=torch.int64, device=device)
        return nothing, nothing.bool()
    ids = rows.ids.long()
    used = ids >= 0
    # An unused slot points at a used one of its row, so that it touches no other token; what it adds there is 0.
    spare = ids.amax(1, keepdim=True).clamp_(min=0) if ids.shape[1] else ids
    return torch.where(used, ids, spare), used


def _write_gradient(
    buffer: Tensor,
    total: Tensor,
    student: StudentRows,
    terms: Terms,
    index: Tensor,
    labels: Tensor | None,
    scale: Tensor,
) -> None:
    """Turn exp(z - shift) outside the kept ids into ``scale`` times the gradient, in place."""
    zero = torch.zeros_like(total)
    rest = zero if terms.rest is None else terms.rest
    label = zero if terms.label is None else terms.label
    pull = rest + label if terms.kept is None else terms.kept.sum(1) + rest + label
    outside = torch.where(total > 0, (rest - pull * student.rest.exp()) / total, zero)
    buffer.mul_((outside * scale)[:, None])
    at_kept = student.kept.exp().mul_(-pull[:, None])
    if terms.kept is not None:
        at_kept += terms.kept
    buffer.scatter_add_(1, index, at_kept.mul_(scale[:, None]))
    if labels is not None and terms.label is not None:
        buffer.scatter_add_(1, labels, (label * scale)[:, None])
