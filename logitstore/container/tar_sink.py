"""Tar shards for WebDataset: two members a document, whole documents in a shard, the same bytes for the same rows."""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections import Counter, deque
from typing import TYPE_CHECKING, Any

import google_crc32c

from logitstore import layout
from logitstore.container.document import DocumentHeader, EncodedDocument, encode_document
from logitstore.container.durable import canonical_json, cut_file, publish, sync_directory, sync_file
from logitstore.container.file_record import FileRecord
from logitstore.container.shard_table import ShardRecord, tar_record_bytes_for
from logitstore.container.sink import Commit, Entry
from logitstore.container.tar_index import IndexRecord, shard_name, tar_key
from logitstore.errors import InvalidArgumentError, LogitStoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from concurrent.futures import Executor, Future
    from pathlib import Path

    from logitstore.container.loss_meter import LossMeter
    from logitstore.container.manifest import Manifest
    from logitstore.container.progress import Progress
    from logitstore.container.row_coder import RowCoder
    from logitstore.stopwatch import Stopwatch

__all__ = ["DEFAULT_SHARD_BYTES", "TarSink"]

DEFAULT_SHARD_BYTES = 256_000_000
_END = bytes(2 * layout.TAR_BLOCK)
"""Two blocks of zeros end a tar."""


