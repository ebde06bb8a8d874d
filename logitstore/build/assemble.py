"""Back in order: the rows of a window's documents, computed batch by batch, given out document by document."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from logitstore import layout
from logitstore.errors import CorruptDataError
from logitstore.records import RowBatch, RowsCodedElsewhere
from logitstore.select import refused_row

if TYPE_CHECKING:
    from collections.abc import Iterator

    from logitstore.build.extract import ExtractedBatch
    from logitstore.build.windows import Window
    from logitstore.records import TokenDocument

__all__ = ["Assembler"]


class Assembler:
    """Collect the batches of one window.

    Parameters
    ----------
    window
        The window.
    slots, counts, temperatures
        ``K``, whether draws are counted, and how many further temperatures there are.
    committed_rows
        Rows already on disk: documents that end before are given out without rows.
    coded
        Whether entries do not come this way, but only how many there are.
    """

    def __init__(
        self,
        window: Window,
        *,
        slots: int,
        counts: bool,
        temperatures: int,
        committed_rows: int,
        coded: bool = False,
    ) -> None:
        self.window = window
        self._coded = coded
        self._shape = (slots, counts, temperatures)
        self._skipped = [row <= committed_rows for row in window.first_rows[1:]]
        self._done: dict[int, RowBatch] = {}
        self._next = 0

    def require_sound(self, batch: ExtractedBatch) -> None:
        """Raise `CorruptDataError` for the first row of a batch that the selection refused."""
        for chunk in batch.chunks:
            arrays = chunk.kept.arrays()
            refused = refused_row(*(torch.from_numpy(arrays[name]) for name in ("refused", "lse")))
            if refused is not None:
                number, row = int(chunk.documents[refused[0]]), int(chunk.rows[refused[0]])
                raise CorruptDataError(
                    f"{refused[1]} (row {row} of document {self.window.documents[number].key!r})",
                    row=self.window.first_rows[number] + row,
                )

    def add(self, batch: ExtractedBatch) -> Iterator[tuple[TokenDocument, RowBatch | None]]:
        """Take a batch of sound rows; yield the documents that can go out now, in order."""
        rows = {number: self._blank(self.window.documents[number]) for number in batch.documents}
        for chunk in batch.chunks:
            arrays = {name: array for name, array in chunk.kept.arrays().items() if name != "refused"}
            if not self._coded:
                arrays["ids"] = arrays["ids"].view(np.uint32)  # -1 becomes the unused id
            # A chunk of what a teacher wrote goes from document to document with every token.
            order = np.argsort(chunk.documents, kind="stable")
            for part in np.split(order, np.flatnonzero(np.diff(chunk.documents[order])) + 1):
                target = rows[int(chunk.documents[part[0]])]
                for name, array in arrays.items():
                    getattr(target, name)[chunk.rows[part]] = array[part]
        self._done.update(rows)
        yield from self.ready()

    def ready(self) -> Iterator[tuple[TokenDocument, RowBatch | None]]:
        """Yield the documents that can go out now."""
        while self._next < len(self.window.documents):
            number = self._next
            if number not in self._done and not self._skipped[number]:
                return
            self._next += 1
            yield self.window.documents[number], self._done.pop(number, None)

    def _blank(self, document: TokenDocument) -> RowBatch:
        n = len(document.tokens)
        slots, counts, temperatures = self._shape
        slots = 0 if self._coded else slots
        kind = partial(RowsCodedElsewhere, entries=np.zeros(n, np.int32)) if self._coded else RowBatch
        return kind(
            tokens=document.tokens,
            ids=np.full((n, slots), layout.UNUSED_ID, np.uint32),
            values=np.full((n, slots), -np.inf, np.float16),
            lse=np.full(n, np.nan, np.float32),
            label_logprob=np.full(n, np.nan, np.float32),
            mask=document.mask,
            counts=np.zeros((n, slots), np.uint8) if counts else None,
            lse_T=np.full((n, temperatures), np.nan, np.float32) if temperatures else None,
        )
