"""Entries that were gathered on a device to the chunks of a store."""

from __future__ import annotations

import contextlib
import math
from collections import deque
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import torch

from logitstore.build.gather import ENTRIES
from logitstore.container.invariants import HALF_ULP, SLACK, SMALLEST
from logitstore.device import encode_chunks
from logitstore.errors import CorruptDataError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from contextlib import AbstractContextManager

    from logitstore.build.gather import GatheredRows
    from logitstore.container.manifest import Manifest
    from logitstore.stopwatch import Stopwatch

__all__ = ["ChunkEncoder", "broken_row"]

_BLOCK_ENTRIES = 1 << 24
"""Encoded at a time: takes about 30 bytes an entry meanwhile."""


class ChunkEncoder:
    """Encode rows in order, in the writer's thread, on a stream of its own.

    Chunks of a Zarr store are of so many rows each, whatever the documents; those of a tar begin with every document.

    Parameters
    ----------
    manifest
        Of the store.
    committed_rows
        Rows that are on disk; they end with a chunk, of tars with a document, and are passed over.
    holds_maximum
        Whether every row keeps its most probable id.
    watch
        Gets the seconds of ``encode``.

    Attributes
    ----------
    chunks
        What is encoded and was not taken yet, by the names of the arrays.
    """

    def __init__(self, manifest: Manifest, committed_rows: int, *, holds_maximum: bool, watch: Stopwatch) -> None:
        self._manifest = manifest
        self._holds_maximum = holds_maximum
        self._watch = watch
        names = {manifest.values + "s": "values", "ids": "ids", "counts": "counts"}
        self._fields = {names[field.name]: field for field in manifest.row_fields if field.name in names}
        self._chunk_rows = self._fields["ids"].chunk_rows
        self.chunks: dict[str, deque[bytes]] = {field.name: deque() for field in self._fields.values()}
        self._next_row = committed_rows
        self._left: dict[str, torch.Tensor] = {}
        self._stream: torch.cuda.Stream | None = None

    def add(self, rows: GatheredRows) -> None:
        """Take further rows, and encode all chunks that they fill.

        Raises
        ------
        CorruptDataError
            A row breaks a rule.
        """
        skip = max(0, self._next_row - rows.first_rows[0])
        if skip >= len(rows.lse):
            return
        with self._watch.measure("encode"), self._behind(rows):
            entries = {name: tensor[skip:] for name, tensor in rows.entries.items()}
            self._check(entries, rows.lse[skip:])
            if self._left:
                entries = {name: torch.cat([self._left[name], tensor]) for name, tensor in entries.items()}
            sizes = self._chunk_sizes(rows.first_rows, len(entries["ids"]))
            self._next_row = rows.first_rows[-1]
            self._encode(entries, sizes)
            done = sum(sizes)
            self._left = {name: tensor[done:].clone() for name, tensor in entries.items() if done < len(tensor)}

    def finish(self) -> None:
        """Encode what is left, padded to a chunk."""
        if not self._left:
            return
        with self._watch.measure("encode"), self._behind(None):
            padded = {}
            for name, tensor in self._left.items():
                missing = self._chunk_rows - len(tensor)
                padded[name] = torch.cat([tensor, tensor.new_full((missing, tensor.shape[1]), ENTRIES[name][1])])
            self._left = {}
            self._encode(padded, [self._chunk_rows])

    def _chunk_sizes(self, first_rows: Sequence[int], rows: int) -> list[int]:
        """Return the rows of each chunk that so many rows fill, which end where the last document does."""
        if self._manifest.container == "zarr":
            return [self._chunk_rows] * (rows // self._chunk_rows)
        documents = pairwise(row for row in first_rows if row >= self._next_row)
        return [
            min(self._chunk_rows, stop - row)
            for start, stop in documents
            for row in range(start, stop, self._chunk_rows)
        ]

    def _behind(self, rows: GatheredRows | None) -> AbstractContextManager[object]:
        """Work on the own stream, behind what fills the rows."""
        if rows is not None and rows.ready is not None:
            if self._stream is None:
                self._stream = torch.cuda.Stream(rows.lse.device)
            self._stream.wait_event(rows.ready)
            for tensor in (rows.lse, *rows.entries.values()):
                tensor.record_stream(self._stream)
        return contextlib.nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def _encode(self, entries: dict[str, torch.Tensor], sizes: list[int]) -> None:
        for name, tensor in entries.items():
            field = self._fields[name]
            kind: Literal["ids", "values"] = "ids" if name == "ids" else "values"
            start = 0
            for block in _blocks(sizes, _BLOCK_ENTRIES // tensor.shape[1]):
                rows = tensor[start : start + sum(block)]
                start += len(rows)
                self.chunks[field.name].extend(encode_chunks(rows, kind, block, vocab_size=field.vocab_size))

    def _check(self, entries: dict[str, torch.Tensor], lse: torch.Tensor) -> None:
        step = max(1, _BLOCK_ENTRIES // entries["ids"].shape[1])
        for start in range(0, len(lse), step):
            rows = slice(start, start + step)
            broken = broken_row(
                {name: tensor[rows] for name, tensor in entries.items()}, lse[rows], values=self._manifest.values,
                vocab_size=self._manifest.vocab_size, holds_maximum=self._holds_maximum,
            )  # fmt: skip
            if broken is not None:
                row, rule = broken
                raise CorruptDataError(f"the teacher's rows break the rule {rule}", row=self._next_row + start + row)


def _blocks(sizes: list[int], rows: int) -> Iterator[list[int]]:
    """Yield consecutive chunks, as many as have so many rows together, or else one."""
    block: list[int] = []
    held = 0
    for size in sizes:
        if block and held + size > rows:
            yield block
            block, held = [], 0
        block.append(size)
        held += size
    if block:
        yield block


def broken_row(
    entries: dict[str, torch.Tensor], lse: torch.Tensor, *, values: str, vocab_size: int, holds_maximum: bool
) -> tuple[int, str] | None:
    """Return the first row that breaks a rule of `logitstore.container.invariants` about entries, and the rule.

    Parameters
    ----------
    entries
        ``(n, K)`` ids, values and perhaps counts.
    lse
        ``(n,)``.
    values
        ``"logprob"`` or ``"logit"``.
    vocab_size, holds_maximum
        As for `check_rows`.
    """
    ids, kept = entries["ids"], entries["values"].float()
    used, finite = ids != -1, kept.isfinite()
    empty = ~used.any(1)
    error = kept.abs() * HALF_ULP + SMALLEST
    offset = torch.zeros_like(lse)[:, None] if values == "logprob" else lse[:, None]
    live = used & finite
    mass = (kept - error - offset).masked_fill(~live, -torch.inf).exp().sum(1, dtype=torch.float64)
    rules = {
        "id-range": (used & ((ids < 0) | (ids >= vocab_size))).any(1),
        "id-order": (used[:, 1:] & ~(used[:, :-1] & (ids[:, :-1] < ids[:, 1:]))).any(1),
        "value-finite": (used & ~finite).any(1),
        "value-unused": (~used & ~kept.isneginf()).any(1),
        "lse-finite": ~empty & ~lse.isfinite(),
        "mass": mass > 1 + SLACK,
    }
    if holds_maximum:
        top = (kept + error - offset).masked_fill(~live, -torch.inf).amax(1)
        rules["maximum"] = ~empty & (top < -math.log(vocab_size) - SLACK)
    if "counts" in entries:
        rules["count-unused"] = (~used & (entries["counts"] != 0)).any(1)
    broken = torch.stack(list(rules.values())).cpu()
    if not broken.any():
        return None
    number, row = (int(index[0]) for index in torch.nonzero(broken, as_tuple=True))
    return row, list(rules)[number]
