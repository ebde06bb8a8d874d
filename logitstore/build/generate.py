"""The teacher writes and says what it thought: batches of prompts in, whole documents with their kept rows out."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from logitstore.build.extract import ExtractedBatch, ExtractedChunk, Extractor
from logitstore.build.generation import generation_settings, new_tokens
from logitstore.build.windows import Window
from logitstore.errors import CorruptDataError
from logitstore.teacher import Decoding, require_decoding
from logitstore.teacher.teacher import to_device

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from numpy.typing import NDArray

    from logitstore.build.config import BuildConfig
    from logitstore.corpus import CorpusCounters
    from logitstore.stopwatch import Stopwatch
    from logitstore.teacher import Teacher

__all__ = ["GeneratingExtractor"]

_ROW_BITS = 32


class GeneratingExtractor(Extractor):
    """Have the teacher go on with the prompts of windows. Parameters as `Extractor`.

    Raises
    ------
    InvalidArgumentError
        The teacher cannot write.
    """

    def __init__(self, teacher: Teacher, config: BuildConfig, watch: Stopwatch, *, gather: bool = False) -> None:
        super().__init__(teacher, config, watch, gather=gather)
        assert config.generation is not None
        require_decoding(teacher)
        self._sampling = config.generation.sampling
        self._end_tokens = generation_settings(config.generation, teacher)["end_tokens"]
        self._row: int | None = None
        self._written = (0, 0)

    def run(self, window: Window, committed_rows: int) -> Iterator[Window | ExtractedBatch | None]:
        """Yield the window with its documents as they were written, then their rows; None now and then before."""
        prompts = window.documents
        # The first window's row is known; each further one begins where the one before turned out to end.
        first_row = window.cursor.row if self._row is None else self._row
        decoding = Decoding(
            self._teacher,
            [prompt.tokens for prompt in prompts],
            [new_tokens(self._config, prompt) for prompt in prompts],
            lambda logits, sequences, step: self._choose(window, logits, sequences, step),
            end_tokens=self._end_tokens,
            rows_per_chunk=self._config.rows_per_chunk,
            all_rows=self._config.rows == "all",
        )
        chunks = []
        rows = decoding.rows()
        while True:
            with self.clock.measure("forward"):
                logits = next(rows, None)
            if logits is None:
                break
            with self.clock.measure("selection"):
                kept = self._select(window, logits.documents, logits)
            sent = self._send(kept, logits.documents, logits.rows)
            chunks.append(ExtractedChunk(logits.documents, logits.rows, sent))
            self.tokens = max(self.tokens, first_row + decoding.tokens - committed_rows)
            yield None
        documents = tuple(
            dataclasses.replace(
                prompt,
                tokens=np.concatenate([prompt.tokens, np.array(generated, np.uint32)]),
                mask=np.repeat([0, 1, 0], [len(prompt.tokens) - 1, len(generated), 1]).astype(np.uint8),
            )
            for prompt, generated in zip(prompts, decoding.generated, strict=True)
        )
        written = Window(dataclasses.replace(window.cursor, row=first_row), documents)
        self._row = written.first_rows[-1]
        self._written = (self._written[0] + len(documents), self._written[1] + self._row - first_row)
        yield written
        gathered = None
        if self._gatherer is not None:
            # Only now is it known where the store has each document.
            self._gatherer.lay_out(written.first_rows)
            gathered = self._gatherer.take(self._teacher.device)
        yield ExtractedBatch(tuple(range(len(documents))), tuple(chunks), gathered)

    def estimated_rows(self, counters: CorpusCounters) -> int | None:
        """Rows of all windows, judged by what was written so far."""
        prompts = counters.estimated_documents()
        documents, rows = self._written
        if prompts is None or not documents:
            return None
        assert self._config.generation is not None
        return round(prompts * self._config.generation.samples_per_prompt * rows / documents)

    def _choose(self, window: Window, logits: torch.Tensor, sequences: NDArray[np.int64], step: int) -> torch.Tensor:
        documents = to_device(window.cursor.document + sequences, logits.device)
        try:
            return self._sampling.choose(logits, documents, step)
        except CorruptDataError as error:
            document = window.documents[int(sequences[error.row or 0])]
            raise CorruptDataError(
                f"{error.message} (token {step} that was to be written for document {document.key!r})"
            ) from None

    def _row_keys(self, window: Window, numbers: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.int64]:
        # While a batch is written, nobody knows how many rows lie before its documents.
        return ((window.cursor.document + numbers) << _ROW_BITS) + rows
