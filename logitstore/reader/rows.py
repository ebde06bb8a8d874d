"""What a reader hands out: rows, and documents, which are rows with a name."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from logitstore import layout

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Document", "Rows"]

_NAMES = ("tokens", "ids", "values", "lse", "label_logprob", "mask", "counts", "lse_T")


@dataclass(frozen=True)
class Rows:
    """Rows of a store. Arrays may be read-only; a field that was not asked for is None.

    Attributes
    ----------
    tokens
        ``(n,)`` uint32. Row ``t`` is what the teacher said after reading token ``t``.
    ids
        ``(n, K)`` uint32 kept token ids; unused slots come last and hold ``0xFFFFFFFF``.
    values
        ``(n, K)`` float16 as stored, log-probabilities or raw logits; ``-inf`` in unused slots. Use `logprobs` or
        `logits`, which are right for either kind of store.
    lse
        ``(n,)`` float32 log-sum-exp over the whole vocabulary; NaN for rows that were not asked of the teacher.
    label_logprob
        ``(n,)`` float32 log-probability of the next token, kept or not; NaN where there is none.
    mask
        ``(n,)`` uint8, 1 where the row is a training target.
    counts
        ``(n, K)`` uint8 draws per id, or None.
    lse_T
        ``(n, m)`` float32 log-sum-exp at further temperatures, or None.
    stores
        ``"logprob"`` or ``"logit"``: what `values` are.
    """

    tokens: NDArray[np.uint32]
    ids: NDArray[np.uint32]
    values: NDArray[np.float16]
    lse: NDArray[np.float32]
    label_logprob: NDArray[np.float32]
    mask: NDArray[np.uint8]
    counts: NDArray[np.uint8] | None = None
    lse_T: NDArray[np.float32] | None = None
    stores: str = "logprob"

    @property
    def logprobs(self) -> NDArray[np.floating[Any]]:
        """Log-probabilities over the whole vocabulary: float16 as stored, or float32 where logits are stored."""
        return self.values if self.stores == "logprob" else self.values.astype(np.float32) - self.lse[..., None]

    @property
    def logits(self) -> NDArray[np.floating[Any]]:
        """Raw logits: float16 as stored, or float32 where log-probabilities are stored."""
        return self.values if self.stores == "logit" else self.values.astype(np.float32) + self.lse[..., None]

    @property
    def labels(self) -> NDArray[np.int64]:
        """``(n,)`` int64, the token each row speaks of; -100 for the last row, whose label is not among these rows."""
        following = self.tokens[1:].astype(np.int64)
        return np.concatenate([following, np.full(min(1, len(self.tokens)), -100, np.int64)])

    def __len__(self) -> int:
        return next((len(array) for name in _NAMES if (array := getattr(self, name)) is not None), 0)

    def select(self, index: Any) -> Self:
        """Return the rows at ``index`` (anything NumPy takes for the first axis)."""
        arrays: dict[str, Any] = {
            name: None if (array := getattr(self, name)) is None else array[index] for name in _NAMES
        }
        return dataclasses.replace(self, **arrays)

    def by_logit(self) -> Self:
        """Return the same rows with the entries of each sorted by falling logit, ties by rising id."""
        keys = _falling_keys(self.values).astype(np.uint64) << np.uint64(40)
        keys |= self.ids.astype(np.uint64) << np.uint64(8)
        if self.counts is not None:
            keys |= self.counts
        keys.sort(axis=-1)
        values = _values_of_keys((keys >> np.uint64(40)).astype(np.uint16))
        ids = ((keys >> np.uint64(8)) & np.uint64(layout.UNUSED_ID)).astype(np.uint32)
        counts = None if self.counts is None else (keys & np.uint64(0xFF)).astype(np.uint8)
        return dataclasses.replace(self, ids=ids, values=values, counts=counts)


@dataclass(frozen=True)
class Document(Rows):
    """All rows of a document.

    Attributes
    ----------
    index
        Its number in the store.
    key
        Its name, unique in the store.
    first_row
        Its first row in the store.
    parent
        ``(key, first token)`` of the longer document it was cut from, or None.
    metadata
        What the input said about it.
    """

    index: int = 0
    key: str = ""
    first_row: int = 0
    parent: tuple[str, int] | None = None
    metadata: dict[str, Any] = field(default_factory=dict)


def _falling_keys(values: NDArray[np.float16]) -> NDArray[np.uint16]:
    """Map float16 to uint16 so that larger values have smaller keys; -0.0 keeps its bits and follows 0.0."""
    bits = values.view(np.uint16)
    return np.where(bits & 0x8000, bits, np.uint16(0x7FFF) - bits)


def _values_of_keys(keys: NDArray[np.uint16]) -> NDArray[np.float16]:
    return np.where(keys & 0x8000, keys, np.uint16(0x7FFF) - keys).view(np.float16)
