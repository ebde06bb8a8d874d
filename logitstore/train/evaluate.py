"""How well a student predicts held-out tokens, and how near it is to the teacher there."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import linear

from logitstore.loss import CrossEntropy, ForwardKL, TeacherRows
from logitstore.teacher.head import call_model, run_base
from logitstore.train.student import student_inputs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from torch import Tensor

    Batch = dict[str, Tensor]

__all__ = ["Evaluation", "evaluate"]

_CHUNK_BYTES = 2**26
_SUMS = ("rows", "nll", "teacher_rows", "teacher_nll", "kept_rows", "kl", "agree")
_FIELDS = ("ids", "logprobs", "label_logprob", "labels")


@dataclass(frozen=True)
class Evaluation:
    """Something to evaluate on.

    Attributes
    ----------
    batches
        This rank's batches, iterated anew for each evaluation: ``tokens``, ``labels`` and ``mask`` at least, and of a
        store ``ids``, ``logprobs`` and ``label_logprob``.
    keeps_best
        Whether a row's kept ids include the teacher's most probable one (random draws need not).
    """

    batches: Iterable[Batch]
    keeps_best: bool = True


@torch.no_grad()
def evaluate(
    model: Any,
    evaluation: Evaluation,
    *,
    vocab_size: int,
    plain_head: bool,
    device: torch.device,
    reduce: Callable[[Tensor], Tensor],
) -> dict[str, float]:
    """Run a student over held-out rows.

    Parameters
    ----------
    model
        The student; called in evaluation mode.
    evaluation
        What on.
    vocab_size
        Logits behind it are padding.
    plain_head
        As `logitstore.train.student.has_plain_head` says: then logits exist for a chunk of rows at a time.
    device, reduce
        Where the student is, and what sums a tensor in host memory over ranks.

    Returns
    -------
    dict
        ``rows``, the targets; ``nll``, the mean of -log q(label) in nats, and ``perplexity``, its exponential. Of a
        store also ``teacher_perplexity`` on the same labels; ``kl``, the mean of
        sum_S p log(p/q) + (1-a) log((1-a)/(1-b)) in nats, from teacher to student over the kept ids S and one bucket
        for the rest, a lower bound of the divergence over the whole vocabulary; and ``top1_agreement``, the share of
        rows where both hold the same id most probable.
    """
    sums: dict[str, float] = dict.fromkeys(
        ("rows", "nll", "teacher_rows", "teacher_nll", "kept_rows", "kl", "agree"), 0
    )
    training = model.training
    model.eval()
    try:
        for batch in evaluation.batches:
            on_device = {name: tensor.to(device) for name, tensor in batch.items()}
            for logits, rows in _chunks(model, on_device, vocab_size, plain_head):
                for name, number in _summed(logits, rows).items():
                    sums[name] += number
    finally:
        model.train(training)
    total = reduce(torch.tensor(list(sums.values()), dtype=torch.float64)).tolist()
    found = dict(zip(sums, total, strict=True))
    nll = found["nll"] / max(1, found["rows"])
    metrics = {"rows": found["rows"], "nll": nll, "perplexity": _exp(nll)}
    if found["teacher_rows"]:
        metrics["teacher_perplexity"] = _exp(found["teacher_nll"] / found["teacher_rows"])
    if found["kept_rows"]:
        metrics["kl"] = found["kl"] / found["kept_rows"]
        if evaluation.keeps_best:
            metrics["top1_agreement"] = found["agree"] / found["kept_rows"]
    return metrics


def _chunks(model: Any, batch: Batch, V: int, plain_head: bool) -> Iterator[tuple[Tensor, TeacherRows]]:
    """Yield ``(n, V)`` float32 logits of targets, and what is known of them."""
    shape = batch["tokens"].shape
    targets = (batch["mask"].bool() & (batch["labels"] >= 0)).reshape(-1).nonzero()[:, 0]
    inputs = student_inputs(model, batch)
    head = model.get_output_embeddings() if plain_head else None
    output = run_base(model, **inputs) if plain_head else call_model(model, use_cache=False, **inputs).logits
    output = output.reshape(shape.numel(), -1)
    rows = TeacherRows(**{name: batch[name] for name in _FIELDS if name in batch}).flat()
    for where in targets.split(max(1, _CHUNK_BYTES // (4 * V))):
        chunk = output[where]
        if head is not None:
            chunk = linear(chunk, head.weight[:V], None if head.bias is None else head.bias[:V])
        yield chunk[:, :V].float(), rows.select(where)


def _summed(logits: Tensor, rows: TeacherRows) -> dict[str, float]:
    found = {"rows": float(len(logits)), "nll": _total(CrossEntropy()(logits, rows, reduction="none"))}
    if rows.label_logprob is not None:
        known = ~rows.label_logprob.isnan()
        found |= {
            "teacher_rows": float(known.sum()),
            "teacher_nll": -_total(rows.label_logprob[known]),
        }
    if rows.ids is not None:
        kept = ForwardKL("tail").counted(rows)
        values = rows.need("logprobs").masked_fill(rows.ids < 0, -torch.inf)
        best = rows.ids.gather(1, values.argmax(1, keepdim=True))[:, 0]
        found |= {
            "kept_rows": float(kept.sum()),
            "kl": _total(ForwardKL("tail")(logits, rows, reduction="none")),
            "agree": float(((logits.argmax(1) == best) & kept).sum()),
        }
    return found


def _total(numbers: Tensor) -> float:
    return float(numbers.cpu().double().sum())  # not every device knows float64


def _exp(nll: float) -> float:
    return math.exp(nll) if nll < 700 else math.inf
