"""What is measured on: random logits, a teacher's rows, hidden states, and Llamas with random weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from logitstore.loss import TeacherRows
from logitstore.select import Selection

if TYPE_CHECKING:
    from logitstore.bench.sizes import LlamaShape, Sizes

__all__ = ["kept_sets", "random_labels", "random_leaves", "random_llama", "random_logits", "random_teacher_rows"]

_LOGIT_STD = 3.0


def kept_sets(sizes: Sizes) -> list[tuple[str, Selection]]:
    """Return both selections, and what they are called."""
    return [
        (f"k = {sizes.top_k}", Selection(top_k=sizes.top_k)),
        (f"{100 * sizes.top_fraction:g} %", Selection(top_fraction=sizes.top_fraction)),
    ]


def random_logits(sizes: Sizes, device: torch.device, *, rows: int | None = None, seed: int = 0) -> torch.Tensor:
    """Return ``(rows, V)`` normal logits."""
    generator = torch.Generator(device).manual_seed(seed)
    rows = sizes.rows if rows is None else rows
    return torch.randn(
        rows, sizes.vocab_size, generator=generator, device=device, dtype=sizes.dtype, requires_grad=False
    ).mul_(_LOGIT_STD)


def random_labels(sizes: Sizes, device: torch.device) -> torch.Tensor:
    """Return ``(rows,)`` int64 ids all over the vocabulary."""
    return torch.arange(sizes.rows, device=device) * 7919 % sizes.vocab_size


def random_teacher_rows(sizes: Sizes, device: torch.device, k: int) -> TeacherRows:
    """Return rows of k entries each, ids ascending, of a teacher whose logits none of the student's depend on."""
    generator = torch.Generator(device).manual_seed(1)
    wide = min(4 * k, sizes.vocab_size)
    logits = torch.randn(sizes.rows, wide, generator=generator, device=device) * _LOGIT_STD
    logprobs, slots = logits.log_softmax(1).topk(k, dim=1)
    # Spread over the vocabulary, ascending as a store has them.
    slots, order = slots.sort(1)
    return TeacherRows(
        ids=(slots * (sizes.vocab_size // wide)).int(),
        logprobs=logprobs.gather(1, order).half(),
        labels=random_labels(sizes, device),
    )


def random_leaves(sizes: Sizes, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return hidden states ``(rows, H)`` and the weight of an LM head ``(V, H)``, which want gradients."""
    generator = torch.Generator(device).manual_seed(2)
    shapes = [(sizes.rows, sizes.hidden), (sizes.vocab_size, sizes.hidden)]
    hidden, weight = (torch.randn(*s, generator=generator, device=device, dtype=sizes.dtype) for s in shapes)
    weight *= _LOGIT_STD / sizes.hidden**0.5
    return hidden.requires_grad_(), weight.requires_grad_()


def random_llama(shape: LlamaShape, vocab_size: int, context: int, device: torch.device, dtype: torch.dtype) -> Any:
    """Return a Llama of transformers with random weights, always the same."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        vocab_size=vocab_size, hidden_size=shape.hidden, intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads,
        max_position_embeddings=context, tie_word_embeddings=shape.tied,
    )  # fmt: skip
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), device:
        torch.manual_seed(3)
        return AutoModelForCausalLM.from_config(config, dtype=dtype)
