"""Where a store's files lie: in a local folder or behind an fsspec URL. The reader asks for names and byte ranges."""

from __future__ import annotations

import hashlib
import mmap
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["LocalFiles", "RandomFile", "StoreFiles", "files_at", "is_remote"]

TABLE_BLOCK_BYTES = 64 << 10
"""Fetched at a time from remote tables, of which a record is needed here and there."""
SHARD_BLOCK_BYTES = 1 << 20
"""Fetched at a time from remote shards."""


class RandomFile(Protocol):
    """An open file of known size."""

    size: int

    def read(self, start: int, stop: int) -> memoryview:
        """Return bytes ``start:stop``, which lie within the file. A view stays valid after `close`."""
        ...

    def sha256(self) -> str:
        """Return the hexadecimal digest of the whole file."""
        ...

    def close(self) -> None:
        """Let go of the file."""
        ...


class StoreFiles(Protocol):
    """The files of one store, by their names within it. Picklable; usable after a fork."""

    def place(self, name: str = "") -> str:
        """Return where a file lies, in words for an error."""
        ...

    def exists(self) -> bool:
        """Whether there is anything at all where the store should be."""
        ...

    def read(self, name: str, limit: int | None = None) -> bytes:
        """Return a whole file, or its first ``limit`` bytes; FileNotFoundError if it is missing."""
        ...

    def read_many(self, names: Sequence[str]) -> list[bytes | None]:
        """Return whole files, None for each that is missing."""
        ...

    def open(self, name: str, block_bytes: int = SHARD_BLOCK_BYTES) -> RandomFile:
        """Open a file; FileNotFoundError if it is missing."""
        ...


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether ``path`` is a URL of anything but the local disk."""
    text = os.fspath(path)
    return "://" in text and not text.startswith(("file://", "local://"))


def files_at(
    path: str | os.PathLike[str], *, storage_options: dict[str, Any] | None = None, cache_bytes: int = 256 << 20
) -> StoreFiles:
    """Return the files of the store at a path or fsspec URL.

    Parameters
    ----------
    path
        A folder, or a URL such as ``s3://bucket/teacher.zarr``.
    storage_options
        For fsspec, with a URL: credentials, endpoints.
    cache_bytes
        Bytes of remote files kept in memory at most.
    """
    if is_remote(path):
        from logitstore.container.remote import RemoteFiles

        return RemoteFiles(os.fspath(path), storage_options or {}, cache_bytes)
    return LocalFiles(Path(os.fspath(path).removeprefix("file://").removeprefix("local://")))


class LocalFiles:
    """A folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def place(self, name: str = "") -> str:
        """See `StoreFiles`."""
        return str(self.path / name) if name else str(self.path)

    def exists(self) -> bool:
        """See `StoreFiles`."""
        return self.path.exists()

    def read(self, name: str, limit: int | None = None) -> bytes:
        """See `StoreFiles`."""
        try:
            with (self.path / name).open("rb") as file:
                return file.read(-1 if limit is None else limit)
        except NotADirectoryError as error:
            raise FileNotFoundError(*error.args) from None

    def read_many(self, names: Sequence[str]) -> list[bytes | None]:
        """See `StoreFiles`."""
        return [self.read(name) if (self.path / name).is_file() else None for name in names]

    def open(self, name: str, block_bytes: int = SHARD_BLOCK_BYTES) -> RandomFile:  # noqa: ARG002
        """See `StoreFiles`."""
        return _MappedFile(self.path / name)


class _MappedFile:
    """A local file, mapped into memory."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self.size = os.fstat(file.fileno()).st_size
            self._map = mmap.mmap(file.fileno(), self.size, access=mmap.ACCESS_READ) if self.size else None
        self._view = memoryview(b"") if self._map is None else memoryview(self._map)

    def read(self, start: int, stop: int) -> memoryview:
        """See `RandomFile`."""
        return self._view[start:stop]

    def sha256(self) -> str:
        """See `RandomFile`."""
        return hashlib.sha256(self._view).hexdigest()

    def close(self) -> None:
        """See `RandomFile`."""
        try:
            self._view.release()
            if self._map is not None:
                self._map.close()
        except BufferError:
            return  # the mapping lives on while arrays still look into it
