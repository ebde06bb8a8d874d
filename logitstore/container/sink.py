"""What the writer of a store asks of a container: to take documents, and to say when a shard can be committed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from logitstore.container.loss_meter import LossMeter
    from logitstore.container.manifest import Manifest
    from logitstore.container.progress import Progress
    from logitstore.container.shard_table import ShardRecord
    from logitstore.records import RowBatch

__all__ = ["Commit", "Entry", "ShardSink"]


@dataclass(frozen=True)
class Entry:
    """A document on its way to disk.

    Attributes
    ----------
    document, first_row
        Its number, and its first row in the store.
    about
        What stands in its line of ``documents.jsonl``.
    line
        First byte of that line, and the byte behind it.
    rows
        All its rows.
    skip
        Rows at its beginning that are committed already.
    cursor
        Where the producer would have to start again to give this document once more.
    """

    document: int
    first_row: int
    about: dict[str, Any]
    line: tuple[int, int]
    rows: RowBatch
    skip: int
    cursor: dict[str, Any] | None


@dataclass(frozen=True)
class Commit:
    """A shard whose files are durable under their names, and where the store stands with it."""

    record: ShardRecord
    rows: int
    documents: int
    documents_bytes: int
    entries: int
    """Of this shard alone."""
    cursor: dict[str, Any] | None
    losses: list[LossMeter]
    """What quantising lost in this shard, in the order of its rows."""


class ShardSink(Protocol):
    """Writes shards of one container."""

    record_bytes: int
    open_entries: int
    """Entries taken that are not in a committed shard."""

    @property
    def bytes_written(self) -> int:
        """Bytes of chunks written by this run."""
        ...

    def start(self, progress: Progress) -> None:
        """Clear away what a crash left behind the last commit, and go on from there."""
        ...

    def append(self, entry: Entry) -> Iterator[Callable[[], Commit]]:
        """Take a document. Yields a function for each shard that is full; it makes the shard durable."""
        ...

    def flush(self) -> Iterator[Callable[[], Commit]]:
        """As `append`, for what is left at the end."""
        ...

    def finish(self) -> tuple[list[ShardRecord], dict[str, Any]]:
        """Return records behind those of the rows' shards, and what the manifest says beside the common totals."""
        ...

    def describe(self, manifest: Manifest) -> None:
        """Write metadata that follows from the complete manifest, before the manifest itself."""
        ...

    def close(self) -> None:
        """Drop what is in flight."""
        ...
