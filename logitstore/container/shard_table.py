"""``shards.jsonl``: rows, bytes and digest of every shard, one JSON object a line.

Every line has the same length (``record_bytes`` of the manifest; spaces before the line feed), so that the record of
shard ``i`` is read without reading the others, and appending one is the commit of a shard.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from logitstore import layout
from logitstore.container.durable import canonical_json
from logitstore.container.manifest import FileRecord
from logitstore.errors import CorruptDataError, TruncatedDataError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from logitstore.container.fields import Field

__all__ = ["ShardRecord", "ShardTable", "file_record", "record_bytes_for"]


@dataclass(frozen=True)
class ShardRecord:
    """One line: the files of one shard, an array each."""

    shard: int
    first_row: int
    rows: int
    files: dict[str, FileRecord]

    def to_line(self, length: int) -> bytes:
        """Return the line, padded to ``length`` bytes."""
        content = {
            "shard": self.shard,
            "first_row": self.first_row,
            "rows": self.rows,
            "files": {name: {"bytes": file.bytes, "sha256": file.sha256} for name, file in self.files.items()},
        }
        return canonical_json(content).encode().ljust(length - 1) + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> ShardRecord:
        """Parse and check a line."""
        try:
            content = json.loads(line)
            numbers = [content["shard"], content["first_row"], content["rows"]]
            files = {name: FileRecord(file["bytes"], file["sha256"]) for name, file in content["files"].items()}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CorruptDataError(f"a line of the shard table is broken: {error!r}") from None
        numbers += [file.bytes for file in files.values()]
        if not all(type(number) is int and number >= 0 for number in numbers):
            raise CorruptDataError(f"a line of the shard table has {numbers}, whole numbers are expected")
        return cls(content["shard"], content["first_row"], content["rows"], files)


def record_bytes_for(fields: Sequence[Field]) -> int:
    """Bytes that a line about these arrays takes at most."""
    widest = 10**18
    files = {field.name: FileRecord(widest, "0" * 64) for field in fields}
    return len(ShardRecord(widest, widest, widest, files).to_line(0))


class ShardTable:
    """Read records by number, one seek each.

    Parameters
    ----------
    path
        ``shards.jsonl``.
    record_bytes, records
        Length and number of its lines.
    """

    def __init__(self, path: Path, record_bytes: int, records: int) -> None:
        self.path = path
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
        try:
            with self.path.open("rb") as file:
                file.seek(number * self._record_bytes)
                line = file.read(self._record_bytes)
        except FileNotFoundError:
            raise TruncatedDataError("the shard table is missing", path=self.path) from None
        if len(line) != self._record_bytes:
            raise TruncatedDataError(f"the shard table ends inside record {number}", path=self.path)
        try:
            return ShardRecord.from_line(line)
        except CorruptDataError as error:
            raise error.at(path=self.path) from None


def file_record(record: ShardRecord, field: Field, path: Path) -> FileRecord:
    """Return what a record says of one array's file."""
    try:
        return record.files[field.name]
    except KeyError:
        raise CorruptDataError(
            f"record {record.shard} of the shard table lacks {field.name}", path=path.parent / layout.SHARD_TABLE_FILE
        ) from None
