"""From a batch to its loss, inside the student's forward.

Inside, because whatever wraps the student (autocast, DistributedDataParallel) acts on its forward, and a loss that is
fused with the LM head needs the head's weight, not its output.
"""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING, Any

from logitstore.errors import InvalidArgumentError
from logitstore.loss import TeacherRows
from logitstore.teacher.head import call_model, run_base
from logitstore.train.fit import loss_temperature
from logitstore.train.student import has_plain_head, student_inputs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from logitstore.loss import Loss

    Batch = dict[str, Tensor]

__all__ = ["LossStep"]

_STORED = {"ids": "ids", "logprobs": "values", "lse": "lse", "label_logprob": "label_logprob", "counts": "counts",
           "lse_T": "lse_T"}  # fmt: skip
"""What a loss calls a field of the teacher's, and what a stream does."""


class LossStep:
    """What a step makes of a batch.

    Parameters
    ----------
    model
        The student. From now on ``model(distill=batch)`` returns the summed loss of a batch and the means of its
        parts; other calls are what they were.
    loss
        What to compute.
    vocab_size
        Ids of the store; logits behind them are padding and are cut off.
    temperatures
        Those of the store, in the order of ``lse_T``.
    fused
        Whether to fuse the loss with the LM head; None: if the head is a plain matrix.

    Raises
    ------
    InvalidArgumentError
        If it is to be fused and cannot.
    """

    def __init__(
        self,
        model: Any,
        loss: Loss,
        *,
        vocab_size: int,
        temperatures: Sequence[float] = (),
        fused: bool | None = None,
    ) -> None:
        plain_head = fused is not False and has_plain_head(model)
        if fused and not plain_head:
            raise InvalidArgumentError(
                f"the loss cannot be fused with the head of {type(model).__name__}: its logits are more than the last"
                " hidden states times a matrix; leave the choice open (fused=None)"
            )
        self.model, self.loss, self.vocab_size, self.fused = model, loss, vocab_size, plain_head
        self._column = list(temperatures).index(loss_temperature(loss)) if "lse_T" in loss.needs else None
        self._forward = model.forward
        model.forward = self._patched()

    @property
    def stored_fields(self) -> tuple[str, ...]:
        """What the loss reads of the store, as `logitstore.stream.Collate` calls it."""
        return tuple(_STORED[name] for name in self.loss.needs if name in _STORED)

    def rows(self, batch: Batch) -> TeacherRows:
        """Return what the loss needs of what the teacher said. Nothing is shifted: labels are the next tokens."""
        given = {name: batch[name] for name in (*self.loss.needs, "mask")}
        if self._column is not None:
            given["lse_T"] = given["lse_T"][..., self._column]
        return TeacherRows(**given)

    def counted(self, batch: Batch) -> Tensor:
        """Return how many rows of a batch count for the loss."""
        return self.loss.counted(self.rows(batch)).sum()

    def _patched(self) -> Any:
        plain = self._forward

        @wraps(plain)
        def forward(*args: Any, distill: Batch | None = None, **kwargs: Any) -> Any:
            return plain(*args, **kwargs) if distill is None else self.summed(distill)

        return forward

    def summed(self, batch: Batch) -> tuple[Tensor, Batch]:
        """Return the summed loss of a batch, and the means of its parts over the rows that count."""
        inputs, rows = student_inputs(self.model, batch), self.rows(batch)
        parts: Batch = {}
        V = self.vocab_size
        if self.fused:
            head = self.model.get_output_embeddings()
            hidden = run_base(self.model, **inputs)
            bias = None if head.bias is None else head.bias[:V]
            summed = self.loss.fused(
                hidden.reshape(*rows.shape, -1), head.weight[:V], rows, bias=bias, reduction="sum", parts=parts
            )
        else:
            logits = call_model(self.model, use_cache=False, **inputs).logits
            summed = self.loss(logits.reshape(*rows.shape, -1)[..., :V], rows, reduction="sum", parts=parts)
        return summed, parts
