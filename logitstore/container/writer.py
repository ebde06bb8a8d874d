"""Writing a store: documents go in, whole shards come out, each committed before the next one starts.

A commit is: sync and rename the shard's files, sync their directories, sync ``documents.jsonl``, append the record to
``shards.jsonl`` and sync it, replace ``progress.json``. The manifest that says ``complete`` comes last of all.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
import shutil
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from logitstore import layout
from logitstore.container.chunk_stream import ChunkStream
from logitstore.container.durable import canonical_json, sync_directory, write_atomically
from logitstore.container.fields import DOCUMENT_FIELDS, DOCUMENTS_PER_SHARD, array_metadata, group_metadata
from logitstore.container.invariants import Violation, check_rows
from logitstore.container.manifest import FileRecord, Manifest, is_store
from logitstore.container.progress import PROGRESS_FILE, Progress
from logitstore.container.shard_table import ShardRecord, record_bytes_for
from logitstore.errors import CorruptDataError, InvalidArgumentError
from logitstore.stopwatch import Stopwatch

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from logitstore.records import RowBatch, TokenDocument

__all__ = ["DOCUMENTS_FILE", "StoreWriter", "prepare_directory", "refuse_directory"]

DOCUMENTS_FILE = "documents.jsonl"
_DEBRIS = {f".{layout.MANIFEST_FILE}.partial"}
"""All that a crash can leave of a store before it has a manifest."""


def refuse_directory(path: Path, *, overwrite: bool = False) -> None:
    """Raise what `prepare_directory` would raise, and touch nothing.

    Raises
    ------
    InvalidArgumentError
        There is something at ``path``: a store and ``overwrite`` is False, or anything else.
    """
    if not path.exists() or (path.is_dir() and all(entry.name in _DEBRIS for entry in path.iterdir())):
        return
    if not is_store(path):
        raise InvalidArgumentError("the path exists and is not a logitstore; choose another one", path=path)
    if not overwrite:
        raise InvalidArgumentError("the store exists; ask for resume, or for overwrite to replace it", path=path)


def prepare_directory(path: Path, *, overwrite: bool = False) -> None:
    """Make ``path`` an empty directory for a new store. Errors as `refuse_directory`."""
    refuse_directory(path, overwrite=overwrite)
    if path.exists():
        shutil.rmtree(path)
    path.mkdir(parents=True)


class StoreWriter:
    """Write documents and their rows, in order.

    Parameters
    ----------
    path
        Directory of the store, made by `prepare_directory`, or one with an unfinished store to go on with.
    manifest
        What the store is. Its totals are ignored.
    workers
        Threads that encode.
    holds_maximum
        Whether every row keeps its most probable id; see `check_rows`.
    watch
        Gets the seconds of ``encode``, ``check`` and ``write``.

    Examples
    --------
    >>> prepare_directory(path)                                    # doctest: +SKIP
    >>> with StoreWriter(path, manifest) as writer:                # doctest: +SKIP
    ...     for document, rows in teacher_says(corpus):
    ...         writer.append(document, rows)
    ...     writer.finish()
    """

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        *,
        workers: int = 2,
        holds_maximum: bool = True,
        watch: Stopwatch | None = None,
    ) -> None:
        self.path = path
        self.manifest = manifest
        self._holds_maximum = holds_maximum
        self._watch = watch or Stopwatch()
        self._fields = manifest.row_fields
        self._record_bytes = max(record_bytes_for(self._fields), record_bytes_for(DOCUMENT_FIELDS))
        self.progress = Progress.read(path)
        self._start_files()
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="logitstore-encode")
        self._streams = {
            field.name: ChunkStream(
                path, field, manifest, manifest.rows_per_shard, self._pool, 2 * workers, self._watch
            )
            for field in self._fields
        }
        for stream in self._streams.values():
            stream.seek(self.progress.shards)
        self._checks: deque[tuple[int, Future[list[Violation]]]] = deque()
        self._row = self.progress.rows
        self._document = self.progress.documents
        self.rewound_rows = self._row
        self._entries = self._entries_before = self.progress.entries
        self._shard_entries = 0

    def _start_files(self) -> None:
        # First of all, so that whatever is interrupted from here on is an unfinished store and says so.
        write_atomically(self.path / layout.MANIFEST_FILE, dataclasses.replace(self.manifest, complete=False).to_json())
        for field in (*self._fields, *DOCUMENT_FIELDS):
            directory = self.path / field.name
            directory.mkdir(exist_ok=True)
            for leftover in directory.glob(".*.partial"):
                leftover.unlink()
        self._cut(DOCUMENTS_FILE, self.progress.documents_bytes)
        self._cut(layout.SHARD_TABLE_FILE, self.progress.shards * self._record_bytes)
        self._documents = (self.path / DOCUMENTS_FILE).open("ab")
        self._table = (self.path / layout.SHARD_TABLE_FILE).open("ab")

    def _cut(self, name: str, size: int) -> None:
        """Drop what was written to a file behind the last commit."""
        with (self.path / name).open("ab") as file:
            if file.tell() < size:
                message = f"{size} bytes were committed, the file has {file.tell()}"
                raise CorruptDataError(message, path=self.path / name)
            file.truncate(size)

    def rewind(self, document: int, row: int) -> None:
        """Go back to a document at or before the committed rows; what is appended again is passed over.

        A producer that resumes at its own cursor says with this where that is.
        """
        if document > self.progress.documents or row > self.progress.rows:
            raise InvalidArgumentError(
                f"cannot rewind to document {document}, row {row}: only {self.progress.documents} documents and "
                f"{self.progress.rows} rows are committed",
                path=self.path,
            )
        self._document, self._row = document, row
        self.rewound_rows = row

    @property
    def rows(self) -> int:
        """Rows that were appended or passed over so far."""
        return self._row

    @property
    def new_entries(self) -> int:
        """Entries appended since the writer was made."""
        return self._entries + self._shard_entries - self._entries_before

    @property
    def new_bytes(self) -> int:
        """Bytes of chunks written since the writer was made."""
        return sum(stream.bytes_written for stream in self._streams.values())

    def is_committed(self, rows: int) -> bool:
        """Whether the next ``rows`` rows are on disk already."""
        return self._row + rows <= self.progress.rows

    def append(self, document: TokenDocument, rows: RowBatch | None, cursor: dict[str, Any] | None = None) -> None:
        """Store a document.

        Parameters
        ----------
        document
            What the teacher read.
        rows
            What it said, one row per token. None is allowed where all rows are committed already.
        cursor
            Where the producer would have to start again to give this document once more; kept in ``progress.json``.
        """
        length = len(document.tokens)
        if not length:
            raise InvalidArgumentError(f"document {document.key!r} has no token", path=self.path, row=self._row)
        if rows is None:
            if not self.is_committed(length):
                raise InvalidArgumentError(f"document {document.key!r} needs its rows", path=self.path, row=self._row)
        elif len(rows) != length or not np.array_equal(rows.tokens, document.tokens):
            raise InvalidArgumentError(
                f"document {document.key!r} has {length} tokens, the rows speak of {len(rows)} others or as many",
                path=self.path, row=self._row,
            )  # fmt: skip
        if self._document >= self.progress.documents:
            line = {"key": document.key, "rows": length}
            if document.parent is not None:
                line["parent"] = {"key": document.parent[0], "first_token": document.parent[1]}
            if document.metadata:
                line["metadata"] = document.metadata
            self._documents.write(canonical_json(line).encode() + b"\n")
        self._document += 1
        if rows is not None:
            self._append_rows(rows, cursor)
        else:
            self._row += length

    def _append_rows(self, rows: RowBatch, cursor: dict[str, Any] | None) -> None:
        start = max(0, min(len(rows), self.progress.rows - self._row))
        if start < len(rows):
            self._check(rows)
        self._row += start
        arrays = {field.name: _array_of(rows, field.name) for field in self._fields}
        while start < len(rows):
            boundary = (self.progress.shards + 1) * self.manifest.rows_per_shard
            stop = min(len(rows), start + boundary - self._row)
            for name, array in arrays.items():
                self._streams[name].append(array[start:stop])
            self._shard_entries += int(np.count_nonzero(rows.ids[start:stop] != layout.UNUSED_ID))
            self._row += stop - start
            start = stop
            if self._row == boundary:
                self._commit(cursor)

    def _check(self, rows: RowBatch) -> None:
        self._checks.append((self._row, self._pool.submit(self._violations, rows)))
        while len(self._checks) > 8:
            self._finish_check()

    def _violations(self, rows: RowBatch) -> list[Violation]:
        with self._watch.measure("check"):
            return check_rows(
                rows,
                vocab_size=self.manifest.vocab_size,
                values=self.manifest.values,
                holds_maximum=self._holds_maximum,
            )

    def _finish_check(self) -> None:
        first, future = self._checks.popleft()
        for violation in future.result():
            raise CorruptDataError(
                f"the teacher's rows break the rule {violation.rule}: {violation.message}",
                path=self.path, row=first + violation.row,
            )  # fmt: skip

    def _commit(self, cursor: dict[str, Any] | None) -> None:
        while self._checks:
            self._finish_check()
        number = self.progress.shards
        files = {name: stream.finish_shard() for name, stream in self._streams.items()}
        for field in self._fields:
            sync_directory(self.path / field.name)
        self._sync(self._documents)
        first = number * self.manifest.rows_per_shard
        record = ShardRecord(number, first, self._row - first, files)
        self._table.write(record.to_line(self._record_bytes))
        self._sync(self._table)
        self._entries += self._shard_entries
        self._shard_entries = 0
        progress = Progress(
            shards=number + 1,
            rows=self._row,
            documents=self._document,
            entries=self._entries,
            documents_bytes=self._documents.tell(),
            cursor=cursor,
        )
        progress.write(self.path)
        self.progress = progress  # others look at it meanwhile: what it says is on disk

    @staticmethod
    def _sync(file: Any) -> None:
        file.flush()
        os.fsync(file.fileno())

    def finish(self) -> Manifest:
        """Commit the last shard, write the arrays about documents and all metadata, and call the store complete."""
        if self._row > self.progress.rows:
            self._commit(None)
        self._sync(self._documents)
        for record in self._write_document_arrays():
            self._table.write(record.to_line(self._record_bytes))
        self._sync(self._table)
        manifest = dataclasses.replace(
            self.manifest,
            complete=True,
            rows=self._row,
            documents=self._document,
            entries=self._entries,
            record_bytes=self._record_bytes,
            bytes_by_field=self._bytes_by_field(),
            documents_file=self._file_record(DOCUMENTS_FILE),
            shard_table=self._file_record(layout.SHARD_TABLE_FILE),
        )
        for field in (*self._fields, *DOCUMENT_FIELDS):
            rows, rows_per_shard = manifest.geometry(field)
            metadata = json.dumps(array_metadata(field, rows, rows_per_shard), indent=1)
            write_atomically(self.path / field.name / "zarr.json", metadata.encode() + b"\n")
        group = group_metadata({"logitstore": {"manifest": layout.MANIFEST_FILE, "store_id": manifest.store_id}})
        write_atomically(self.path / "zarr.json", json.dumps(group, indent=1).encode() + b"\n")
        write_atomically(self.path / layout.MANIFEST_FILE, manifest.to_json())
        (self.path / PROGRESS_FILE).unlink(missing_ok=True)
        sync_directory(self.path)
        self.manifest = manifest
        return manifest

    def _write_document_arrays(self) -> list[ShardRecord]:
        """Derive both arrays from ``documents.jsonl``, a shard at a time."""
        streams = [
            ChunkStream(self.path, field, self.manifest, DOCUMENTS_PER_SHARD, self._pool, 2, self._watch)
            for field in DOCUMENT_FIELDS
        ]
        records: list[ShardRecord] = []
        ends = self._document_ends()
        try:
            while len(block := np.fromiter(itertools.islice(ends, DOCUMENTS_PER_SHARD), np.dtype((np.int64, 2)))):
                for column, stream in enumerate(streams):
                    stream.append(block[:, column])
                files = {stream.field.name: stream.finish_shard() for stream in streams}
                records.append(ShardRecord(len(records), len(records) * DOCUMENTS_PER_SHARD, len(block), files))
        finally:
            for stream in streams:
                stream.abandon()  # nothing is in flight unless this failed
        for field in DOCUMENT_FIELDS:
            sync_directory(self.path / field.name)
        return records

    def _document_ends(self) -> Iterator[tuple[int, int]]:
        """Yield (0, 0), then row and byte behind each document."""
        row = byte = 0
        yield row, byte
        with (self.path / DOCUMENTS_FILE).open("rb") as file:
            for line in file:
                row += json.loads(line)["rows"]
                byte += len(line)
                yield row, byte

    def _bytes_by_field(self) -> dict[str, int]:
        totals: dict[str, int] = {}
        with (self.path / layout.SHARD_TABLE_FILE).open("rb") as file:
            for line in file:
                for name, record in ShardRecord.from_line(line).files.items():
                    totals[name] = totals.get(name, 0) + record.bytes
        return totals

    def _file_record(self, name: str) -> FileRecord:
        with (self.path / name).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            return FileRecord(file.tell(), digest)

    def close(self) -> None:
        """Stop without finishing: what is committed stays, the shard in flight is dropped."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        for stream in self._streams.values():
            stream.abandon()
        self._documents.close()
        self._table.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _array_of(rows: RowBatch, name: str) -> Any:
    return rows.values if name in ("logprobs", "logits") else getattr(rows, name)
