"""What the examples share: their command line, the student, and what a step makes of a batch."""

import argparse
import itertools

import torch
from torch.utils.data import DataLoader
from transformers import AutoConfig, AutoModelForCausalLM

from logitstore.loss import LOSSES, TeacherRows


def command_line(description):
    """Return a parser that knows what every example takes."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("store", help="where the teacher's logits are")
    parser.add_argument("student", help="folder or hub id of a model with the teacher's vocabulary")
    parser.add_argument("--fresh", action="store_true", help="take the student's configuration, not its weights")
    parser.add_argument("--steps", type=int, default=100, help="steps of the optimizer in all")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--workers", type=int, default=0, help="processes that read")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--loss", choices=sorted(LOSSES), default="slim")
    return parser


def load_student(name, *, fresh=False):
    """Return the student in float32: its weights, or new ones after its configuration."""
    if fresh:
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(name), dtype=torch.float32)
    return AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)


def student_logits(student, batch, vocab_size):
    """Return ``(B, T, vocab_size)`` logits, each row knowing nothing but its own document.

    Where position_ids start again another document begins: transformers masks accordingly if it gets neither an
    attention_mask nor a cache. Padding has position 0 throughout, so padded batches are as right as packed ones. Not
    for FlashAttention, which looks at position_ids in batches of one sequence only (take ``--batch-size 1`` and a
    longer ``--seq-len``), nor for models that make their own masks: do not pack for those.
    """
    logits = student(input_ids=batch["tokens"], position_ids=batch["position_ids"], use_cache=False).logits
    return logits[..., :vocab_size]  # behind it is padding that the teacher's log-probabilities know nothing of


def distillation_loss(student, batch, loss, vocab_size, *, reduction="mean"):
    """Return the loss over the rows of a batch that are targets."""
    # Row t belongs to the student's logits after token t: nothing is to be shifted.
    return loss(student_logits(student, batch, vocab_size), TeacherRows.from_batch(batch), reduction=reduction)


def to_device(batch, device):
    """Return the batch on a device."""
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


def endless(stream, workers):
    """Yield the batches of a `BatchStream`, from where it stands, epoch after epoch."""
    loader = DataLoader(stream, batch_size=None, num_workers=workers)
    for epoch in itertools.count(stream.epoch):
        stream.set_epoch(epoch)
        yield from loader
