"""Teacher and selection: batches of documents in, their kept rows out, on the way to host memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from logitstore.build.gather import Gatherer
from logitstore.build.transfer import DeviceClock, HostCopy, ToHost, columns_of
from logitstore.select import SelectedRows, select_rows
from logitstore.teacher import plan_batches
from logitstore.teacher.teacher import to_device

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from logitstore.build.config import BuildConfig
    from logitstore.build.gather import GatheredRows
    from logitstore.build.windows import Window
    from logitstore.corpus import CorpusCounters
    from logitstore.stopwatch import Stopwatch
    from logitstore.teacher import LogitRows, Teacher

__all__ = ["ExtractedBatch", "ExtractedChunk", "Extractor", "Tally"]


@dataclass(frozen=True)
class ExtractedChunk:
    """Rows of one chunk: which document of the window, which row of it, and what is kept."""

    documents: NDArray[np.int64]
    rows: NDArray[np.int64]
    kept: HostCopy


@dataclass(frozen=True)
class ExtractedBatch:
    """All kept rows of some documents of a window; ``gathered`` has their entries, if the device is to encode them."""

    documents: tuple[int, ...]
    chunks: tuple[ExtractedChunk, ...]
    gathered: GatheredRows | None = None


@dataclass
class Tally:
    """What the teacher said in sum, for the summary at the end."""

    rows: int = 0
    sums: torch.Tensor = field(default_factory=lambda: torch.zeros(3, dtype=torch.float64))

    def add(self, kept: SelectedRows, values: str) -> None:
        """Add kept mass, negative log-likelihood of the labels, and the number of labels."""
        offset = kept.lse[:, None] if values == "logit" else 0.0
        mass = (kept.values.float() - offset).exp().sum()
        labelled = ~kept.label_logprob.isnan()
        loss = -kept.label_logprob.nan_to_num(0.0).sum(dtype=torch.float64)
        self.sums = self.sums.to(mass.device) + torch.stack([mass.double(), loss, labelled.sum().double()])
        self.rows += len(kept)

    @property
    def kept_mass(self) -> float:
        """Mean probability of the kept entries together."""
        return float(self.sums[0]) / self.rows if self.rows else float("nan")

    @property
    def perplexity(self) -> float:
        """Perplexity of the teacher on the labels."""
        return float(torch.exp(self.sums[1] / self.sums[2])) if self.sums[2] else float("nan")


class Extractor:
    """Run the teacher over windows.

    Parameters
    ----------
    teacher, config
        Who, and what to keep.
    watch
        Gets the seconds of ``forward`` and ``selection``.
    gather
        Whether entries stay on the device until it encodes them.

    Attributes
    ----------
    clock, tally
        Where the seconds go; what the teacher said in sum.
    tokens
        Tokens of the documents run so far.

    Raises
    ------
    InvalidArgumentError
        Entries are to stay on the device, which does not encode with the configuration's codec.
    """

    def __init__(self, teacher: Teacher, config: BuildConfig, watch: Stopwatch, *, gather: bool = False) -> None:
        self._gatherer = Gatherer(config, teacher.vocab_size) if gather else None
        self._teacher = teacher
        self._config = config
        self.clock = DeviceClock(teacher.device, watch)
        self.tally = Tally()
        self.tokens = 0
        self._to_host = ToHost()

    @property
    def gathers(self) -> bool:
        """Whether entries stay on the device until it encodes them."""
        return self._gatherer is not None

    @property
    def tokenizer(self) -> Any:
        """The teacher's tokenizer."""
        return self._teacher.tokenizer

    def run(self, window: Window, committed_rows: int) -> Iterator[Window | ExtractedBatch | None]:
        """Yield the window, then its batches; None where there is only progress to tell.

        Where entries stay on the device, all rows come at once, behind the last batch.
        """
        yield window
        if self._gatherer is None:
            yield from self.batches(window, committed_rows)
        elif window.first_rows[-1] > committed_rows:
            yield from self._gathered(self._gatherer, window, committed_rows)

    def _gathered(
        self, gatherer: Gatherer, window: Window, committed_rows: int
    ) -> Iterator[Window | ExtractedBatch | None]:
        gatherer.lay_out(window.first_rows)
        documents: list[int] = []
        chunks: list[ExtractedChunk] = []
        for batch in self.batches(window, committed_rows):
            documents += batch.documents
            chunks += batch.chunks
            yield None
        yield ExtractedBatch(tuple(documents), tuple(chunks), gatherer.take(self._teacher.device))

    def estimated_rows(self, counters: CorpusCounters) -> int | None:
        """Rows of all windows, judged by what was read so far; None if unknown."""
        return counters.estimated_tokens()

    def batches(self, window: Window, committed_rows: int) -> Iterator[ExtractedBatch]:
        """Yield the batches of a window. One whose rows are all committed already is not computed."""
        first_rows = window.first_rows
        lengths = [len(document.tokens) for document in window.documents]
        for batch in plan_batches(lengths, self._config.tokens_per_batch):
            if any(first_rows[number + 1] > committed_rows for number in batch):
                yield self._run(window, batch)

    @torch.inference_mode()
    def _run(self, window: Window, batch: list[int]) -> ExtractedBatch:
        documents = [window.documents[number] for number in batch]
        needed = [document.mask for document in documents] if self._config.rows == "masked" else None
        rows = self._teacher.forward_rows(
            [document.tokens for document in documents], rows_per_chunk=self._config.rows_per_chunk, needed=needed
        )
        chunks = []
        while True:
            with self.clock.measure("forward"):
                logits = next(rows, None)
            if logits is None:
                break
            numbers = np.array(batch)[logits.documents]
            with self.clock.measure("selection"):
                kept = self._select(window, numbers, logits)
            chunks.append(ExtractedChunk(numbers, logits.rows, self._send(kept, numbers, logits.rows)))
        self.tokens += sum(len(document.tokens) for document in documents)
        return ExtractedBatch(tuple(batch), tuple(chunks))

    def _send(self, kept: SelectedRows, numbers: NDArray[np.int64], rows: NDArray[np.int64]) -> HostCopy:
        """Start bringing rows to the host, or what it needs of them, given the document and row of it each is."""
        return self._to_host.copy(
            columns_of(kept) if self._gatherer is None else self._gatherer.put(kept, numbers, rows)
        )

    def _select(self, window: Window, numbers: NDArray[np.int64], logits: LogitRows) -> SelectedRows:
        keys = None
        if self._config.selection.samples is not None:
            keys = to_device(self._row_keys(window, numbers, logits.rows), logits.logits.device)
        # To hear whether a row is to be refused, this thread would wait for the device, and the device then for it:
        # the writer's asks, when the rows have arrived.
        kept = select_rows(
            logits.logits, self._config.selection, logits.labels, keys,
            values=self._config.values, temperatures=self._config.temperatures, check=False,
        )  # fmt: skip
        self.tally.add(kept, self._config.values)
        return kept

    def _row_keys(self, window: Window, numbers: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return what draws depend on: the row's number in the store, the same however the documents are batched."""
        return np.array(window.first_rows)[numbers] + rows
