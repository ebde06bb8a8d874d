"""Arrays on their way to their shard files: rows are collected into chunks, chunks are encoded by a pool of threads."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

import numpy as np

from logitstore.container.file_record import FileRecord
from logitstore.container.row_coder import CodedRows
from logitstore.container.shard import ShardWriter
from logitstore.errors import LogitStoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from concurrent.futures import Executor, Future
    from pathlib import Path

    from numpy.typing import NDArray

    from logitstore.container.fields import Field
    from logitstore.container.loss_meter import LossMeter
    from logitstore.container.manifest import Manifest
    from logitstore.stopwatch import Stopwatch

__all__ = ["ChunkStream", "encode_alone"]


def encode_alone(field: Field) -> Callable[[int, Mapping[str, NDArray[Any]]], CodedRows]:
    """Return what encodes chunks of an array that needs no other."""
    return lambda _, arrays: CodedRows({field.name: field.encode_chunk(arrays[field.name])})


class ChunkStream:
    """Write arrays whose chunks have the same rows, shard by shard.

    Parameters
    ----------
    store
        Directory of the store.
    fields
        The arrays.
    encode
        Encodes a chunk of each, given its first row in the store; see `RowCoder.encode`.
    manifest
        Of the store; names it.
    rows_per_shard
        Rows of a shard.
    pool
        Threads that encode.
    backlog
        Chunks that may wait to be encoded before `append` blocks.
    watch
        Gets the seconds of ``encode`` and ``write``.
    coded
        Chunks that are encoded elsewhere, by array: at any time all that the rows taken so far fill, and at the end
        what is left of them, padded. Of rows only their number counts then.
    """

    def __init__(
        self,
        store: Path,
        fields: Sequence[Field],
        encode: Callable[[int, Mapping[str, NDArray[Any]]], CodedRows],
        manifest: Manifest,
        rows_per_shard: int,
        pool: Executor,
        backlog: int,
        watch: Stopwatch,
        coded: Mapping[str, deque[bytes]] | None = None,
    ) -> None:
        self.fields = tuple(fields)
        self.bytes_written = 0
        self._store = store
        self._encode_chunk = encode
        self._store_id = bytes.fromhex(manifest.store_id)
        self._rows_per_shard = rows_per_shard
        self._chunk_rows = self.fields[0].chunk_rows
        self._pool = pool
        self._backlog = backlog
        self._watch = watch
        self._coded = coded
        self._pending: deque[Future[CodedRows]] = deque()
        self._chunk: dict[str, NDArray[Any]] | None = None
        self._filled = 0
        self._shards: dict[str, ShardWriter] = {}
        self._losses: list[LossMeter] = []
        self._number = 0
        self._rows = 0

    def append(self, rows: Mapping[str, NDArray[Any]]) -> None:
        """Take rows, by array, that do not go beyond the current shard."""
        position, length = 0, len(rows[self.fields[0].name])
        if self._coded is not None:
            self._rows += length
            self._filled += length
            while self._filled >= self._chunk_rows:
                self._filled -= self._chunk_rows
                self._write_coded(self._coded)
            return
        while position < length:
            if self._chunk is None:
                self._chunk = {field.name: np.empty(field.chunk_shape, field.dtype) for field in self.fields}
                self._filled = 0
            taken = min(length - position, self._chunk_rows - self._filled)
            for name, chunk in self._chunk.items():
                chunk[self._filled : self._filled + taken] = rows[name][position : position + taken]
            self._filled += taken
            self._rows += taken
            position += taken
            if self._filled == self._chunk_rows:
                self._submit()

    def _submit(self) -> None:
        assert self._chunk is not None
        first_row = self._number * self._rows_per_shard + self._rows - self._filled
        self._pending.append(self._pool.submit(self._encode, first_row, self._chunk))
        self._chunk = None
        while len(self._pending) > self._backlog:
            self._write_oldest()

    def _encode(self, first_row: int, chunk: dict[str, NDArray[Any]]) -> CodedRows:
        with self._watch.measure("encode"):
            return self._encode_chunk(first_row, chunk)

    def _write_oldest(self) -> None:
        try:
            coded = self._pending.popleft().result()
        except LogitStoreError as error:
            raise error.at(path=self._store / self.fields[0].name, shard=self._number) from None
        self._write(coded)

    def _write_coded(self, chunks: Mapping[str, deque[bytes]]) -> None:
        self._write(CodedRows({field.name: chunks[field.name].popleft() for field in self.fields}))

    def _write(self, coded: CodedRows) -> None:
        if not self._shards:
            self._shards = {field.name: self._open(field) for field in self.fields}
        with self._watch.measure("write"):
            for name, payload in coded.chunks.items():
                self._shards[name].write_chunk(payload)
                self.bytes_written += len(payload)
        if coded.loss is not None:
            self._losses.append(coded.loss)

    def _open(self, field: Field) -> ShardWriter:
        return ShardWriter(
            self._store / field.file_name(self._number),
            store_id=self._store_id,
            field=field,
            shard=self._number,
            first_row=self._number * self._rows_per_shard,
            chunks=self._rows_per_shard // field.chunk_rows,
        )

    def finish_shard(self) -> tuple[dict[str, FileRecord], list[LossMeter]]:
        """Encode what is left, close the shard's files durably, and get ready for the next ones.

        Returns
        -------
        tuple
            The files by array, and what was lost, chunk by chunk.
        """
        if self._chunk is not None:
            for field in self.fields:
                self._chunk[field.name][self._filled :] = field.unused_rows(self._chunk_rows - self._filled)
            self._submit()
        while self._pending:
            self._write_oldest()
        if self._coded is not None and self._filled:
            self._write_coded(self._coded)
            self._filled = 0
        assert self._shards
        with self._watch.measure("write"):
            files = {name: FileRecord(*shard.close(self._rows)) for name, shard in self._shards.items()}
        losses, self._losses = self._losses, []
        self._shards = {}
        self._number += 1
        self._rows = 0
        return files, losses

    def seek(self, shard: int) -> None:
        """Go on with shard ``shard``; nothing may be in flight."""
        self._number = shard

    def abandon(self) -> None:
        """Drop the shard in flight."""
        for future in self._pending:
            future.cancel()
        self._pending.clear()
        for shard in self._shards.values():
            shard.abandon()
        self._shards = {}
