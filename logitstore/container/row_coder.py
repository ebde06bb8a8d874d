"""Chunks of entries on their way to disk: ids, values and counts of the same rows, coded together."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from logitstore.codec.compact import IdCodec, ValueCodec
from logitstore.codec.compact.loss import LossMeasure
from logitstore.container.loss_meter import LossMeter

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from logitstore.codec.compact import Codebook
    from logitstore.container.fields import Field

__all__ = ["BookCodecs", "CodedRows", "RowCoder", "array_of"]


@dataclass(frozen=True)
class CodedRows:
    """Chunks of the same rows by array, and what quantising lost of them; None where nothing is measured."""

    chunks: dict[str, bytes]
    loss: LossMeter | None = None


class BookCodecs:
    """Codes with the codebooks of one set.

    Parameters
    ----------
    books
        Array name → codebook.
    slots
        Entries a row has room for.
    """

    def __init__(self, books: Mapping[str, Codebook], slots: int) -> None:
        self.books = dict(books)
        self._ids = IdCodec(books["ids"], slots)  # type: ignore[arg-type]
        others = {name: book for name, book in books.items() if name != "ids"}
        self._others = {name: ValueCodec(book, slots) for name, book in others.items()}  # type: ignore[arg-type]
        lossy = {name: book for name, book in others.items() if book.max_error}  # type: ignore[union-attr]
        self._losses = {name: LossMeasure(book) for name, book in lossy.items()}  # type: ignore[arg-type]

    def encode(self, arrays: Mapping[str, NDArray[Any]]) -> CodedRows:
        """Encode rows whose ids ascend."""
        rows = self._ids.arrange(np.ascontiguousarray(arrays["ids"]))
        chunks = {"ids": self._ids.encode(rows)}
        loss = None
        for name, codec in self._others.items():
            values = rows.take(np.ascontiguousarray(arrays[name]))
            chunks[name] = codec.encode(values)
            if name in self._losses:
                loss = LossMeter()
                loss.add(self._losses[name](values, rows.counts), rows.counts)
        return CodedRows(chunks, loss)


class RowCoder:
    """Codes the arrays that have an entry per slot, and knows which rows are coded with what.

    Parameters
    ----------
    fields
        The store's arrays; others than those of entries are passed over.
    """

    def __init__(self, fields: Sequence[Field]) -> None:
        self.fields = tuple(field for field in fields if field.kind in ("ids", "values"))
        self._first_rows: list[int] = []
        self._codecs: list[BookCodecs | None] = []

    def use(self, first_row: int, codecs: BookCodecs | None) -> None:
        """Code chunks that begin at a row or behind it with these; with the exact codec, if None."""
        self._first_rows.append(first_row)
        self._codecs.append(codecs)

    def encode(self, first_row: int, arrays: Mapping[str, NDArray[Any]]) -> CodedRows:
        """Encode a chunk of each array, which begins at a row of the store."""
        place = bisect_right(self._first_rows, first_row)
        codecs = self._codecs[place - 1] if place else None
        if codecs is None:
            return CodedRows({field.name: field.encode_chunk(arrays[field.name]) for field in self.fields})
        return codecs.encode(arrays)


def array_of(rows: Any, name: str) -> Any:
    """Return an array of rows by its name in the store."""
    return rows.values if name in ("logprobs", "logits") else getattr(rows, name)
