from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from logitstore.errors import InvalidArgumentError
from logitstore.teacher.batches import plan_batches
from logitstore.teacher.head import call_model, run_base

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

__all__ = ["LogitRows", "Teacher", "to_device"]


@dataclass(frozen=True)
class LogitRows:
    """A chunk of ``n`` rows of logits and where they belong.

    Attributes
    ----------
    logits
        ``(n, V)`` in the teacher's dtype, on its device; ``V`` is the real vocabulary size.
    labels
        ``(n,)`` int64 beside the logits: the next token of the document, -1 after its last one.
    documents
        ``(n,)`` int64 in host memory: number of the document in the batch.
    rows
        ``(n,)`` int64 in host memory: number of the row in its document.
    """

    logits: torch.Tensor
    labels: torch.Tensor
    documents: NDArray[np.int64]
    rows: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)


class Teacher:
    """A causal language model with its tokenizer, ready to run. Made by `load_teacher`.

    Attributes
    ----------
    model, tokenizer
        The transformers objects.
    device
        Where inputs go.
    vocab_size
        Real vocabulary size: the tokenizer's largest id + 1.
    padded_vocab_size
        Width of the model's logits; what exceeds the real size is padding and is cut off before anything is computed.
    max_length
        Tokens of the longest document that the model takes, or None if it has no such limit.
    head
        The model's forward from hidden states, given as ``inputs_embeds``, to logits; None if it cannot be had alone.
    head_path
        "chunked" if the head runs on chunks of rows, "full" if only the model's whole forward gives its logits.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        head: torch.nn.Module | None,
        device: torch.device,
        vocab_size: int,
        padded_vocab_size: int,
        max_length: int | None,
        description: dict[str, Any],
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.device = device
        self.vocab_size = vocab_size
        self.padded_vocab_size = padded_vocab_size
        self.max_length = max_length
        self.head_path = "full" if head is None else "chunked"
        self.head = head
        self._description = description

    def describe(self) -> dict[str, Any]:
        """Return what the manifest says about the teacher, as JSON.

        Under "identity" is what makes two teachers the same, wherever they lie: architecture, dtype, vocabulary sizes,
        sha256 of config.json and digest of the weights. Beside it: "id" as the user gave it, "revision" (the commit,
        where the hub told it), "head_path", and "versions" of torch and transformers.
        """
        return {**self._description, "head_path": self.head_path}

    @torch.inference_mode()
    def forward_rows(
        self,
        documents: Sequence[NDArray[np.uint32]],
        *,
        rows_per_chunk: int,
        needed: Sequence[NDArray[Any]] | None = None,
    ) -> Iterator[LogitRows]:
        """Run the teacher over a batch of documents and give the logits a chunk of rows at a time.

        Documents are padded on the right and masked: no row sees another document, and padding has no row. Rows of a
        document come in rising order, once each. At most ``rows_per_chunk`` rows of logits exist at a time; only a
        model of ``head_path`` "full" that cannot be asked for single rows needs as many as its longest document has.

        Parameters
        ----------
        documents
            Tokens of each document, ``(L,)``, any integer dtype.
        rows_per_chunk
            At least 1.
        needed
            Per document ``(L,)``, true where the row is wanted; None wants all. Other rows skip the head.

        Raises
        ------
        InvalidArgumentError
            If a document is empty, longer than the teacher's context, or has a token outside of the vocabulary.
        """
        self.check_documents(documents, rows_per_chunk, needed)
        wanted = [
            np.arange(len(tokens)) if needed is None else np.flatnonzero(needed[i])
            for i, tokens in enumerate(documents)
        ]
        if self.head is not None:
            yield from self._chunked(list(range(len(documents))), documents, wanted, rows_per_chunk)
            return
        for batch in plan_batches([len(tokens) for tokens in documents], rows_per_chunk):
            yield from self._full(batch, documents, wanted, rows_per_chunk)

    def _chunked(
        self,
        batch: list[int],
        documents: Sequence[NDArray[np.uint32]],
        wanted: list[NDArray[np.int64]],
        rows_per_chunk: int,
    ) -> Iterator[LogitRows]:
        index = _RowIndex(batch, documents, wanted)
        if not len(index):
            return
        assert self.head is not None
        hidden = run_base(self.model, **self._inputs(batch, documents)).flatten(0, 1)
        positions, labels = to_device(index.positions, hidden.device), to_device(index.labels, hidden.device)
        for start in range(0, len(index), rows_per_chunk):
            chunk = slice(start, start + rows_per_chunk)
            logits = self.head(inputs_embeds=hidden.index_select(0, positions[chunk])[None]).logits[0]
            yield self._rows(logits, labels[chunk], index, chunk)

    def _full(
        self,
        batch: list[int],
        documents: Sequence[NDArray[np.uint32]],
        wanted: list[NDArray[np.int64]],
        rows_per_chunk: int,
    ) -> Iterator[LogitRows]:
        index = _RowIndex(batch, documents, wanted)
        if not len(index):
            return
        inputs = self._inputs(batch, documents)
        longest = inputs["input_ids"].shape[1]
        asks_for_rows = longest > rows_per_chunk and _keeps_single_rows(self.model)
        logits = None if asks_for_rows else call_model(self.model, use_cache=False, **inputs).logits.flatten(0, 1)
        for start in range(0, len(index), rows_per_chunk):
            chunk = slice(start, start + rows_per_chunk)
            if logits is None:
                # One document, longer than a chunk: the model runs again for every chunk, which costs time, not memory.
                keep = to_device(index.positions[chunk], self.device)
                part = call_model(self.model, use_cache=False, logits_to_keep=keep, **inputs).logits[0]
            else:
                part = logits.index_select(0, to_device(index.positions[chunk], logits.device))
            yield self._rows(part, to_device(index.labels[chunk], part.device), index, chunk)

    def _rows(self, logits: torch.Tensor, labels: torch.Tensor, index: _RowIndex, chunk: slice) -> LogitRows:
        return LogitRows(logits[:, : self.vocab_size], labels, index.documents[chunk], index.rows[chunk])

    def _inputs(self, batch: list[int], documents: Sequence[NDArray[np.uint32]]) -> dict[str, torch.Tensor]:
        longest = max(len(documents[document]) for document in batch)
        input_ids = np.zeros((len(batch), longest), dtype=np.int64)
        attention_mask = np.zeros_like(input_ids)
        for i, document in enumerate(batch):
            length = len(documents[document])
            input_ids[i, :length] = documents[document]
            attention_mask[i, :length] = 1
        return {
            "input_ids": to_device(input_ids, self.device),
            "attention_mask": to_device(attention_mask, self.device),
            "position_ids": torch.arange(longest, device=self.device).expand(len(batch), longest),
        }

    def check_documents(
        self,
        documents: Sequence[NDArray[np.uint32]],
        rows_per_chunk: int,
        needed: Sequence[NDArray[Any]] | None = None,
    ) -> None:
        """Raise what `forward_rows` raises for its arguments."""
        if rows_per_chunk < 1:
            raise InvalidArgumentError(f"rows_per_chunk must be at least 1, not {rows_per_chunk}")
        if not documents:
            raise InvalidArgumentError("a batch must hold at least one document")
        for i, tokens in enumerate(documents):
            if len(tokens) == 0:
                raise InvalidArgumentError(
                    f"a document must have at least one token; document {i} of the batch has none"
                )
            if self.max_length is not None and len(tokens) > self.max_length:
                raise InvalidArgumentError(
                    f"document {i} of the batch has {len(tokens)} tokens, more than the teacher's context of"
                    f" {self.max_length}; set --seq-len to {self.max_length} or less to cut documents into windows"
                )
            if int(tokens.max()) >= self.vocab_size:
                raise InvalidArgumentError(
                    f"document {i} of the batch has the token id {int(tokens.max())}, but the teacher's vocabulary has"
                    f" {self.vocab_size} ids"
                )
            if needed is not None and len(needed[i]) != len(tokens):
                raise InvalidArgumentError(
                    f"needed must have one entry per row; document {i} of the batch has {len(tokens)} rows, and"
                    f" {len(needed[i])} entries"
                )


class _RowIndex:
    """Where the wanted rows of a batch lie in its padded ``(B * L)`` positions, and which token follows each."""

    def __init__(
        self, batch: list[int], documents: Sequence[NDArray[np.uint32]], wanted: list[NDArray[np.int64]]
    ) -> None:
        longest = max(len(documents[document]) for document in batch)
        followed = [np.append(documents[document][1:].astype(np.int64), -1) for document in batch]
        self.rows = np.concatenate([wanted[document] for document in batch])
        self.documents = np.repeat(np.array(batch), [len(wanted[document]) for document in batch])
        self.positions = np.concatenate([i * longest + wanted[document] for i, document in enumerate(batch)])
        self.labels = np.concatenate([followed[i][wanted[document]] for i, document in enumerate(batch)])

    def __len__(self) -> int:
        return len(self.rows)


def to_device(array: NDArray[np.int64], device: torch.device) -> torch.Tensor:
    """Copy to a device without waiting for it."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    # Only pinned memory is copied without waiting for the device.
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _keeps_single_rows(model: Any) -> bool:
    return "logits_to_keep" in inspect.signature(model.forward).parameters
