"""The records that pass between stages: a document to read, and the rows a teacher gave for it.

Every array has one row per token. Row ``t`` is what the teacher said *after* token ``t``, about token ``t + 1``.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from logitstore import layout

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["RowBatch", "RowsCodedElsewhere", "TokenDocument", "by_id"]


@dataclass(frozen=True)
class TokenDocument:
    """A document ready for the teacher.

    Attributes
    ----------
    key
        Name of the document, unique within its store.
    tokens
        ``(L,)`` uint32, at least one token.
    mask
        ``(L,)`` uint8. 1 where the *row* is a training target: row ``t`` predicts token ``t + 1``, so it is 1 where
        token ``t + 1`` belongs to a target (all tokens of plain text, the assistant's tokens of a chat). The last row
        of a document predicts nothing and is 0.
    parent
        ``(key, first token)`` of the longer document this one was cut from, or None.
    metadata
        Whatever the input said about the document; must be JSON.
    """

    key: str
    tokens: NDArray[np.uint32]
    mask: NDArray[np.uint8]
    parent: tuple[str, int] | None = None
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RowBatch:
    """What is stored of ``n`` consecutive rows, in host memory.

    Attributes
    ----------
    tokens
        ``(n,)`` uint32, the input tokens.
    ids
        ``(n, K)`` uint32, the kept token ids, ascending within a row; unused slots come last and hold ``0xFFFFFFFF``.
    values
        ``(n, K)`` float16, in the order of ``ids``: log-probabilities over the whole vocabulary, or raw logits, as the
        store says; unused slots hold ``-inf``.
    lse
        ``(n,)`` float32, log-sum-exp of the logits over the whole vocabulary; NaN where a row was not asked for.
    label_logprob
        ``(n,)`` float32, log-probability of the next token; NaN where there is none.
    mask
        ``(n,)`` uint8, 1 where the row is a training target.
    counts
        ``(n, K)`` uint8, draws per id, 0 in unused slots; None unless the selection draws samples.
    lse_T
        ``(n, m)`` float32, log-sum-exp of ``logits / T`` at ``m`` further temperatures; None unless asked for.
    """

    tokens: NDArray[np.uint32]
    ids: NDArray[np.uint32]
    values: NDArray[np.float16]
    lse: NDArray[np.float32]
    label_logprob: NDArray[np.float32]
    mask: NDArray[np.uint8]
    counts: NDArray[np.uint8] | None = None
    lse_T: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def entries_in(self, start: int, stop: int) -> int:
        """Return how many entries rows ``start:stop`` keep."""
        return int(np.count_nonzero(self.ids[start:stop] != layout.UNUSED_ID))


@dataclass(frozen=True)
class RowsCodedElsewhere(RowBatch):
    """Rows whose ids, values and counts come to their container as chunks: here they have no columns.

    Attributes
    ----------
    entries
        ``(n,)`` int32, how many entries each row keeps.
    """

    entries: NDArray[np.int32] | None = None

    def entries_in(self, start: int, stop: int) -> int:
        """Return how many entries rows ``start:stop`` keep."""
        assert self.entries is not None
        return int(self.entries[start:stop].sum())


def by_id(rows: RowBatch) -> RowBatch:
    """Return the same rows with the entries of each in ascending order of their ids."""
    if (rows.ids[:, 1:] >= rows.ids[:, :-1]).all():
        return rows
    order = np.argsort(rows.ids, axis=1, kind="stable")
    counts = None if rows.counts is None else np.take_along_axis(rows.counts, order, axis=1)
    return dataclasses.replace(
        rows, ids=np.take_along_axis(rows.ids, order, axis=1), values=np.take_along_axis(rows.values, order, axis=1),
        counts=counts,
    )  # fmt: skip
