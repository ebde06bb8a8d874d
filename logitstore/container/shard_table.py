"""``shards.jsonl``: rows, bytes and digest of every shard, one JSON object a line.

Every line has the same length (``record_bytes`` of the manifest; spaces before the line feed), so that the record of
shard ``i`` is read without reading the others, and appending one is the commit of a shard.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from logitstore import layout
from logitstore.container.durable import canonical_json
from logitstore.container.file_record import FileRecord
from logitstore.container.files import TABLE_BLOCK_BYTES
from logitstore.errors import CorruptDataError, TruncatedDataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from logitstore.container.fields import Field
    from logitstore.container.files import StoreFiles

__all__ = ["ShardRecord", "ShardTable", "file_record", "record_bytes_for", "tar_record_bytes_for"]


@dataclass(frozen=True)
class ShardRecord:
    """One line: the files of one shard.

    Attributes
    ----------
    shard, first_row, rows
        Its number, its first row and how many it has.
    files
        By array; of a tar shard, one file called ``tar``.
    first_document, documents
        Of a tar shard: its first document and how many it holds. None elsewhere, where documents reach over shards.
    fields
        Of a tar shard: bytes of the chunks of each array.
    """

    shard: int
    first_row: int
    rows: int
    files: dict[str, FileRecord]
    first_document: int | None = None
    documents: int | None = None
    fields: dict[str, int] = dataclasses.field(default_factory=dict)

    def to_line(self, length: int) -> bytes:
        """Return the line, padded to ``length`` bytes."""
        content: dict[str, Any] = {
            "shard": self.shard,
            "first_row": self.first_row,
            "rows": self.rows,
            "files": {name: {"bytes": file.bytes, "sha256": file.sha256} for name, file in self.files.items()},
        }
        if self.documents is not None:
            content |= {"first_document": self.first_document, "documents": self.documents, "fields": self.fields}
        return canonical_json(content).encode().ljust(length - 1) + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> ShardRecord:
        """Parse and check a line."""
        try:
            content = json.loads(line)
            numbers = [content["shard"], content["first_row"], content["rows"]]
            files = {name: FileRecord(file["bytes"], file["sha256"]) for name, file in content["files"].items()}
            span = [content.get("first_document"), content.get("documents")]
            fields = dict(content.get("fields", {}))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CorruptDataError(f"a line of the shard table is broken: {error!r}") from None
        numbers += [file.bytes for file in files.values()] + [*fields.values()]
        numbers += [number for number in span if number is not None]
        if not all(type(number) is int and number >= 0 for number in numbers):
            raise CorruptDataError(f"a line of the shard table has {numbers}, whole numbers are expected")
        return cls(content["shard"], content["first_row"], content["rows"], files, span[0], span[1], fields)


_WIDEST = 10**18


def record_bytes_for(fields: Sequence[Field]) -> int:
    """Bytes that a line about these arrays takes at most."""
    files = {field.name: FileRecord(_WIDEST, "0" * 64) for field in fields}
    return len(ShardRecord(_WIDEST, _WIDEST, _WIDEST, files).to_line(0))


def tar_record_bytes_for(fields: Sequence[Field]) -> int:
    """Bytes that a line about a tar shard takes at most."""
    files = {"tar": FileRecord(_WIDEST, "0" * 64)}
    sizes = {field.name: _WIDEST for field in fields}
    return len(ShardRecord(_WIDEST, _WIDEST, _WIDEST, files, _WIDEST, _WIDEST, sizes).to_line(0))


class ShardTable:
    """Read records by number.

    Parameters
    ----------
    files
        The store's files; ``shards.jsonl`` is one of them.
    record_bytes, records
        Length and number of its lines.
    """

    def __init__(self, files: StoreFiles, record_bytes: int, records: int) -> None:
        self.path = files.place(layout.SHARD_TABLE_FILE)
        self._files = files
        self._record_bytes = record_bytes
        self._records = records

    def record(self, number: int) -> ShardRecord:
        """Return record ``number``.

        Raises
        ------
        TruncatedDataError
            The table is missing or shorter than the manifest says.
        CorruptDataError
            The line is not a sound record.
        """
        if not 0 <= number < self._records:
            raise CorruptDataError(f"the store has {self._records} shard records, asked for {number}", path=self.path)
        start, stop = number * self._record_bytes, (number + 1) * self._record_bytes
        try:
            file = self._files.open(layout.SHARD_TABLE_FILE, TABLE_BLOCK_BYTES)
        except FileNotFoundError:
            raise TruncatedDataError("the shard table is missing", path=self.path) from None
        line = bytes(file.read(start, stop)) if stop <= file.size else b""
        file.close()
        if not line:
            raise TruncatedDataError(f"the shard table ends inside record {number}", path=self.path)
        try:
            return ShardRecord.from_line(line)
        except CorruptDataError as error:
            raise error.at(path=self.path) from None


def file_record(record: ShardRecord, name: str, table: str) -> FileRecord:
    """Return what a record says of one file; ``table`` is the place of the shard table."""
    try:
        return record.files[name]
    except KeyError:
        raise CorruptDataError(f"record {record.shard} of the shard table lacks {name}", path=table) from None
