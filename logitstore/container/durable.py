"""Writing files so that a crash leaves either the old bytes or the new ones, never something between."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any, BinaryIO

from logitstore.errors import CorruptDataError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["canonical_json", "cut_file", "publish", "sync_directory", "sync_file", "write_atomically"]


def canonical_json(value: Any) -> str:
    """Return the one JSON text that stands for ``value``: sorted keys, no spaces, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish(temporary: Path, final: Path) -> None:
    """Give a finished, synced file its final name. The directory still has to be synced."""
    os.replace(temporary, final)


def write_atomically(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data``: temporary file, fsync, rename, fsync of the directory."""
    temporary = path.with_name(f".{path.name}.partial")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    publish(temporary, path)
    sync_directory(path.parent)


def sync_file(file: BinaryIO) -> None:
    """Make what was written to an open file durable."""
    file.flush()
    os.fsync(file.fileno())


def cut_file(path: Path, size: int) -> None:
    """Drop what was written to a file behind the last commit; make the file if there is none.

    Raises
    ------
    CorruptDataError
        The file has lost bytes that were committed.
    """
    with path.open("ab") as file:
        if file.tell() < size:
            raise CorruptDataError(f"{size} bytes were committed, the file has {file.tell()}", path=path)
        file.truncate(size)
