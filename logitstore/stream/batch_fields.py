"""What a batch holds of what the teacher said: names, types, and what stands where nothing was said."""

from __future__ import annotations

from typing import Final

import numpy as np
import torch

from logitstore import layout

__all__ = ["IGNORED", "PADDING", "SLOTTED", "TORCH_TYPES", "bit_names", "group_names", "values_name"]

IGNORED: Final = -100
"""The label of a row that is no training target, as ``torch.nn.functional.cross_entropy`` takes it."""

PADDING: Final[dict[str, np.generic]] = {
    "ids": np.uint32(layout.UNUSED_ID),
    "values": np.float16(-np.inf),
    "lse": np.float32(np.nan),
    "label_logprob": np.float32(np.nan),
    "counts": np.uint8(0),
    "lse_T": np.float32(np.nan),
}
"""The teacher's fields as they are stored: the type of each, and what stands in padding."""

TORCH_TYPES: Final = {
    "ids": torch.int32,
    "values": torch.float16,
    "lse": torch.float32,
    "label_logprob": torch.float32,
    "counts": torch.uint8,
    "lse_T": torch.float32,
}
"""The same in a batch. Ids are 32 bits read as signed, since few operations of PyTorch know uint32."""

SLOTTED: Final = ("ids", "values", "counts")
"""Fields with an entry per slot. They share one order."""


def bit_names(field: str) -> tuple[str, ...]:
    """Return what a batch calls the parts of a field still coded by ``exact``; see `logitstore.codec.BitRows`."""
    return f"{field}_words", f"{field}_table"


def group_names(field: str) -> tuple[str, ...]:
    """Return what it calls those of a field still coded by ``compact``; see `logitstore.codec.GroupRows`."""
    return tuple(f"{field}_group_{part}" for part in ("words", "table", "counts", "books"))


def values_name(values: str, stores: str) -> str:
    """Return ``"logprobs"`` or ``"logits"``: what a batch calls its values.

    Parameters
    ----------
    values
        What is asked for: ``"stored"``, ``"logprob"`` or ``"logit"``.
    stores
        What the store has: ``"logprob"`` or ``"logit"``.
    """
    return f"{stores if values == 'stored' else values}s"
