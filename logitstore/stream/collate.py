"""`Collate`: documents to a batch, said plainly. `assemble` makes the same batches without documents in between."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch

from logitstore.errors import InvalidArgumentError
from logitstore.stream.batch_fields import IGNORED, PADDING, SLOTTED, values_name
from logitstore.stream.packing import pack_plainly

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import Tensor

    from logitstore.reader import Document

__all__ = ["Collate", "Piece"]


class Piece(NamedTuple):
    """Rows ``start:stop`` of a document."""

    document: Document
    start: int
    stop: int


@dataclass(frozen=True)
class Collate:
    """How a batch is laid out; called with documents, it makes one.

    A batch is a plain dict of tensors, B sequences of T rows. Row ``t`` is what the teacher said after token ``t``, and
    ``labels[b, t]`` is the token it speaks of: **labels are already shifted**. Do not pass them as ``labels=`` to a
    model of transformers, which shifts once more; ``shift_labels=`` is right.

    ================== ================ ======================================================================
    tokens             (B, T) int64     0 in padding
    labels             (B, T) int64     the next token of the same document where mask is set, else -100
    mask               (B, T) bool      where the row is a training target
    attention_mask     (B, T) bool      where there is a row
    position_ids       (B, T) int64     counted from the piece's first row; 0 in padding
    document_ids       (B, T) int64     number of the document in the store; -1 in padding
    ids                (B, T, K) int32  kept token ids; -1 in unused slots
    logprobs | logits  (B, T, K)        float16 as stored, float32 if derived by lse; -inf in unused slots
    lse, label_logprob (B, T) float32   NaN where there is none
    counts             (B, T, K) uint8  if the store has them
    lse_T              (B, T, m) float32  if the store has them
    cu_seqlens         (s + 1,) int32   with pack: where segments of the flattened B * T rows begin, and B * T.
                                        Padding at the end of a sequence is a segment too.
    max_seqlen         () int32         with pack: length of the longest segment
    ================== ================ ======================================================================

    With ``entries="flat"``, ``ids``, ``logprobs`` and ``counts`` are ``(E,)``, the used slots of all rows one after the
    other, and ``entry_offsets``, ``(B * T + 1,)`` int64, says where those of each flattened row begin.

    Attributes
    ----------
    seq_len
        Rows of a sequence. Longer documents are cut into pieces, and nothing is dropped: a piece's last row keeps its
        label, which comes from the document. Positions restart in each piece, because the student sees no more than
        the piece: in later pieces it sees less than the teacher saw. None leaves documents whole, and T is that of the
        longest.
    pack
        Several pieces in a sequence, to waste little on padding. Needs `seq_len`.
    entries
        ``"padded"``: K slots a row. ``"flat"``: the used ones alone.
    values
        ``"logprob"`` or ``"logit"``, whatever the store keeps; ``"stored"`` is what it keeps.
    order
        ``"stored"``: entries of a row as the documents have them, which for a stream is by rising id. ``"logit"``: by
        falling logit, ties by rising id.
    multiple_of
        T is rounded up to a multiple of it.
    fields
        Which of ids, values, lse, label_logprob, counts and lse_T to deliver; None means all that the store has.

    Raises
    ------
    InvalidArgumentError
        A setting is none of those, or two do not fit each other.

    Examples
    --------
    >>> from logitstore.stream import DocumentDataset
    >>> dataset = DocumentDataset("teacher.zarr")                                  # doctest: +SKIP
    >>> torch.utils.data.DataLoader(dataset, batch_size=8, collate_fn=Collate())   # doctest: +SKIP
    >>> Collate(seq_len=100, multiple_of=64)
    Traceback (most recent call last):
        ...
    logitstore.errors.InvalidArgumentError: seq_len is a multiple of multiple_of, found 100 and 64
    """

    seq_len: int | None = None
    pack: bool = False
    entries: Literal["flat", "padded"] = "padded"
    values: Literal["logit", "logprob", "stored"] = "stored"
    order: Literal["logit", "stored"] = "stored"
    multiple_of: int = 1
    fields: Sequence[str] | None = None

    def __post_init__(self) -> None:
        for name, allowed in _ALLOWED.items():
            if (value := getattr(self, name)) not in allowed:
                raise InvalidArgumentError(f"{name} is one of {', '.join(map(str, allowed))}, found {value!r}")
        for name, value in (("seq_len", self.seq_len), ("multiple_of", self.multiple_of)):
            if value is not None and (type(value) is not int or value < 1):
                raise InvalidArgumentError(f"{name} is a whole number from 1 on, found {value!r}")
        if self.pack and self.seq_len is None:
            raise InvalidArgumentError("pack needs a seq_len to pack documents into")
        if self.seq_len is not None and self.seq_len % self.multiple_of:
            raise InvalidArgumentError(
                f"seq_len is a multiple of multiple_of, found {self.seq_len} and {self.multiple_of}"
            )
        if self.fields is not None and (unknown := [name for name in self.fields if name not in PADDING]):
            raise InvalidArgumentError(f"fields are among {', '.join(PADDING)}, found {', '.join(unknown)}")

    def __call__(self, documents: Sequence[Document]) -> dict[str, Tensor]:
        """Return the batch of some documents; with a `seq_len`, its sequences may be more or fewer than they are."""
        if not documents:
            raise InvalidArgumentError("a batch has at least one document")
        pieces = [Piece(document, *span) for document in documents for span in self._spans(len(document))]
        if not self.pack or self.seq_len is None:
            return self.lay_out([[piece] for piece in pieces])
        lengths = np.array([piece.stop - piece.start for piece in pieces])
        numbers = pack_plainly(lengths, self.seq_len).tolist()
        sequences: list[list[Piece]] = [[] for _ in range(max(numbers) + 1)]
        for number, piece in zip(numbers, pieces, strict=True):
            sequences[number].append(piece)
        return self.lay_out(sequences)

    def lay_out(self, sequences: Sequence[Sequence[Piece]]) -> dict[str, Tensor]:
        """Return the batch that has these pieces in these sequences."""
        first = sequences[0][0].document
        fields = self.delivered(name for name in PADDING if getattr(first, name) is not None)
        name = values_name(self.values, first.stores)
        longest = max(sum(piece.stop - piece.start for piece in pieces) for pieces in sequences)
        B, T = len(sequences), self.columns(longest)
        batch: dict[str, Any] = {
            "tokens": np.zeros((B, T), np.int64),
            "labels": np.full((B, T), IGNORED, np.int64),
            "mask": np.zeros((B, T), bool),
            "attention_mask": np.zeros((B, T), bool),
            "position_ids": np.zeros((B, T), np.int64),
            "document_ids": np.full((B, T), -1, np.int64),
        }
        for field in fields:
            like = self._teacher(first, field, name)
            batch[name if field == "values" else field] = np.full((B, T, *like.shape[1:]), PADDING[field], like.dtype)
        used = np.zeros((B, T, first.ids.shape[1]), bool) if first.ids is not None else None
        segments = []
        for b, pieces in enumerate(sequences):
            column = 0
            for document, start, stop in pieces:
                rows, at = slice(start, stop), (b, slice(column, column + stop - start))
                target = (document.mask[rows] != 0) & (document.labels[rows] != IGNORED)
                batch["tokens"][at] = document.tokens[rows]
                batch["labels"][at] = np.where(target, document.labels[rows], IGNORED)
                batch["mask"][at] = target
                batch["attention_mask"][at] = True
                batch["position_ids"][at] = np.arange(stop - start)
                batch["document_ids"][at] = document.index
                for field in fields:
                    batch[name if field == "values" else field][at] = self._teacher(document, field, name)[rows]
                if used is not None:
                    used[at] = self._teacher(document, "ids", name)[rows] != PADDING["ids"]
                segments.append(stop - start)
                column += stop - start
            if column < T:
                segments.append(T - column)
        if self.entries == "flat" and used is not None and set(SLOTTED) & set(fields):
            for field in set(SLOTTED) & set(fields):
                key = name if field == "values" else field
                batch[key] = batch[key][used]
            batch["entry_offsets"] = np.concatenate([[0], np.cumsum(used.sum(axis=2).reshape(-1))])
        if self.pack:
            batch["cu_seqlens"] = np.concatenate([[0], np.cumsum(segments)]).astype(np.int32)
            batch["max_seqlen"] = np.array(max(segments), np.int32)
        return {key: torch.from_numpy(_signed(array)) for key, array in batch.items()}

    def delivered(self, available: Iterable[str]) -> tuple[str, ...]:
        """Return the teacher's fields of a batch, out of those a store has."""
        names = tuple(available)
        if self.fields is None:
            return names
        if missing := [name for name in self.fields if name not in names]:
            raise InvalidArgumentError(f"the store has fields {', '.join(names)}, not {', '.join(missing)}")
        return tuple(name for name in names if name in self.fields)

    def columns(self, longest: int) -> int:
        """Return T of a batch whose longest sequence has so many rows."""
        if self.seq_len is not None:
            return self.seq_len
        return -(-longest // self.multiple_of) * self.multiple_of

    def _spans(self, length: int) -> list[tuple[int, int]]:
        step = self.seq_len or length
        return [(start, min(start + step, length)) for start in range(0, length, step)]

    def _teacher(self, document: Document, field: str, name: str) -> Any:
        """Return a field of a document in this order, under the name its values have in a batch."""
        if self.order == "logit" and field in SLOTTED:
            document = document.by_logit()
        if field != "values":
            return getattr(document, field)
        derived = getattr(document, name)
        # Where the teacher was not asked lse is NaN, and an unused slot would become NaN too.
        return np.where(np.isneginf(document.values), document.values, derived).astype(derived.dtype, copy=False)


_ALLOWED = {
    "entries": ("padded", "flat"),
    "values": ("stored", "logprob", "logit"),
    "order": ("stored", "logit"),
    "pack": (False, True),
}


def _signed(array: Any) -> Any:
    """Return the array as a type PyTorch knows well: ids with the same bits, signed."""
    return array.view(np.int32) if array.dtype == np.uint32 else array
