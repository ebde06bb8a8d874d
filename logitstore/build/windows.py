"""Windows of documents: the span within which they may be reordered to make batches without much padding.

Windows depend on the corpus and the configuration alone, and so do the batches within them: a build that resumes at
the start of a window computes the same batches, and gets the same bytes, as one that was never interrupted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from logitstore.corpus import iter_documents

if TYPE_CHECKING:
    from collections.abc import Iterator

    from logitstore.corpus import CorpusConfig, CorpusCounters
    from logitstore.records import TokenDocument

__all__ = ["Cursor", "Window", "iter_windows"]


@dataclass(frozen=True)
class Cursor:
    """Start of a window: in the corpus (record, piece of the record) and in the store (document, row)."""

    record: int = 0
    piece: int = 0
    document: int = 0
    row: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return it for ``progress.json``."""
        return dict(self.__dict__)


@dataclass(frozen=True)
class Window:
    """Consecutive documents and where the first of them stands."""

    cursor: Cursor
    documents: tuple[TokenDocument, ...]

    @property
    def first_rows(self) -> list[int]:
        """Row of the store at which each document begins, and the row behind the last one."""
        rows = [self.cursor.row]
        for document in self.documents:
            rows.append(rows[-1] + len(document.tokens))
        return rows


def iter_windows(
    corpus: CorpusConfig, tokenizer: Any, window_tokens: int, start: Cursor, counters: CorpusCounters
) -> Iterator[Window]:
    """Yield windows of at least ``window_tokens`` tokens (the last one may be shorter), from ``start`` on."""
    cursor, tokens = start, 0
    documents: list[TokenDocument] = []
    for item in iter_documents(corpus, tokenizer, skip_documents=start.record, counters=counters):
        if item.source_index == start.record and item.window < start.piece:
            continue
        if not documents:
            cursor = Cursor(item.source_index, item.window, cursor.document, cursor.row)
        documents.append(item.document)
        tokens += len(item.document.tokens)
        if tokens >= window_tokens:
            yield Window(cursor, tuple(documents))
            cursor = Cursor(0, 0, cursor.document + len(documents), cursor.row + tokens)
            documents, tokens = [], 0
    if documents:
        yield Window(cursor, tuple(documents))
