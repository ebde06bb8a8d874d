"""Tar shards: that they hold the members the index says and nothing else, and every byte and row of them."""

from __future__ import annotations

import json
import tarfile
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import google_crc32c
import numpy as np

from logitstore import layout
from logitstore.audit.parallel import map_in_order
from logitstore.audit.report import Problem, problem_of
from logitstore.audit.row_rules import RowExpectations, check_batch
from logitstore.audit.verify_documents import walk_documents
from logitstore.audit.verify_files import KNOWN_FILES, check_codebooks, check_digest, note_strangers
from logitstore.container.codebooks import books_of
from logitstore.container.files import LocalFiles
from logitstore.container.shard_table import ShardTable
from logitstore.container.tar_index import shard_name, tar_key
from logitstore.container.writer import DOCUMENTS_FILE
from logitstore.errors import LogitStoreError
from logitstore.reader.row_files import TableFiles
from logitstore.reader.tar_rows import TarRows
from logitstore.records import RowBatch, by_id

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from logitstore.audit.report import Findings
    from logitstore.container.files import RandomFile
    from logitstore.container.manifest import Manifest
    from logitstore.container.shard_table import ShardRecord
    from logitstore.container.tar_index import IndexRecord

__all__ = ["verify_tars"]

_BLOCK_ROWS = 4096
_END = bytes(2 * layout.TAR_BLOCK)


def verify_tars(
    path: Path,
    manifest: Manifest,
    found: Findings,
    progress: Callable[[int, int], None] | None,
    workers: int | None,
) -> int:
    """Check everything of a WebDataset store but its manifest. Return the number of rows checked."""
    for name, record in (
        (DOCUMENTS_FILE, manifest.documents_file),
        (layout.SHARD_TABLE_FILE, manifest.shard_table),
        (layout.INDEX_FILE, manifest.index_file),
    ):
        check_digest(path, name, record, found)
    known = {*KNOWN_FILES, layout.CODEBOOK_FOLDER, layout.INDEX_FILE, *map(shard_name, range(manifest.row_shards))}
    note_strangers([entry.name for entry in path.iterdir() if entry.name not in known], found)
    check_codebooks(path, manifest, found)
    walk_documents(path, manifest, found)
    files = LocalFiles(path)
    tables = TableFiles(files, manifest)
    books = books_of(files, manifest)
    rows = TarRows(files, manifest, tables, books, verify="lazy", open_files=4, max_bytes=1 << 62)
    try:
        return _Checker(path, manifest, rows, tables).run(found, progress, workers)
    finally:
        rows.close()
        tables.close()


@dataclass
class _Result:
    """What the check of one document found."""

    problems: list[Problem] = field(default_factory=list)
    end: int | None = None
    """Byte of the tar behind the document; None where the index does not say."""
    rows: int = 0
    entries: int = 0


