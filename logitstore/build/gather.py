"""Rows that stay on the device until a window is done, and leave it as chunks.

Chunks are of consecutive rows of the store, but documents of a window are run in an order of their own, and those that
a teacher writes all at once: so a window's entries are gathered in its rows' order, in memory of the device, before
they are encoded. There is one such piece for the window at work, as many as wait for the writer, and, for Zarr, rows of
less than a chunk that the next window completes.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from logitstore.build.transfer import columns_of
from logitstore.errors import InvalidArgumentError
from logitstore.teacher.teacher import to_device

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from logitstore.build.config import BuildConfig
    from logitstore.select import SelectedRows

__all__ = ["ENTRIES", "GatheredRows", "Gatherer"]

ENTRIES = {"ids": (torch.int32, -1), "values": (torch.float16, -torch.inf), "counts": (torch.uint8, 0)}
"""Types of what has a slot for every entry, and what stands in an unused one."""


@dataclass(frozen=True)
class GatheredRows:
    """Consecutive rows of the store, on the device.

    Attributes
    ----------
    first_rows
        Row of the store at which each document begins, and the row behind the last one.
    lse
        ``(n,)`` float32, NaN where a row was not asked for.
    entries
        ``(n, K)`` ids, values and perhaps counts.
    ready
        When the work is done that fills them; None on a CPU, where it is.
    """

    first_rows: Sequence[int]
    lse: torch.Tensor
    entries: dict[str, torch.Tensor]
    ready: torch.cuda.Event | None = None


class Gatherer:
    """Puts the entries of a window's rows where they belong, on the device that selected them.

    Parameters
    ----------
    config
        What is kept.
    vocab_size
        The teacher's.

    Raises
    ------
    InvalidArgumentError
        The codec is not exact.
    """

    def __init__(self, config: BuildConfig, vocab_size: int) -> None:
        if config.codec.name != "exact":
            raise InvalidArgumentError(
                f"a device encodes with the exact codec, not with {config.codec.name}: let the host encode"
            )
        self._slots = config.selection.slots(vocab_size)
        self._names = ("ids", "values", *(["counts"] if config.selection.samples is not None else []))
        self._waiting: deque[tuple[SelectedRows, NDArray[np.int64], NDArray[np.int64]]] = deque()
        self._first_rows: list[int] | None = None
        self._gathered: GatheredRows | None = None

    def lay_out(self, first_rows: list[int]) -> None:
        """Say where the window's documents begin, and the row behind the last one. Rows may come before or after."""
        self._first_rows = first_rows
        self._place()

    def put(self, kept: SelectedRows, documents: NDArray[np.int64], rows: NDArray[np.int64]) -> dict[str, torch.Tensor]:
        """Take rows, given the document of the window and the row of it that each is; return what the host needs."""
        self._waiting.append((kept, documents, rows))
        self._place()
        return {
            "entries": (kept.ids >= 0).sum(1, dtype=torch.int32),
            **{name: tensor for name, tensor in columns_of(kept).items() if name not in ENTRIES},
        }

    def take(self, device: torch.device) -> GatheredRows:
        """Return all rows of the window, and forget it. The device is for a window of which no row was asked for."""
        found = self._blank(device) if self._gathered is None else self._gathered
        self._first_rows = self._gathered = None
        ready = torch.cuda.current_stream(found.lse.device).record_event() if found.lse.is_cuda else None
        return GatheredRows(found.first_rows, found.lse, found.entries, ready)

    @torch.inference_mode()
    def _place(self) -> None:
        while self._waiting and self._first_rows is not None:
            kept, documents, rows = self._waiting.popleft()
            if self._gathered is None:
                self._gathered = self._blank(kept.ids.device)
            places = np.array(self._first_rows)[documents] - self._first_rows[0] + rows
            where = to_device(places, kept.ids.device)
            self._gathered.lse.index_copy_(0, where, kept.lse)
            for name, target in self._gathered.entries.items():
                target.index_copy_(0, where, getattr(kept, name))

    def _blank(self, device: torch.device) -> GatheredRows:
        assert self._first_rows is not None
        n = self._first_rows[-1] - self._first_rows[0]
        entries = {
            name: torch.full((n, self._slots), ENTRIES[name][1], dtype=ENTRIES[name][0], device=device)
            for name in self._names
        }
        return GatheredRows(self._first_rows, torch.full((n,), torch.nan, device=device), entries)
