"""One array on its way to its shard files: rows are collected into chunks, chunks are encoded by a pool of threads."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

import numpy as np

from logitstore.container.manifest import FileRecord
from logitstore.container.shard import ShardWriter
from logitstore.errors import LogitStoreError

if TYPE_CHECKING:
    from concurrent.futures import Executor, Future
    from pathlib import Path

    from numpy.typing import NDArray

    from logitstore.container.fields import Field
    from logitstore.container.manifest import Manifest
    from logitstore.stopwatch import Stopwatch

__all__ = ["ChunkStream"]


class ChunkStream:
    """Write an array shard by shard.

    Parameters
    ----------
    store
        Directory of the store.
    field
        The array.
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
        Where chunks come from, in order, if they are encoded elsewhere: rows are then counted, and nothing else.
    """

    def __init__(
        self,
        store: Path,
        field: Field,
        manifest: Manifest,
        rows_per_shard: int,
        pool: Executor,
        backlog: int,
        watch: Stopwatch,
        coded: deque[bytes] | None = None,
    ) -> None:
        self.field = field
        self.bytes_written = 0
        self._store = store
        self._store_id = bytes.fromhex(manifest.store_id)
        self._rows_per_shard = rows_per_shard
        self._pool = pool
        self._backlog = backlog
        self._watch = watch
        self._coded = coded
        self._pending: deque[Future[bytes]] = deque()
        self._chunk: NDArray[Any] | None = None
        self._filled = 0
        self._shard: ShardWriter | None = None
        self._number = 0
        self._rows = 0

    def append(self, rows: NDArray[Any]) -> None:
        """Take rows that do not go beyond the current shard."""
        self._rows += len(rows)
        if self._coded is not None:
            self._filled += len(rows)
            while self._filled >= self.field.chunk_rows:
                self._filled -= self.field.chunk_rows
                self._write(self._coded.popleft())
            return
        position = 0
        while position < len(rows):
            if self._chunk is None:
                self._chunk = np.empty(self.field.chunk_shape, self.field.dtype)
                self._filled = 0
            taken = min(len(rows) - position, self.field.chunk_rows - self._filled)
            self._chunk[self._filled : self._filled + taken] = rows[position : position + taken]
            self._filled += taken
            position += taken
            if self._filled == self.field.chunk_rows:
                self._submit()

    def _submit(self) -> None:
        assert self._chunk is not None
        self._pending.append(self._pool.submit(self._encode, self._chunk))
        self._chunk = None
        while len(self._pending) > self._backlog:
            self._write_oldest()

    def _encode(self, chunk: NDArray[Any]) -> bytes:
        with self._watch.measure("encode"):
            return self.field.encode_chunk(chunk)

    def _write_oldest(self) -> None:
        try:
            payload = self._pending.popleft().result()
        except LogitStoreError as error:
            raise error.at(path=self._store / self.field.name, shard=self._number) from None
        self._write(payload)

    def _write(self, payload: bytes) -> None:
        if self._shard is None:
            self._shard = ShardWriter(
                self._store / self.field.file_name(self._number),
                store_id=self._store_id,
                field=self.field,
                shard=self._number,
                first_row=self._number * self._rows_per_shard,
                chunks=self._rows_per_shard // self.field.chunk_rows,
            )
        with self._watch.measure("write"):
            self._shard.write_chunk(payload)
        self.bytes_written += len(payload)

    def finish_shard(self) -> FileRecord:
        """Encode what is left, close the shard's file durably, and get ready for the next one."""
        if self._chunk is not None:
            self._chunk[self._filled :] = self.field.unused_rows(self.field.chunk_rows - self._filled)
            self._submit()
        while self._pending:
            self._write_oldest()
        if self._coded is not None and self._filled:
            self._write(self._coded.popleft())
            self._filled = 0
        assert self._shard is not None
        with self._watch.measure("write"):
            size, digest = self._shard.close(self._rows)
        self._shard = None
        self._number += 1
        self._rows = 0
        return FileRecord(size, digest)

    def seek(self, shard: int) -> None:
        """Go on with shard ``shard``; nothing may be in flight."""
        self._number = shard

    def abandon(self) -> None:
        """Drop the shard in flight."""
        for future in self._pending:
            future.cancel()
        self._pending.clear()
        if self._shard is not None:
            self._shard.abandon()
            self._shard = None