class _Checker:
    def __init__(self, path: Path, manifest: Manifest, rows: TarRows, tables: TableFiles) -> None:
        self._manifest = manifest
        self._rows = rows
        self._tables = tables
        self._table = ShardTable(LocalFiles(path), manifest.record_bytes, manifest.row_shards)
        self._expect = RowExpectations.of(manifest)
        self._values = "logprobs" if manifest.values == "logprob" else "logits"

    def run(self, found: Findings, progress: Callable[[int, int], None] | None, workers: int | None) -> int:
        """Check every shard; return the rows that were checked."""
        manifest = self._manifest
        document = row = checked = entries = 0
        sizes: Counter[str] = Counter()
        sound = True
        for shard in range(manifest.row_shards):
            name = shard_name(shard)
            try:
                record = self._table.record(shard)
            except LogitStoreError as error:
                found.add(problem_of(error, layout.SHARD_TABLE_FILE, "shard-table", shard=shard))
                sound = False
                break
            place = (record.shard, record.first_document, record.first_row)
            if place != (shard, document, row) or not record.documents or not record.rows:
                message = f"the record says shard, first document, first row {place}, expected {(shard, document, row)}"
                found.error(layout.SHARD_TABLE_FILE, "shard-table", message, shard=shard)
                sound = False
                break
            document, row = document + record.documents, row + record.rows
            sizes.update(record.fields)
            tar = self._open(record, name, found)
            if tar is None:
                sound = False
                continue
            for result in self._check_documents(record, name, tar, found, workers):
                checked += result.rows
                entries += result.entries
                if progress is not None:
                    progress(checked, manifest.rows)
        if sound and (document, row) != (manifest.documents, manifest.rows):
            message = f"the shards hold {document} documents of {row} rows"
            found.error(layout.SHARD_TABLE_FILE, "shard-table", message)
        if checked == manifest.rows and entries != manifest.entries:
            message = f"the manifest says {manifest.entries} entries, the rows keep {entries}"
            found.error(layout.MANIFEST_FILE, "entries", message)
        if sound and sizes != Counter(manifest.bytes_by_field):
            message = f"the manifest says {manifest.bytes_by_field}, the shard table {dict(sizes)}"
            found.error(layout.MANIFEST_FILE, "bytes-by-field", message)
        return checked

    def _open(self, record: ShardRecord, name: str, found: Findings) -> RandomFile | None:
        try:
            tar = self._rows.tar(record.shard)
        except LogitStoreError as error:
            rule = "shard-missing" if "missing" in error.message else "shard-size"
            found.add(problem_of(error, name, rule, shard=record.shard))
            return None
        digest = tar.sha256()
        if digest != record.files["tar"].sha256:
            message = f"the shard table says sha256 {record.files['tar'].sha256}, the file has {digest}"
            found.error(name, "shard-digest", message, shard=record.shard)
        return tar

    def _check_documents(
        self, record: ShardRecord, name: str, tar: RandomFile, found: Findings, workers: int | None
    ) -> Iterator[_Result]:
        assert record.first_document is not None
        assert record.documents is not None
        begin: int | None = 0
        row = record.first_row
        numbers = range(record.first_document, record.first_document + record.documents)
        for document, result in zip(
            numbers, map_in_order(lambda number: self._check(number, record, name, tar), numbers, workers), strict=True
        ):
            found.add(*result.problems)
            try:
                index = self._rows.record(document)
            except LogitStoreError:
                begin = None  # reported already
                continue
            first_byte = index.json_offset - layout.TAR_BLOCK
            if (index.shard, index.first_row) != (record.shard, row) or begin not in (None, first_byte):
                message = (
                    f"document {document} is said to be in shard {index.shard} at byte {first_byte}, from row "
                    f"{index.first_row} on; expected shard {record.shard}, byte {begin}, row {row}"
                )
                found.error(layout.INDEX_FILE, "index-order", message, shard=record.shard, row=row)
            begin, row = result.end, index.first_row + index.rows
            yield result
        if begin is not None and bytes(tar.read(min(begin, tar.size), tar.size)) != _END:
            found.error(
                name, "tar-end", "two blocks of zeros follow the last member and end the tar", shard=record.shard
            )

    def _check(self, document: int, shard: ShardRecord, name: str, tar: RandomFile) -> _Result:
        result = _Result()
        try:
            index = self._rows.record(document)
        except LogitStoreError as error:
            result.problems.append(problem_of(error, layout.INDEX_FILE, "index-record", shard=shard.shard))
            return result
        result.end = index.offset + -(-index.size // layout.TAR_BLOCK) * layout.TAR_BLOCK

        def problem(rule: str, message: str, row: int = index.first_row) -> None:
            result.problems.append(Problem(name, shard.shard, row, rule, f"document {document}: {message}"))

        if index.shard != shard.shard or result.end > tar.size or index.json_offset < layout.TAR_BLOCK:
            problem("index-place", f"the index says shard {index.shard}, bytes {index.json_offset} to {result.end}")
            return result
        about = self._check_members(document, index, tar, problem)
        try:
            line = json.loads(self._tables.read(DOCUMENTS_FILE, *self._rows.line(document)))
        except (LogitStoreError, ValueError, RecursionError) as error:
            result.problems.append(Problem(DOCUMENTS_FILE, None, index.first_row, "document-line", str(error)))
        else:
            expected = {**line, "document": document, "first_row": index.first_row} if isinstance(line, dict) else None
            if about is not None and about != expected:
                problem("tar-json", f"the .json member says {about}, expected {expected}")
            if not isinstance(line, dict) or line.get("rows") != index.rows:
                problem("index-rows", f"the index says {index.rows} rows, the line says {line}")
        self._check_rows(document, index, result, problem)
        return result

    def _check_members(
        self, document: int, index: IndexRecord, tar: RandomFile, problem: Callable[[str, str], None]
    ) -> Any:
        """Check both members' headers and checksums; return what the ``.json`` says."""
        for suffix, offset, size, crc in (
            ("json", index.json_offset, index.json_size, index.json_crc),
            ("lgt", index.offset, index.size, index.crc),
        ):
            info = tarfile.TarInfo(f"{tar_key(document)}.{suffix}")
            info.size = size
            if bytes(tar.read(offset - layout.TAR_BLOCK, offset)) != info.tobuf(tarfile.USTAR_FORMAT):
                problem("tar-header", f"the tar has no plain header of {info.name} with {size} bytes before it")
            if google_crc32c.value(bytes(tar.read(offset, offset + size))) != crc:
                problem("tar-checksum", f"the checksum of {info.name} in the index does not fit its bytes")
        try:
            return json.loads(bytes(tar.read(index.json_offset, index.json_offset + index.json_size)))
        except (ValueError, RecursionError) as error:
            problem("tar-json", f"the .json member is not JSON: {error}")
            return None

    def _check_rows(
        self, document: int, index: IndexRecord, result: _Result, problem: Callable[[str, str, int], None]
    ) -> None:
        try:
            file = self._rows.file(document, index)
        except LogitStoreError as error:
            problem("document-file", error.message, index.first_row)
            return
        for start in range(0, index.rows, _BLOCK_ROWS):
            stop = min(start + _BLOCK_ROWS, index.rows)
            arrays: dict[str, Any] = file.empty(stop - start)
            try:
                file.decode(start, stop, arrays)
                following = np.empty(1, np.uint32)
                if stop < index.rows:
                    file.decode(stop, stop + 1, {"tokens": following})
            except LogitStoreError as error:
                problem("chunk-decode", error.message, index.first_row + (error.row or start))
                return
            arrays["values"] = arrays.pop(self._values)
            last = np.zeros(stop - start, bool)
            last[-1] = stop == index.rows
            violations = check_batch(
                by_id(RowBatch(**arrays)), vocab_size=self._manifest.vocab_size, expect=self._expect, last=last,
                next_token=int(following[0]) if stop < index.rows else None,
            )  # fmt: skip
            for violation in violations:
                problem(violation.rule, violation.message, index.first_row + start + violation.row)
            result.rows += stop - start
            result.entries += int(np.count_nonzero(arrays["ids"] != layout.UNUSED_ID))
