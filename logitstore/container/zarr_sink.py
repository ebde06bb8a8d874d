"""Zarr shards: one file per array and so many rows; documents reach over shards."""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING, Any

import numpy as np

from logitstore import layout
from logitstore.container.chunk_stream import ChunkStream, encode_alone
from logitstore.container.durable import sync_directory, write_atomically
from logitstore.container.fields import DOCUMENT_FIELDS, DOCUMENTS_PER_SHARD, array_metadata, group_metadata
from logitstore.container.row_coder import RowCoder, array_of
from logitstore.container.shard_table import ShardRecord, record_bytes_for
from logitstore.container.sink import Commit, Entry

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable, Iterator, Mapping
    from concurrent.futures import Executor
    from pathlib import Path

    from logitstore.container.file_record import FileRecord
    from logitstore.container.manifest import Manifest
    from logitstore.container.progress import Progress
    from logitstore.stopwatch import Stopwatch

__all__ = ["ZarrSink"]


class ZarrSink:
    """See `ShardSink`. A shard is full when it has ``rows_per_shard`` of the manifest.

    ``coded`` has chunks of ids, values and counts that are encoded elsewhere; see `ChunkStream`.
    """

    def __init__(
        self,
        path: Path,
        documents: Path,
        manifest: Manifest,
        coder: RowCoder,
        pool: Executor,
        backlog: int,
        watch: Stopwatch,
        coded: Mapping[str, deque[bytes]] | None = None,
    ) -> None:
        self._path = path
        self._documents_file = documents
        self._manifest = manifest
        self._fields = manifest.row_fields
        self.record_bytes = max(record_bytes_for(self._fields), record_bytes_for(DOCUMENT_FIELDS))
        self.open_entries = 0
        size = manifest.rows_per_shard
        alone = [field for field in self._fields if field not in coder.fields]
        self._streams = [
            ChunkStream(path, coder.fields, coder.encode, manifest, size, pool, backlog, watch, coded),
            *(ChunkStream(path, [field], encode_alone(field), manifest, size, pool, backlog, watch) for field in alone),
        ]
        self._document_streams = [
            ChunkStream(path, [field], encode_alone(field), manifest, DOCUMENTS_PER_SHARD, pool, 2, watch)
            for field in DOCUMENT_FIELDS
        ]
        self._shards = 0
        self._row = 0
        self._last: Entry | None = None

    @property
    def bytes_written(self) -> int:
        """See `ShardSink`."""
        return sum(stream.bytes_written for stream in self._streams)

    def start(self, progress: Progress) -> None:
        """See `ShardSink`."""
        for field in (*self._fields, *DOCUMENT_FIELDS):
            directory = self._path / field.name
            directory.mkdir(exist_ok=True)
            for leftover in directory.glob(".*.partial"):
                leftover.unlink()
        for stream in self._streams:
            stream.seek(progress.shards)
        self._shards, self._row = progress.shards, progress.rows

    def append(self, entry: Entry) -> Iterator[Callable[[], Commit]]:
        """See `ShardSink`."""
        rows, start = entry.rows, entry.skip
        self._row = entry.first_row + start
        self._last = entry
        while start < len(rows):
            boundary = (self._shards + 1) * self._manifest.rows_per_shard
            stop = min(len(rows), start + boundary - self._row)
            part = {field.name: array_of(rows, field.name)[start:stop] for field in self._fields}
            for stream in self._streams:
                stream.append(part)
            self.open_entries += rows.entries_in(start, stop)
            self._row += stop - start
            start = stop
            if self._row == boundary:
                yield lambda: self._seal(entry.cursor)

    def flush(self) -> Iterator[Callable[[], Commit]]:
        """See `ShardSink`."""
        if self._row > self._shards * self._manifest.rows_per_shard:
            yield lambda: self._seal(None)

    def _seal(self, cursor: dict[str, Any] | None) -> Commit:
        assert self._last is not None
        finished = [stream.finish_shard() for stream in self._streams]
        files = {name: file for found, _ in finished for name, file in found.items()}
        losses = [loss for _, found in finished for loss in found]
        for field in self._fields:
            sync_directory(self._path / field.name)
        first = self._shards * self._manifest.rows_per_shard
        record = ShardRecord(self._shards, first, self._row - first, files)
        commit = Commit(
            record, self._row, self._last.document + 1, self._last.line[1], self.open_entries, cursor, losses
        )
        self._shards += 1
        self.open_entries = 0
        return commit

    def finish(self) -> tuple[list[ShardRecord], dict[str, Any]]:
        """See `ShardSink`. Derives both arrays about documents from ``documents.jsonl``, a shard at a time."""
        records: list[ShardRecord] = []
        ends = self._document_ends()
        while len(block := np.fromiter(itertools.islice(ends, DOCUMENTS_PER_SHARD), np.dtype((np.int64, 2)))):
            part = {field.name: block[:, column] for column, field in enumerate(DOCUMENT_FIELDS)}
            files: dict[str, FileRecord] = {}
            for stream in self._document_streams:
                stream.append(part)
                files |= stream.finish_shard()[0]
            records.append(ShardRecord(len(records), len(records) * DOCUMENTS_PER_SHARD, len(block), files))
        for field in DOCUMENT_FIELDS:
            sync_directory(self._path / field.name)
        return records, {"bytes_by_field": self._bytes_by_field(records)}

    def _document_ends(self) -> Iterator[tuple[int, int]]:
        """Yield (0, 0), then row and byte behind each document."""
        row = byte = 0
        yield row, byte
        with self._documents_file.open("rb") as file:
            for line in file:
                row += json.loads(line)["rows"]
                byte += len(line)
                yield row, byte

    def _bytes_by_field(self, records: list[ShardRecord]) -> dict[str, int]:
        totals: dict[str, int] = {}
        with (self._path / layout.SHARD_TABLE_FILE).open("rb") as file:
            for record in itertools.chain(map(ShardRecord.from_line, file), records):
                for name, about in sorted(record.files.items()):
                    totals[name] = totals.get(name, 0) + about.bytes
        return totals

    def describe(self, manifest: Manifest) -> None:
        """See `ShardSink`."""
        for field in (*self._fields, *DOCUMENT_FIELDS):
            rows, rows_per_shard = manifest.geometry(field)
            metadata = json.dumps(array_metadata(field, rows, rows_per_shard), indent=1)
            write_atomically(self._path / field.name / "zarr.json", metadata.encode() + b"\n")
        group = group_metadata({"logitstore": {"manifest": layout.MANIFEST_FILE, "store_id": manifest.store_id}})
        write_atomically(self._path / "zarr.json", json.dumps(group, indent=1).encode() + b"\n")

    def close(self) -> None:
        """See `ShardSink`."""
        for stream in (*self._streams, *self._document_streams):
            stream.abandon()
