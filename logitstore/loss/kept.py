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
from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from logitstore.loss.base import Loss

if TYPE_CHECKING:
    from torch import Tensor

    from logitstore.kernels.one_pass import RowSums
    from logitstore.loss.rows import TeacherRows

__all__ = ["KeptGradient", "KeptSetLoss", "StudentRows", "Target", "Terms"]


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


@dataclass(frozen=True)
class Target:
    """A distribution that a loss pulls each row to, as `logitstore.kernels.one_pass` makes it.

    Attributes
    ----------
    kept, renorm
        Whether it has the teacher's probabilities at the kept ids, and whether they are scaled up to 1.
    tail
        Whether all other ids have the rest.
    label
        Whether the label has 1, as far as there is one.
    weight
        What the kept ids are multiplied by: one of the weights of SLIM.
    """

    kept: bool = True
    renorm: bool = False
    tail: bool = False
    label: bool = False
    weight: Literal["none", "text", "eq4"] = "none"


class KeptSetLoss(Loss):
    """A loss that needs of the student what `StudentRows` holds."""

    sees_kept_alone: ClassVar[bool] = True

    @property
    def target(self) -> Target | None:
        """What rows are pulled to, for a loss whose gradient is the student's probabilities less that; else None."""
        return None

    def value_of(self, sums: RowSums, rows: TeacherRows) -> tuple[Tensor, dict[str, Tensor]]:
        """Return ``(n,)`` losses and numbers worth logging, of a loss that has a target."""
        raise NotImplementedError

    def in_one_pass(
        self, gradient: Tensor, logits: Tensor, rows: TeacherRows, scale: Tensor, counted: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Write the gradient by ``(R, V)`` logits, and return losses and parts of all rows.

        Parameters
        ----------
        gradient
            ``(R, V)``, may be the logits; 0 where rows do not count.
        logits, rows
            ``R`` rows, and what the teacher says of them.
        scale
            ``(R,)`` float32, what a row's gradient is multiplied by.
        counted
            ``(R,)`` bool; None for all. What is returned of others has no meaning.
        """
        from logitstore.kernels.one_pass import learn_in_one_pass

        target = self.target
        assert target is not None
        sums = learn_in_one_pass(
            gradient, logits, scale, ids=rows.ids if target.kept else None,
            logprobs=rows.logprobs if target.kept else None, labels=rows.labels if target.label else None,
            label_logprob=rows.label_logprob if target.weight != "none" else None, counted=counted,
            renorm=target.renorm, tail=target.tail, weight=target.weight,
        )  # fmt: skip
        return self.value_of(sums, rows)

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
        student = _student_rows(at_kept, used, shift, total, at_label, V)
        terms = self.terms(student, rows)
        if scale is not None:
            outside, by_kept = _row_gradient(total, student, terms)
            buffer.mul_((outside * scale)[:, None])
            buffer.scatter_add_(1, index, by_kept.mul_(scale[:, None]))
            if labels is not None and terms.label is not None:
                buffer.scatter_add_(1, labels, (terms.label * scale)[:, None])
        return terms.value, terms.parts

    def read_logits(
        self, logits: Tensor, numbers: Tensor | None, rows: TeacherRows
    ) -> tuple[Tensor, dict[str, Tensor], KeptGradient]:
        """Compute ``n`` rows with the kernels: what `step` does in two halves, the first of which writes nothing.

        Parameters
        ----------
        logits
            ``(R, V)`` the student's logits at temperature 1, the last axis contiguous.
        numbers
            ``(n,)`` int64, which rows; None for all.
        rows
            ``n`` rows, all of which count.

        Returns
        -------
        tuple
            What `step` returns, and what is left to do for the gradient by the logits.
        """
        from logitstore.kernels.learn import sum_outside_kept

        T, V = self.temperature, logits.shape[1]
        at_kept, shift, total = sum_outside_kept(logits, rows.ids, numbers=numbers, temperature=T)
        at_label = torch.zeros_like(shift)
        if rows.labels is not None:
            labels = rows.labels.long().clamp(min=0)
            own = torch.arange(len(labels), device=labels.device) if numbers is None else numbers
            at_label = logits[own, labels].float() / T
        used = torch.zeros_like(at_kept, dtype=torch.bool) if rows.ids is None else rows.ids >= 0
        student = _student_rows(at_kept, used, shift, total, at_label, V)
        terms = self.terms(student, rows)
        outside, by_kept = _row_gradient(total, student, terms)
        ids = torch.empty_like(by_kept, dtype=torch.int32) if rows.ids is None else rows.ids.int()
        if rows.labels is not None and terms.label is not None:
            # Written once, so that it is rounded once: with the kept id that it is, or beside them.
            at = ids == rows.labels[:, None]
            by_kept += at * terms.label[:, None]
            beside = rows.labels.int().masked_fill(at.any(1), -1)
            ids = torch.cat([ids, beside[:, None]], 1)
            by_label = outside * (at_label - shift).exp() + terms.label
            by_kept = torch.cat([by_kept, by_label[:, None]], 1)
        return terms.value, terms.parts, KeptGradient(shift, outside, ids, by_kept)


@dataclass(frozen=True)
class KeptGradient:
    """The gradient of ``n`` losses by ``logits / temperature``, as far as it is not ``(n, V)`` yet.

    Attributes
    ----------
    shift, outside
        ``(n,)``: outside the ids it is ``outside * exp(logit / temperature - shift)``.
    ids, values
        ``(n, m)`` int32, -1 for none, and float32: what it is there.
    """

    shift: Tensor
    outside: Tensor
    ids: Tensor
    values: Tensor


def _student_rows(
    at_kept: Tensor, used: Tensor, shift: Tensor, total: Tensor, at_label: Tensor, vocab_size: int
) -> StudentRows:
    """Make log-probabilities of logits, given the sum of ``exp(logit - shift)`` over the other ids; takes at_kept."""
    top = torch.maximum(shift, at_kept.amax(1)) if at_kept.shape[1] else shift
    # Relative to the row's largest logit: a log-sum-exp near 1e4 has three decimals in float32.
    log_rest = total.log() + (shift - top)
    at_kept -= top[:, None]
    log_all = torch.logaddexp(log_rest, at_kept.logsumexp(1)) if at_kept.shape[1] else log_rest
    return StudentRows(
        kept=at_kept.sub_(log_all[:, None]),
        rest=log_rest - log_all,
        label=at_label - top - log_all,
        used=used,
        vocab_size=vocab_size,
    )


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


def _row_gradient(total: Tensor, student: StudentRows, terms: Terms) -> tuple[Tensor, Tensor]:
    """Return ``(n,)`` what exp(logit - shift) outside the kept ids is multiplied by, and the gradient at those.

    What comes on top at the label is not in it.
    """
    zero = torch.zeros_like(total)
    rest = zero if terms.rest is None else terms.rest
    label = zero if terms.label is None else terms.label
    pull = rest + label if terms.kept is None else terms.kept.sum(1) + rest + label
    # A total that is NaN stays so.
    outside = torch.where(total == 0, zero, (rest - pull * student.rest.exp()) / total)
    by_kept = student.kept.exp().mul_(-pull[:, None])
    if terms.kept is not None:
        by_kept += terms.kept
    return outside, by_kept
