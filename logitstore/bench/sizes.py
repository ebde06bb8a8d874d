"""How much is measured."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch

__all__ = ["FULL", "TINY", "LlamaShape", "Sizes"]


@dataclass(frozen=True)
class LlamaShape:
    """A Llama with random weights: its widths and numbers of layers and heads, and whether embeddings are tied."""

    hidden: int
    layers: int
    intermediate: int
    heads: int
    kv_heads: int
    tied: bool = True


@dataclass(frozen=True)
class Sizes:
    """What is measured.

    Attributes
    ----------
    rows, vocab_size, hidden, dtype
        Of kernels: rows of logits over so many ids, from hidden states of this width, in this type.
    top_k, top_fraction
        What is kept of a row: so many entries, or such a share of the vocabulary.
    rounds
        Turns that count; of turns that take seconds, half as many.
    teachers
        Those whose logits are captured.
    batches, tokens_per_batch, document_tokens
        What they read in a turn. All documents are as long, so that nothing is padded.
    student, sequences, seq_len, steps
        Who learns, a step's batch, and steps of a turn.
    """

    rows: int = 4096
    vocab_size: int = 128_256
    hidden: int = 4096
    top_k: int = 64
    top_fraction: float = 0.05
    dtype: torch.dtype = torch.bfloat16
    rounds: int = 7
    teachers: dict[str, LlamaShape] = field(
        default_factory=lambda: {
            "1B": LlamaShape(2048, 16, 8192, 32, 8),
            "8B": LlamaShape(4096, 32, 14_336, 32, 8, tied=False),
        }
    )
    batches: int = 32
    tokens_per_batch: int = 8192
    document_tokens: int = 1024
    student: LlamaShape = field(default_factory=lambda: LlamaShape(768, 8, 2048, 12, 12))
    sequences: int = 8
    seq_len: int = 1024
    steps: int = 8

    def to_json(self) -> dict[str, Any]:
        """Return the sizes as JSON."""
        return asdict(self) | {"dtype": str(self.dtype).removeprefix("torch.")}


FULL = Sizes()
"""Those of Llama 3: a vocabulary of 128,256, teachers of 1.2 and 8.0 billion parameters, a student of 155 million."""

TINY = Sizes(
    rows=2,
    vocab_size=96,
    hidden=8,
    top_k=4,
    dtype=torch.float32,
    rounds=1,
    teachers={"tiny": LlamaShape(16, 1, 32, 2, 1)},
    batches=2,
    tokens_per_batch=4,
    document_tokens=4,
    student=LlamaShape(16, 1, 32, 2, 2),
    sequences=1,
    seq_len=4,
    steps=2,
)
"""For a CPU, where the figures say nothing: they show that everything runs."""
