"""A small teacher of one's own: for the demo, and for anyone who wants to try things without a network or a GPU."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from logitstore.errors import InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

__all__ = ["train_tiny_teacher"]

_CONTEXT = 256
_WINDOW = 128
_BATCH = 16


def train_tiny_teacher(
    texts: Sequence[str],
    out: Path,
    *,
    vocab_size: int = 2048,
    seconds: float = 60.0,
    max_steps: int = 2000,
    seed: int = 0,
    on_step: Callable[[int, float, float], None] | None = None,
) -> float:
    """Train a byte-level BPE tokenizer and a Llama of under a million parameters, and save both for transformers.

    Parameters
    ----------
    texts
        Documents to learn from.
    out
        Folder for model and tokenizer.
    vocab_size
        Of the tokenizer, at least 257.
    seconds, max_steps
        Training stops at whichever comes first.
    seed
        Of initialisation and batches.
    on_step
        Called with step, loss in nats per token, and the share of the time that has passed.

    Returns
    -------
    float
        Mean loss of the last steps, in nats per token.
    """
    tokenizer = _train_tokenizer(texts, vocab_size)
    end = tokenizer.eos_token_id
    stream = np.concatenate([[*tokenizer(text)["input_ids"], end] for text in texts])
    if len(stream) <= _WINDOW:
        raise InvalidArgumentError(f"a teacher needs more than {_WINDOW} tokens of text, found {len(stream)}")
    torch.manual_seed(seed)
    model = _new_model(len(tokenizer), end)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.1)
    rng = np.random.default_rng(seed)
    start = time.perf_counter()
    losses = []
    for step in range(max_steps):
        share = max(step / max_steps, (time.perf_counter() - start) / seconds)
        if share >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1.0, (step + 1) / 20) * (1 - 0.9 * share)
        first = rng.integers(0, len(stream) - _WINDOW, _BATCH)
        batch = torch.from_numpy(stream[first[:, None] + np.arange(_WINDOW)])
        loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
        if on_step is not None:
            on_step(step + 1, losses[-1], share)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return float(np.mean(losses[-20:]))


def _new_model(vocab_size: int, end: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=128,
        intermediate_size=344,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=_CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=end,
        eos_token_id=end,
    )
    return LlamaForCausalLM(config)


def _train_tokenizer(texts: Sequence[str], vocab_size: int) -> Any:
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(texts, vocab_size=vocab_size, special_tokens=["<|endoftext|>"], show_progress=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>"
    )
