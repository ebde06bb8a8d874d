"""Rows that stay on the device until a window is done, and leave it as chunks.

Chunks are of consecutive rows of the store, but documents of a window are run in an order of their own: so a window's
entries are gathered in its rows' order, in memory of the device, before they are encoded. There is one such piece for
the window at work, as many as wait for the writer, and rows of less than a chunk that the next window completes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch

from logitstore.build.extract import ExtractedBatch, ExtractedChunk, Extractor
from logitstore.errors import InvalidArgumentError
from logitstore.teacher.teacher import to_device

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

    from logitstore.build.config import BuildConfig
    from logitstore.build.transfer import HostCopy
    from logitstore.build.windows import Window
    from logitstore.select import SelectedRows
    from logitstore.stopwatch import Stopwatch
    from logitstore.teacher import Teacher

__all__ = ["ENTRIES", "GatheredRows", "GatheringExtractor"]

ENTRIES = {"ids": (torch.int32, -1), "values": (torch.float16, -torch.inf), "counts": (torch.uint8, 0)}
"""Types of what has a slot for every entry, and what stands in an unused one."""


@dataclass(frozen=True)
class GatheredRows:
    """Consecutive rows of the store, on the device.

    Attributes
    ----------
    first_row
        Row of the store.
    lse
        ``(n,)`` float32, NaN where a row was not asked for.
    entries
        ``(n, K)`` ids, values and perhaps counts.
    ready
        When the work is done that fills them; None on a CPU, where it is.
    """

    first_row: int
    lse: torch.Tensor
    entries: dict[str, torch.Tensor]
    ready: torch.cuda.Event | None = None


class GatheringExtractor(Extractor):
    """Run the teacher over windows, and keep the entries on the device. Parameters as `Extractor`.

    Raises
    ------
    InvalidArgumentError
        The container is not Zarr, the codec is not exact, or the teacher writes.
    """

    gathers: ClassVar[bool] = True

    def __init__(self, teacher: Teacher, config: BuildConfig, watch: Stopwatch) -> None:
        if config.container != "zarr" or config.codec.name != "exact" or config.generation is not None:
            raise InvalidArgumentError(
                "a device encodes what a teacher reads, with the exact codec and for a Zarr store; let the host encode "
                "everything else"
            )
        super().__init__(teacher, config, watch)
        self._slots = config.selection.slots(teacher.vocab_size)
        self._window: Window | None = None
        self._gathered: GatheredRows | None = None

    def run(self, window: Window, committed_rows: int) -> Iterator[Window | ExtractedBatch | None]:
        """Yield the window, None behind each batch, and then all rows at once."""
        yield window
        if window.first_rows[-1] <= committed_rows:
            return
        self._window, self._gathered = window, None
        documents: list[int] = []
        chunks: list[ExtractedChunk] = []
        for batch in self.batches(window, committed_rows):
            documents += batch.documents
            chunks += batch.chunks
            yield None
        # Where no row was asked for, there is nothing of the teacher's to say on which device.
        gathered, self._gathered = self._gathered or self._blank(self._teacher.device), None
        on_cuda = gathered.lse.is_cuda
        ready = torch.cuda.current_stream(gathered.lse.device).record_event() if on_cuda else None
        yield ExtractedBatch(tuple(documents), tuple(chunks), replace(gathered, ready=ready))

    def _blank(self, device: torch.device) -> GatheredRows:
        assert self._window is not None
        first_rows = self._window.first_rows
        n = first_rows[-1] - first_rows[0]
        names = ("ids", "values", *(["counts"] if self._config.selection.samples is not None else []))
        entries = {
            name: torch.full((n, self._slots), ENTRIES[name][1], dtype=ENTRIES[name][0], device=device)
            for name in names
        }
        return GatheredRows(first_rows[0], torch.full((n,), torch.nan, device=device), entries)

    def _send(self, kept: SelectedRows, places: NDArray[np.int64]) -> HostCopy:
        if self._gathered is None:
            self._gathered = self._blank(kept.ids.device)
        where = to_device(places, kept.ids.device)
        self._gathered.lse.index_copy_(0, where, kept.lse)
        for name, target in self._gathered.entries.items():
            target.index_copy_(0, where, getattr(kept, name))
        few = {
            "entries": (kept.ids >= 0).sum(1, dtype=torch.int32),
            "lse": kept.lse,
            "label_logprob": kept.label_logprob,
        }
        return self._to_host.copy(few if kept.lse_T is None else few | {"lse_T": kept.lse_T})