class TarSink:
    """See `ShardSink`.

    A shard takes documents until the next one would make it longer than ``shard_bytes`` of the manifest; it holds at
    least one.

    ``coded`` has chunks of ids, values and counts that are encoded elsewhere, by array: at any time at least those of
    the documents taken so far, none of documents that are committed.
    """

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        coder: RowCoder,
        pool: Executor,
        backlog: int,
        watch: Stopwatch,
        coded: Mapping[str, deque[bytes]] | None = None,
    ) -> None:
        self.record_bytes = tar_record_bytes_for(manifest.row_fields)
        self.bytes_written = 0
        self.open_entries = 0
        self._path = path
        self._manifest = manifest
        self._coder = coder
        self._coded = coded
        self._fields = manifest.row_fields
        self._pool = pool
        self._backlog = backlog
        self._watch = watch
        self._pending: deque[tuple[Entry, Future[EncodedDocument]]] = deque()
        self._sizes: Counter[str] = Counter()
        self._number = 0
        self._tar: _TarWriter | None = None

    def start(self, progress: Progress) -> None:
        """See `ShardSink`."""
        for leftover in self._path.glob(".*.tar.partial"):
            leftover.unlink()
        self._number = progress.shards
        for line in (self._path / layout.SHARD_TABLE_FILE).read_bytes().splitlines():
            self._sizes.update(ShardRecord.from_line(line).fields)
        cut_file(self._path / layout.INDEX_FILE, progress.documents * layout.INDEX_RECORD_BYTES)
        self._index = (self._path / layout.INDEX_FILE).open("ab")

    def append(self, entry: Entry) -> Iterator[Callable[[], Commit]]:
        """See `ShardSink`."""
        # Shards end with documents: what is committed of a document is all of it.
        if entry.skip < len(entry.rows):
            self._pending.append((entry, self._pool.submit(self._encode, entry, self._coded_chunks(entry))))
        while self._pending and (len(self._pending) > self._backlog or self._pending[0][1].done()):
            yield from self._write_oldest()

    def flush(self) -> Iterator[Callable[[], Commit]]:
        """See `ShardSink`."""
        while self._pending:
            yield from self._write_oldest()
        if self._tar is not None:
            tar = self._tar
            yield lambda: self._seal(tar, tar.next_entry(None))

    def _coded_chunks(self, entry: Entry) -> dict[str, list[bytes]] | None:
        if self._coded is None:
            return None
        chunks = -(-len(entry.rows) // self._coder.fields[0].chunk_rows)
        return {name: [coded.popleft() for _ in range(chunks)] for name, coded in self._coded.items()}

    def _encode(self, entry: Entry, coded: dict[str, list[bytes]] | None) -> EncodedDocument:
        manifest = self._manifest
        header = DocumentHeader(
            bytes.fromhex(manifest.store_id), entry.document, entry.first_row, len(entry.rows), manifest.slots,
            manifest.vocab_size, len(manifest.temperatures),
        )  # fmt: skip
        with self._watch.measure("encode"):
            return encode_document(header, self._fields, entry.rows, self._coder, coded)

    def _write_oldest(self) -> Iterator[Callable[[], Commit]]:
        entry, future = self._pending[0]
        try:
            encoded = future.result()
        except LogitStoreError as error:
            raise error.at(path=self._path / shard_name(self._number), shard=self._number) from None
        about = canonical_json({**entry.about, "document": entry.document, "first_row": entry.first_row}).encode()
        if self._tar is not None and self._tar.size_with(about, encoded.data) > self._manifest.shard_bytes:
            tar = self._tar
            yield lambda: self._seal(tar, entry)
        self._pending.popleft()
        if self._tar is None:
            self._tar = _TarWriter(self._path / shard_name(self._number), entry)
        with self._watch.measure("write"):
            offset = self._tar.add(entry, about, encoded)
        record = IndexRecord(
            shard=self._number, rows=len(entry.rows), first_row=entry.first_row, offset=offset,
            size=len(encoded.data), line_offset=entry.line[0], line_size=entry.line[1] - entry.line[0],
            json_size=len(about), crc=google_crc32c.value(encoded.data), json_crc=google_crc32c.value(about),
        )  # fmt: skip
        self._index.write(record.pack())
        self.bytes_written += sum(encoded.bytes_by_field.values())
        self.open_entries += self._tar.count(entry)

    def _seal(self, tar: _TarWriter, following: Entry | _Behind) -> Commit:
        """Make a shard durable; ``following`` is the first document that is not in it."""
        with self._watch.measure("write"):
            file = tar.close()
            sync_directory(self._path)
            sync_file(self._index)
        record = ShardRecord(
            self._number, tar.first.first_row, following.first_row - tar.first.first_row, {"tar": file},
            tar.first.document, following.document - tar.first.document, dict(tar.sizes),
        )  # fmt: skip
        self._tar = None
        self._number += 1
        self._sizes.update(tar.sizes)
        self.open_entries -= tar.entries
        return Commit(
            record, following.first_row, following.document, following.line[0], tar.entries, following.cursor,
            tar.losses,
        )  # fmt: skip

    def finish(self) -> tuple[list[ShardRecord], dict[str, Any]]:
        """See `ShardSink`."""
        sync_file(self._index)
        sizes = {field.name: self._sizes[field.name] for field in self._fields}
        return [], {"bytes_by_field": sizes, "index_file": FileRecord.of(self._path / layout.INDEX_FILE)}

    def describe(self, manifest: Manifest) -> None:
        """See `ShardSink`. The manifest says all."""

    def close(self) -> None:
        """See `ShardSink`."""
        for _, future in self._pending:
            future.cancel()
        self._pending.clear()
        if self._tar is not None:
            self._tar.abandon()
        self._index.close()


class _Behind:
    """Stands where a further document would: behind the last one."""

    def __init__(self, last: Entry, cursor: dict[str, Any] | None) -> None:
        self.document = last.document + 1
        self.first_row = last.first_row + len(last.rows)
        self.line = (last.line[1], last.line[1])
        self.cursor = cursor


class _TarWriter:
    """One tar under a temporary name."""

    def __init__(self, path: Path, first: Entry) -> None:
        self.first = first
        self.sizes: Counter[str] = Counter()
        self.entries = 0
        self.losses: list[LossMeter] = []
        self._last = first
        self._path = path
        self._temporary = path.with_name(f".{path.name}.partial")
        self._file = self._temporary.open("wb")
        self._digest = hashlib.sha256()
        self._position = 0

    def size_with(self, *members: bytes) -> int:
        """Size of the finished tar, were these members added."""
        return self._position + sum(layout.TAR_BLOCK + _padded(len(member)) for member in members) + len(_END)

    def add(self, entry: Entry, about: bytes, encoded: EncodedDocument) -> int:
        """Add a document; return the first byte of its rows."""
        self._member(f"{tar_key(entry.document)}.json", about)
        offset = self._member(f"{tar_key(entry.document)}.lgt", encoded.data)
        self.sizes.update(encoded.bytes_by_field)
        self.losses += encoded.losses
        self._last = entry
        return offset

    def count(self, entry: Entry) -> int:
        """Count and return the entries of a document."""
        found = entry.rows.entries_in(0, len(entry.rows))
        self.entries += found
        return found

    def next_entry(self, cursor: dict[str, Any] | None) -> _Behind:
        """Return the place behind the last document."""
        return _Behind(self._last, cursor)

    def _member(self, name: str, content: bytes) -> int:
        if len(content) > layout.MAX_TAR_MEMBER_BYTES:
            raise InvalidArgumentError(
                f"a member of a tar has at most {layout.MAX_TAR_MEMBER_BYTES} bytes, {name} has {len(content)}: "
                "use a smaller seq_len", path=self._path,
            )  # fmt: skip
        info = tarfile.TarInfo(name)  # mode 0644, owner 0, time 0
        info.size = len(content)
        self._write(info.tobuf(tarfile.USTAR_FORMAT))
        offset = self._position
        self._write(content)
        self._write(bytes(_padded(len(content)) - len(content)))
        return offset

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)
        self._position += len(data)

    def close(self) -> FileRecord:
        """End the tar, sync it and give it its name."""
        self._write(_END)
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        publish(self._temporary, self._path)
        return FileRecord(self._position, self._digest.hexdigest())

    def abandon(self) -> None:
        """Drop the temporary file."""
        self._file.close()
        self._temporary.unlink(missing_ok=True)


def _padded(size: int) -> int:
    return -(-size // layout.TAR_BLOCK) * layout.TAR_BLOCK
