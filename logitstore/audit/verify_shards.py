"""Shard files: what they say of themselves, every checksum in them, and every row of them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from typing import TYPE_CHECKING, Any

import numpy as np

from logitstore import layout
from logitstore.audit.report import Problem, problem_of
from logitstore.audit.row_rules import RowExpectations, check_batch
from logitstore.codec.compact import chunk as compact_chunk
from logitstore.codec.header import read_header
from logitstore.container.codebooks import fields_of
from logitstore.container.files import LocalFiles
from logitstore.container.shard_table import ShardTable, file_record
from logitstore.errors import CorruptDataError, LogitStoreError
from logitstore.records import RowBatch, by_id

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from logitstore.container.fields import Field
    from logitstore.container.manifest import Manifest
    from logitstore.container.shard import ShardReader
    from logitstore.reader.shard_cache import ShardCache

__all__ = ["BlockResult", "FileResult", "ShardChecker"]

_CHUNKS_PER_BLOCK = 8


@dataclass(frozen=True)
class FileResult:
    """What the check of one shard file found."""

    field: Field
    shard: int
    problems: list[Problem]
    bytes: int = 0
    broken_chunks: frozenset[int] | None = frozenset()
    """Chunks whose bytes are not what was written; None where the file as a whole cannot be used."""


@dataclass(frozen=True)
class BlockResult:
    """What the check of some consecutive rows found."""

    problems: list[Problem] = dataclass_field(default_factory=list)
    rows: int = 0
    """Rows of the block."""
    rows_checked: int = 0
    entries: int = 0


class ShardChecker:
    """Checks files and rows of a store; safe to use from several threads.

    Parameters
    ----------
    path, manifest
        The store.
    shards
        Opens its files.
    ends
        ``(D + 1,)`` row behind each document with a 0 in front, or None where documents are broken.
    """

    def __init__(self, path: Path, manifest: Manifest, shards: ShardCache, ends: NDArray[np.int64] | None) -> None:
        self._path = path
        self._manifest = manifest
        self._shards = shards
        self._ends = ends
        self._expect = RowExpectations.of(manifest)
        records = manifest.row_shards + manifest.document_shards
        self._table = ShardTable(LocalFiles(path), manifest.record_bytes, records)
        self.fields = fields_of(LocalFiles(path), manifest)
        self._fields = {field.name: field for field in self.fields}
        self._values_name = "logprobs" if manifest.values == "logprob" else "logits"
        wide = self._fields["ids"].chunk_rows
        self.block_rows = min(_CHUNKS_PER_BLOCK * wide, self._fields["tokens"].chunk_rows, manifest.rows_per_shard)

    def check_file(self, shard: int, field: Field) -> FileResult:
        """Check size, sha256, identity and index of a file, and frame and checksums of its chunks."""
        name = field.file_name(shard)
        try:
            record = self._table.record(self._manifest.record_number(field, shard))
            expected = file_record(record, field.name, self._table.path)
        except LogitStoreError as error:
            problem = problem_of(error, layout.SHARD_TABLE_FILE, "shard-table", shard=shard)
            return FileResult(field, shard, [problem], 0, None)
        try:
            with (self._path / name).open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                size = file.tell()
        except OSError as error:
            message = f"the shard's file cannot be read: {error.strerror}"
            return FileResult(field, shard, [Problem(name, shard, None, "shard-missing", message)], 0, None)
        if size != expected.bytes:
            message = f"the shard table says {expected.bytes} bytes, the file has {size}"
            return FileResult(field, shard, [Problem(name, shard, None, "shard-size", message)], size, None)
        problems = []
        if digest != expected.sha256:
            message = f"the shard table says sha256 {expected.sha256}, the file has {digest}"
            problems.append(Problem(name, shard, None, "shard-digest", message))
        try:
            reader = self._shards.get(field, shard)
        except LogitStoreError as error:
            problems.append(problem_of(error, name, "shard-identity", shard=shard))
            return FileResult(field, shard, problems, size, None)
        broken = self._check_chunks(reader, field, shard, problems)
        return FileResult(field, shard, problems, size, broken)

    def _check_chunks(self, reader: ShardReader, field: Field, shard: int, problems: list[Problem]) -> frozenset[int]:
        name = field.file_name(shard)
        total, rows_per_shard = self._manifest.geometry(field)
        rows = min(rows_per_shard, total - shard * rows_per_shard)
        chunks = -(-rows // field.chunk_rows)
        broken = set()
        for number in range(chunks):
            row = shard * rows_per_shard + number * field.chunk_rows
            try:
                _check_inner(reader.chunk(number), field)
            except LogitStoreError as error:
                broken.add(number)
                problems.append(Problem(name, shard, row, "chunk-checksum", error.message))
        if chunks - 1 not in broken:
            # Rows behind the last one belong to nobody, but other decoders decode whole chunks.
            problems += self._decode(reader, field, shard, rows, chunks * field.chunk_rows)[1]
        return frozenset(broken)

    def _decode(
        self, reader: ShardReader, field: Field, shard: int, start: int, stop: int
    ) -> tuple[Any, list[Problem]]:
        try:
            return (reader.read(start, stop) if start < stop else None), []
        except LogitStoreError as error:
            first = shard * self._manifest.geometry(field)[1] + start
            row = error.row if error.row is not None else first
            return None, [Problem(field.file_name(shard), shard, row, "chunk-decode", error.message)]

    def check_rows(self, files: dict[str, FileResult], start: int) -> BlockResult:
        """Decode and check one block of rows.

        Parameters
        ----------
        files
            Results of `check_file` for the block's shard, by field.
        start
            Its first row, a multiple of ``block_rows``.
        """
        size = self._manifest.rows_per_shard
        shard = start // size
        stop = min(start + self.block_rows, (shard + 1) * size, self._manifest.rows)
        problems: list[Problem] = []
        arrays: dict[str, Any] = {}
        for name, field in self._fields.items():
            broken = files[name].broken_chunks
            low, high = start - shard * size, stop - shard * size
            if broken is None or broken & set(range(low // field.chunk_rows, -(-high // field.chunk_rows))):
                continue
            array, failed = self._decode(self._shards.get(field, shard), field, shard, low, high)
            problems += failed
            if not failed:
                arrays[name] = array
        entries = int(np.count_nonzero(arrays["ids"] != layout.UNUSED_ID)) if "ids" in arrays else 0
        if len(arrays) < len(self._fields):
            return BlockResult(problems, stop - start, 0, entries)
        problems += self._check_batch(arrays, start, stop, shard)
        return BlockResult(problems, stop - start, stop - start, entries)

    def _check_batch(self, arrays: dict[str, Any], start: int, stop: int, shard: int) -> list[Problem]:
        arrays["values"] = arrays.pop(self._values_name)
        last = None
        if self._ends is not None:
            last = np.zeros(stop - start, bool)
            low, high = np.searchsorted(self._ends, [start, stop], side="right")
            last[self._ends[low:high] - 1 - start] = True
        found = check_batch(
            by_id(RowBatch(**arrays)), vocab_size=self._manifest.vocab_size, expect=self._expect, last=last,
            next_token=None if last is None else self._token(stop),
        )  # fmt: skip
        return [
            Problem(
                self._file_of(violation.rule, shard), shard, start + violation.row, violation.rule, violation.message
            )
            for violation in found
        ]

    def _token(self, row: int) -> int | None:
        """Return the token of a row; None behind the last row, or where it cannot be read."""
        if row >= self._manifest.rows:
            return None
        shard, position = divmod(row, self._manifest.rows_per_shard)
        try:
            return int(self._shards.get(self._fields["tokens"], shard).read(position, position + 1)[0])
        except LogitStoreError:
            return None

    def _file_of(self, rule: str, shard: int) -> str:
        """Name the file that a rule is mostly about."""
        subject = rule.split("-", maxsplit=1)[0]
        name = {"id": "ids", "row": "ids", "token": "tokens", "label": "label_logprob", "count": "counts"}.get(
            subject, subject if subject in self._fields else self._values_name
        )
        return self._fields[name].file_name(shard)


def _check_inner(data: memoryview, field: Field) -> None:
    """Check the checksum inside a chunk: the one that plain Zarr sees."""
    if field.books is not None and data[:3] == layout.COMPACT_MAGIC[:3]:
        compact_chunk.read_header(data)
        return
    if field.kind != "raw":
        read_header(data)
        return
    import google_crc32c

    body, stored = data[: -layout.CRC_BYTES], int.from_bytes(data[-layout.CRC_BYTES :], "little")
    if len(data) < layout.CRC_BYTES or stored != google_crc32c.value(np.frombuffer(body, np.uint8)):
        raise CorruptDataError("the chunk's own checksum does not fit its bytes")
