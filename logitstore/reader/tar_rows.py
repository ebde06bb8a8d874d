"""Rows out of tar shards, found through ``documents.idx``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from logitstore import layout
from logitstore.container.document import DocumentFile, DocumentHeader
from logitstore.container.shard_table import ShardTable, file_record
from logitstore.container.tar_index import IndexRecord, shard_name
from logitstore.errors import CorruptDataError, LogitStoreError, TruncatedDataError
from logitstore.reader.open_files import OpenFiles

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from logitstore.codec import CutRows
    from logitstore.container.fields import BookSource
    from logitstore.container.files import RandomFile, StoreFiles
    from logitstore.container.manifest import Manifest
    from logitstore.reader.row_files import TableFiles

__all__ = ["TarRows"]

_REMEMBERED = 1 << 16


class TarRows:
    """See `RowFiles`."""

    def __init__(
        self,
        files: StoreFiles,
        manifest: Manifest,
        tables: TableFiles,
        books: BookSource | None,
        *,
        verify: str,
        open_files: int,
        max_bytes: int,
    ) -> None:
        self._files = files
        self._manifest = manifest
        self._tables = tables
        self._books = books
        self._verify = verify
        self._table = ShardTable(files, manifest.record_bytes, manifest.row_shards)
        self._open: OpenFiles[RandomFile] = OpenFiles(open_files, max_bytes)
        self._documents: dict[int, int] = {}
        self._names = tuple(field.name for field in manifest.row_fields)
        self._header = DocumentHeader(
            bytes.fromhex(manifest.store_id), 0, 0, 0, manifest.slots, manifest.vocab_size, len(manifest.temperatures)
        )

    def record(self, document: int) -> IndexRecord:
        """Return a document's record in the index, checked."""
        size = layout.INDEX_RECORD_BYTES
        try:
            record = IndexRecord.unpack(self._tables.read(layout.INDEX_FILE, document * size, (document + 1) * size))
        except LogitStoreError as error:
            place = error.path or self._files.place(layout.INDEX_FILE)
            raise type(error)(f"document {document}: {error.message}", path=place) from None
        end = record.first_row + record.rows
        if not 1 <= record.rows <= end <= self._manifest.rows or (end == self._manifest.rows) != (
            document == self._manifest.documents - 1
        ):
            message = f"document {document} has rows {record.first_row} to {end}"
            raise CorruptDataError(message, path=self._files.place(layout.INDEX_FILE))
        return record

    def offsets(self, start: int, stop: int) -> NDArray[Any]:
        """See `RowFiles`."""
        if stop == start:
            first = self.record(start).first_row if start < self._manifest.documents else self._manifest.rows
            return np.array([first], np.int64)
        size = layout.INDEX_RECORD_BYTES
        try:
            first_rows = IndexRecord.first_rows(self._tables.read(layout.INDEX_FILE, start * size, stop * size))
        except CorruptDataError as error:
            raise error.at(path=self._files.place(layout.INDEX_FILE)) from None
        last = self.record(stop - 1)
        self._remember(first_rows.tolist(), start)
        return np.append(first_rows, last.first_row + last.rows)

    def _remember(self, first_rows: list[int], document: int) -> None:
        """Keep in mind where documents begin: they are about to be read by their rows."""
        if len(self._documents) > _REMEMBERED:
            self._documents = {}
        self._documents.update(zip(first_rows, range(document, document + len(first_rows)), strict=True))

    def line(self, document: int) -> tuple[int, int]:
        """See `RowFiles`."""
        record = self.record(document)
        return record.line_offset, record.line_offset + record.line_size

    def read(self, start: int, stop: int, out: Mapping[str, NDArray[Any] | CutRows]) -> None:
        """See `RowFiles`."""
        document = self._document_of(start) if start < stop else 0
        row = start
        while row < stop:
            record = self.record(document)
            if not record.first_row <= row < record.first_row + record.rows:
                place = self._files.place(layout.INDEX_FILE)
                raise CorruptDataError(f"document {document} does not follow the one before", path=place, row=row)
            end = min(stop, record.first_row + record.rows)
            part = {name: array[row - start : end - start] for name, array in out.items()}
            try:
                self.file(document, record).decode(
                    row - record.first_row, end - record.first_row, part, verify=self._verify != "none"
                )
            except LogitStoreError as error:
                if error.path is not None:
                    raise
                raise type(error)(
                    f"document {document}: {error.message}",
                    path=self._files.place(shard_name(record.shard)), shard=record.shard,
                    row=record.first_row + (error.row or 0),
                ) from None  # fmt: skip
            row, document = end, document + 1

    def _document_of(self, row: int) -> int:
        if (known := self._documents.get(row)) is not None:
            return known
        low, high = 0, self._manifest.documents
        while high - low > 1:
            middle = (low + high) // 2
            if self.record(middle).first_row <= row:
                low = middle
            else:
                high = middle
        return low

    def file(self, document: int, record: IndexRecord) -> DocumentFile:
        """Open a document's file in its tar and compare what it says with the manifest and the index."""
        tar = self.tar(record.shard)
        if record.offset + record.size > tar.size:
            message = f"document {document} ends at byte {record.offset + record.size} of {tar.size}"
            raise CorruptDataError(message, path=self._files.place(layout.INDEX_FILE), row=record.first_row)
        try:
            file = DocumentFile(
                lambda start, stop: tar.read(record.offset + start, record.offset + stop), record.size, self._books
            )
        except LogitStoreError as error:
            message = f"document {document}: {error.message}"
            path = self._files.place(shard_name(record.shard))
            raise type(error)(message, path=path, shard=record.shard, row=record.first_row) from None
        expected = self._header._replace(document=document, first_row=record.first_row, rows=record.rows)
        if file.header != expected or file.names != self._names:
            found = list(zip(DocumentHeader._fields, file.header, expected, strict=True))
            found.append(("arrays", file.names, self._names))
            name, is_, should = next(item for item in found if item[1] != item[2])
            raise CorruptDataError(
                f"the file of document {document} holds {name} {is_!r}, expected {should!r}: another was put here",
                path=self._files.place(shard_name(record.shard)), shard=record.shard, row=record.first_row,
            )  # fmt: skip
        return file

    def tar(self, shard: int) -> RandomFile:
        """Open a tar of the size, and with full verification of the digest, that the shard table gives."""
        return self._open.get(shard, lambda: self._open_tar(shard))

    def _open_tar(self, shard: int) -> RandomFile:
        name = shard_name(shard)
        path = self._files.place(name)
        record = self._table.record(shard)
        if record.shard != shard:
            raise CorruptDataError(f"record {shard} of the shard table speaks of shard {record.shard}", path=path)
        if record.first_document is None or record.documents is None:
            message = f"record {shard} of the shard table says which documents the tar holds"
            raise CorruptDataError(message, path=self._table.path)
        expected = file_record(record, "tar", self._table.path)
        try:
            file = self._files.open(name)
        except FileNotFoundError:
            raise TruncatedDataError("the shard's file is missing", path=path, shard=shard) from None
        if file.size != expected.bytes:
            kind = TruncatedDataError if file.size < expected.bytes else CorruptDataError
            message = f"the shard table says {expected.bytes} bytes, the file has {file.size}"
            raise kind(message, path=path, shard=shard)
        if self._verify == "full" and file.sha256() != expected.sha256:
            message = f"the file's sha256 is not {expected.sha256}, which the shard table gives"
            raise CorruptDataError(message, path=path, shard=shard)
        return file

    def close(self) -> None:
        """See `RowFiles`."""
        self._open.close()
