"""Batches of held-out text, as the student's tokenizer reads it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from logitstore.corpus import CorpusConfig, iter_documents
from logitstore.errors import InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from logitstore.records import TokenDocument

__all__ = ["TextBatches"]


class TextBatches:
    """A corpus in memory, padded batch by batch.

    Parameters
    ----------
    path
        A corpus of `logitstore.corpus`: a file, a folder, a glob, a URL or a dataset.
    tokenizer
        The student's.
    seq_len
        Longer documents are cut; a piece's last token predicts nothing.
    batch_size
        Sequences of a batch.
    num_replicas, rank
        Batches are dealt to ranks in turn.

    Raises
    ------
    InvalidArgumentError
        If there is nothing in it to predict.
    """

    def __init__(
        self, path: str, tokenizer: Any, *, seq_len: int, batch_size: int, num_replicas: int = 1, rank: int = 0
    ) -> None:
        found = iter_documents(CorpusConfig(data=(path,), seq_len=seq_len), tokenizer)
        self._documents = [item.document for item in found]
        if not any(document.mask.any() for document in self._documents):
            raise InvalidArgumentError("there are no tokens to predict in the text to evaluate on", path=path)
        self._batch_size, self._turn = batch_size, (rank, num_replicas)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Yield this rank's batches: ``tokens`` and ``labels`` ``(B, T)`` int64, already shifted, ``mask`` bool."""
        rank, replicas = self._turn
        for start in range(rank * self._batch_size, len(self._documents), replicas * self._batch_size):
            yield _padded(self._documents[start : start + self._batch_size])


def _padded(documents: list[TokenDocument]) -> dict[str, Tensor]:
    shape = len(documents), max(len(document.tokens) for document in documents)
    tokens, labels, mask = np.zeros(shape, np.int64), np.full(shape, -100, np.int64), np.zeros(shape, bool)
    for row, document in enumerate(documents):
        n = len(document.tokens)
        tokens[row, :n] = document.tokens
        mask[row, :n] = document.mask != 0
        labels[row, : n - 1] = np.where(mask[row, : n - 1], document.tokens[1:], -100)
    return {name: torch.from_numpy(array) for name, array in (("tokens", tokens), ("labels", labels), ("mask", mask))}
