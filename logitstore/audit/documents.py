"""A document in words: each token, what the teacher expected after it, and how it rated what came."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from logitstore import layout
from logitstore.errors import InvalidArgumentError
from logitstore.reader import open_store

if TYPE_CHECKING:
    import os

    from logitstore.audit.token_text import TokenText
    from logitstore.reader import Document

__all__ = ["Candidate", "DocumentView", "RowView", "show_document"]


@dataclass(frozen=True)
class Candidate:
    """A kept entry of a row. ``text`` is None where there is no tokenizer."""

    id: int
    text: str | None
    probability: float


@dataclass(frozen=True)
class RowView:
    """What the teacher said after one token.

    Attributes
    ----------
    row
        Number of the row within its document.
    token, text
        The token the teacher had just read.
    mask
        1 where the row is a training target.
    label, label_text
        The next token; None for the last row.
    label_rank
        Its rank among the kept entries, from 1; None where it is not kept or there is no label.
    label_probability
        The teacher's probability of it, kept or not; None where there is none.
    kept
        Entries the row holds.
    kept_mass
        Their probability together.
    candidates
        The most probable of them.
    """

    row: int
    token: int
    text: str | None
    mask: int
    label: int | None
    label_text: str | None
    label_rank: int | None
    label_probability: float | None
    kept: int
    kept_mass: float
    candidates: list[Candidate]


@dataclass(frozen=True)
class DocumentView:
    """Some rows of a document, in words."""

    document: int
    key: str
    first_row: int
    length: int
    parent: tuple[str, int] | None
    metadata: dict[str, Any]
    rows: list[RowView]
    notes: list[str]

    def to_json(self) -> dict[str, Any]:
        """Return the view as JSON."""
        return dataclasses.asdict(self)


def show_document(
    path: str | os.PathLike[str],
    document: int,
    *,
    rows: tuple[int | None, int | None] = (None, None),
    top: int = 5,
    tokenizer: str | None = None,
) -> DocumentView:
    """Show rows of a document with their most probable candidates.

    Parameters
    ----------
    path
        Directory of the store.
    document
        Its number; negative ones count from the end.
    rows
        First row and the one after the last, within the document, as in a slice.
    top
        Candidates to show, at least 1.
    tokenizer
        Folder or hub id. None tries the teacher the manifest names, without network, and shows ids if that fails.

    Raises
    ------
    InvalidArgumentError
        There is no such document, ``top`` is not positive, or ``tokenizer`` cannot be loaded.
    LogitStoreError
        The store cannot be read.
    """
    from logitstore.audit.token_text import load_token_text

    if top < 1:
        raise InvalidArgumentError(f"top is at least 1, found {top}")
    with open_store(path) as store:
        if not -len(store) <= document < len(store):
            raise InvalidArgumentError(
                f"the store has documents 0 to {len(store) - 1}, asked for {document}", path=path
            )
        found = store[document]
        text, notes = load_token_text(store.manifest, tokenizer)
    start, stop, _ = slice(*rows).indices(len(found))
    return DocumentView(
        document=found.index,
        key=found.key,
        first_row=found.first_row,
        length=len(found),
        parent=found.parent,
        metadata=found.metadata,
        rows=[_row_view(found, row, top, text) for row in range(start, stop)],
        notes=notes,
    )


def _row_view(document: Document, row: int, top: int, text: TokenText | None) -> RowView:
    def words(token: int) -> str | None:
        return None if text is None else text(token)

    kept = int(np.count_nonzero(document.ids[row] != layout.UNUSED_ID))
    ids = document.ids[row, :kept]
    # The rows were read in falling order, whichever kind of value is stored.
    offset = 0.0 if document.stores == "logprob" else float(document.lse[row])
    probabilities = np.exp(document.values[row, :kept].astype(np.float64) - offset)
    label = int(document.tokens[row + 1]) if row + 1 < len(document) else None
    places = np.flatnonzero(ids == (-1 if label is None else label))
    logprob = float(document.label_logprob[row])
    return RowView(
        row=row,
        token=int(document.tokens[row]),
        text=words(int(document.tokens[row])),
        mask=int(document.mask[row]),
        label=label,
        label_text=None if label is None else words(label),
        label_rank=int(places[0]) + 1 if len(places) else None,
        label_probability=None if label is None or math.isnan(logprob) else math.exp(logprob),
        kept=kept,
        kept_mass=float(probabilities.sum()),
        candidates=[
            Candidate(int(token), words(int(token)), float(probability))
            for token, probability in zip(ids[:top], probabilities[:top], strict=True)
        ],
    )
