"""What benchmarks of students share: a random student, the steps it takes on a store, and how good it is afterwards."""

from __future__ import annotations

import dataclasses
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from logitstore.loss import TeacherRows, make_loss
from logitstore.stream import BatchStream, Collate

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

    Batch = dict[str, Tensor]
    Objective = Callable[[Tensor, Tensor | None, Batch], Tensor]


@dataclass(frozen=True)
class Settings:
    """What all methods have in common.

    Attributes
    ----------
    layers, hidden
        Size of the student, else made like the teacher. Attention heads are the teacher's as far as they divide.
    seq_len, batch_size
        Rows of a packed sequence, and sequences of a step.
    lr, warmup
        Highest learning rate, cosine to a tenth of it; share of the steps that warm up.
    """

    layers: int
    hidden: int
    seq_len: int
    batch_size: int
    lr: float
    warmup: float = 0.05


def load_teacher(folder: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def new_student(teacher: str, settings: Settings, seed: int) -> Any:
    """Return a random model of the teacher's kind, smaller."""
    torch.manual_seed(seed)
    config = AutoConfig.from_pretrained(teacher)
    heads = math.gcd(config.num_attention_heads, settings.hidden // 8)
    config.hidden_size, config.num_hidden_layers = settings.hidden, settings.layers
    config.intermediate_size = settings.hidden * 8 // 3
    config.num_attention_heads = config.num_key_value_heads = heads
    config.head_dim = settings.hidden // heads
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def logits_of(model: Any, batch: Batch, vocab_size: int) -> Tensor:
    """Return ``(B, T, V)`` logits; documents packed together do not see each other."""
    found = model(input_ids=batch["tokens"], position_ids=batch["position_ids"], use_cache=False).logits
    return found[..., :vocab_size]


def stored_objective(name: str, **options: Any) -> tuple[tuple[str, ...], Objective]:
    """Return the fields of a store that a loss reads, and the loss of a batch."""
    loss = make_loss(name, **options)
    named = {"logprobs": "values", **{name: name for name in ("ids", "lse", "label_logprob", "counts")}}
    fields = tuple(named[need] for need in loss.needs if need in named)

    def objective(logits: Tensor, teacher_logits: Tensor | None, batch: Batch) -> Tensor:
        rows = dataclasses.replace(TeacherRows.from_batch(batch), full_logits=teacher_logits)
        return loss(logits, rows, inplace=True)

    return fields, objective


def train(
    student: Any,
    store: Path,
    fields: tuple[str, ...],
    objective: Objective,
    settings: Settings,
    *,
    tokens: int,
    seed: int,
    teacher: Any = None,
) -> dict[str, float]:
    """Take steps over the first so many tokens of a shuffled store, epoch after epoch; return seconds and tokens."""
    collate = Collate(settings.seq_len, pack=True, values="logprob", fields=fields)
    stream = BatchStream(store, settings.batch_size, collate=collate, seed=seed, prefetch=0)
    if not len(stream):
        raise ValueError(f"{store} has no documents to learn from")
    steps = max(1, round(tokens / (settings.batch_size * settings.seq_len)))
    optimizer = torch.optim.AdamW(student.parameters(), lr=settings.lr, betas=(0.9, 0.95), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _share(step, steps, settings.warmup))
    student.train()
    start, seen, step = time.perf_counter(), 0, 0
    while step < steps:
        for batch in stream:
            logits = logits_of(student, batch, stream.store.vocab_size)
            teacher_logits = None
            if teacher is not None:
                with torch.no_grad():
                    teacher_logits = logits_of(teacher, batch, stream.store.vocab_size)
            objective(logits, teacher_logits, batch).backward()
            torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            seen += int(batch["attention_mask"].sum())
            step += 1
            if step == steps:
                break
        stream.set_epoch(stream.epoch + 1)
    return {"seconds": time.perf_counter() - start, "tokens": seen, "epochs": stream.epoch}


def _share(step: int, steps: int, warmup: float) -> float:
    begin = max(1, round(steps * warmup))
    if step < begin:
        return (step + 1) / begin
    return 0.55 + 0.45 * math.cos(math.pi * (step - begin) / max(1, steps - begin))


@torch.no_grad()
def held_out(student: Any, store: Path, settings: Settings, teacher: Any) -> dict[str, float]:
    """Return a student's perplexity on the tokens of a store, and its divergence from the live teacher in nats."""
    collate = Collate(settings.seq_len, fields=())
    stream = BatchStream(store, settings.batch_size, collate=collate, shuffle=False, prefetch=0)
    student.eval()
    totals = torch.zeros(3, dtype=torch.float64)
    for batch in stream:
        where = batch["mask"]
        own = logits_of(student, batch, stream.store.vocab_size)[where].log_softmax(-1)
        theirs = logits_of(teacher, batch, stream.store.vocab_size)[where].log_softmax(-1)
        labels = batch["labels"][where][:, None]
        totals += torch.stack(
            [-own.gather(1, labels).sum(), (theirs.exp() * (theirs - own)).sum(), torch.tensor(len(labels))]
        )
    loss, divergence, rows = totals.tolist()
    return {"perplexity": math.exp(loss / rows), "kl": divergence / rows}
