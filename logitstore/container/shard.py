"""Shard files: ``header | (frame header | chunk)* | index | crc32c``.

To Zarr a shard file is an ordinary ``sharding_indexed`` shard, whose specification allows gaps between chunks. The
gaps hold what Zarr lacks: which store, array, shard and chunk these bytes are, so that a file that was copied over
another one is noticed, and the index can be rebuilt.
"""

from __future__ import annotations

import hashlib
import os
import struct
from typing import TYPE_CHECKING, Any, Self

import google_crc32c
import numpy as np

from logitstore import layout
from logitstore.container.durable import publish
from logitstore.errors import CorruptDataError, TruncatedDataError, UnsupportedVersionError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from logitstore.codec import CutRows
    from logitstore.container.fields import Field
    from logitstore.container.files import StoreFiles

__all__ = ["ShardReader", "ShardWriter"]


class ShardWriter:
    """Write one shard of one array to a temporary file; `publish` gives it its name.

    Parameters
    ----------
    path
        Final path of the file.
    store_id
        16 bytes that name the store.
    field, shard, first_row, chunks
        The array, the shard's number, its first row and how many chunks a full shard has.
    """

    def __init__(self, path: Path, *, store_id: bytes, field: Field, shard: int, first_row: int, chunks: int) -> None:
        self.path = path
        self._temporary = path.with_name(f".{path.name}.partial")
        self._store_id = store_id
        self._field = field
        self._shard = shard
        self._first_row = first_row
        self._index = np.full((chunks, 2), layout.EMPTY_CHUNK, "<u8")
        self._written = 0
        self._position = layout.SHARD_HEADER_BYTES
        self._frames: list[bytes] = []
        self._file = self._temporary.open("wb")
        self._file.write(bytes(layout.SHARD_HEADER_BYTES))

    def write_chunk(self, payload: bytes) -> None:
        """Append the next chunk."""
        chunk = self._written
        first_row = self._first_row + chunk * self._field.chunk_rows
        head = struct.pack(
            layout.FRAME_HEADER, layout.FRAME_MAGIC, self._shard, chunk, len(payload), first_row,
            google_crc32c.value(payload), 0,
        )[:-4]  # fmt: skip
        frame = head + struct.pack("<I", google_crc32c.value(head))
        padding = bytes(-len(payload) % layout.FRAME_ALIGNMENT)
        self._index[chunk] = self._position + len(frame), len(payload)
        self._file.write(frame)
        self._file.write(payload)
        self._file.write(padding)
        self._position += len(frame) + len(payload) + len(padding)
        self._written += 1

    def close(self, rows: int) -> tuple[int, str]:
        """Write index and header, sync, and give the file its name.

        Returns
        -------
        tuple
            Bytes of the file and the hexadecimal sha256 of its content.
        """
        index = self._index.tobytes()
        self._file.write(index + struct.pack("<I", google_crc32c.value(index)))
        size = self._file.tell()
        head = struct.pack(
            layout.SHARD_HEADER, layout.SHARD_MAGIC, self._store_id, self._field.name.encode(), self._shard, rows,
            self._first_row, 0,
        )[:-8]  # fmt: skip
        self._file.seek(0)
        self._file.write(head + struct.pack("<I4x", google_crc32c.value(head)))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        with self._temporary.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        publish(self._temporary, self.path)
        return size, digest

    def abandon(self) -> None:
        """Drop the temporary file."""
        self._file.close()
        self._temporary.unlink(missing_ok=True)


class ShardReader:
    """One shard of one array, checked as it is used.

    Opening checks the file's size, identity and index. A chunk's frame and checksum are checked when it is first read,
    unless ``verify`` is ``"none"``; ``"full"`` compares the whole file with its sha256 first.

    Parameters
    ----------
    files, name
        The store's files, and the name of the shard's file.
    store_id, field, shard, first_row, rows, chunks
        What the file must say of itself.
    size, digest
        What the shard table says of the file.
    verify
        ``"none"``, ``"lazy"`` or ``"full"``.

    Raises
    ------
    TruncatedDataError
        The file is missing, empty, or not as long as the shard table says.
    CorruptDataError
        The file is another shard's or another store's, or its index or digest does not fit.
    """

    def __init__(
        self,
        files: StoreFiles,
        name: str,
        *,
        store_id: bytes,
        field: Field,
        shard: int,
        first_row: int,
        rows: int,
        chunks: int,
        size: int,
        digest: str,
        verify: str,
    ) -> None:
        self.path = files.place(name)
        self._field = field
        self._shard = shard
        self._first_row = first_row
        self._verify = verify != "none"
        try:
            self._file = files.open(name)
        except FileNotFoundError:
            raise TruncatedDataError("the shard's file is missing", path=self.path, shard=shard) from None
        self.size = size
        try:
            # Before anything is read: pages behind the end of a shortened file read as zeros or kill the process.
            if self._file.size != size:
                kind = TruncatedDataError if self._file.size < size else CorruptDataError
                raise kind(f"the shard table says {size} bytes, the file has {self._file.size}")
            self._check_header(store_id, rows)
            if verify == "full" and self._file.sha256() != digest:
                raise CorruptDataError(f"the file's sha256 is not {digest}, which the shard table gives")
            self._index = self._read_index(chunks, -(-rows // field.chunk_rows))
        except CorruptDataError as error:
            self.close()
            raise error.at(path=self.path, shard=shard) from None
        self._chunks: list[list[int]] = self._index.tolist()
        self._checked = [False] * chunks

    def _check_header(self, store_id: bytes, rows: int) -> None:
        if self.size < layout.SHARD_HEADER_BYTES:
            raise TruncatedDataError(f"a shard has at least {layout.SHARD_HEADER_BYTES} bytes, found {self.size}")
        head = bytes(self._file.read(0, layout.SHARD_HEADER_BYTES))
        magic, found_store, name, shard, found_rows, first_row, crc = struct.unpack(layout.SHARD_HEADER, head)
        if magic != layout.SHARD_MAGIC:
            raise CorruptDataError(f"a shard starts with {layout.SHARD_MAGIC!r}, found {magic!r}")
        if crc != google_crc32c.value(head[:-8]):
            raise CorruptDataError("the shard header's checksum does not fit its bytes")
        found = (found_store.hex(), name.rstrip(b"\0").decode("ascii", "replace"), shard, found_rows, first_row)
        expected = (store_id.hex(), self._field.name, self._shard, rows, self._first_row)
        for what, is_, should in zip(("store", "array", "shard", "rows", "first row"), found, expected, strict=True):
            if is_ != should:
                raise CorruptDataError(f"the file holds {what} {is_}, expected {should}: another shard was put here")

    def _read_index(self, chunks: int, used: int) -> np.ndarray[tuple[int, int], np.dtype[np.uint64]]:
        size = 16 * chunks
        start = self.size - size - layout.CRC_BYTES
        if start < layout.SHARD_HEADER_BYTES:
            raise TruncatedDataError(f"a shard of {chunks} chunks ends with an index of {size} bytes")
        raw = bytes(self._file.read(start, start + size))
        (crc,) = struct.unpack("<I", self._file.read(start + size, self.size))
        if crc != google_crc32c.value(raw):
            raise CorruptDataError("the shard index's checksum does not fit its bytes")
        index = np.frombuffer(raw, "<u8").reshape(chunks, 2)
        if (index[used:] != layout.EMPTY_CHUNK).any():
            raise CorruptDataError(f"chunks from {used} on lie behind the last row and are empty")
        low = layout.SHARD_HEADER_BYTES + layout.FRAME_HEADER_BYTES
        offsets, sizes = index[:used, 0], index[:used, 1]
        if (offsets < low).any() or (offsets > start).any() or (sizes > start - np.minimum(offsets, start)).any():
            raise CorruptDataError("the shard index points outside the file")
        return index

    def chunk(self, number: int) -> memoryview:
        """Bytes of a chunk, checked on first use. Valid while the reader is open."""
        offset, size = self._chunks[number]
        data = self._file.read(offset, offset + size)
        if self._verify and not self._checked[number]:
            self._check_chunk(number, offset, data)
            self._checked[number] = True
        return data

    def _check_chunk(self, number: int, offset: int, data: memoryview) -> None:
        row = self._first_row + number * self._field.chunk_rows
        head = bytes(self._file.read(offset - layout.FRAME_HEADER_BYTES, offset))
        magic, shard, chunk, size, first_row, crc, head_crc = struct.unpack(layout.FRAME_HEADER, head)

        def broken(message: str) -> CorruptDataError:
            return CorruptDataError(message, path=self.path, shard=self._shard, row=row)

        if magic != layout.FRAME_MAGIC or head_crc != google_crc32c.value(head[:-4]):
            raise broken(f"chunk {number} has no sound frame header before it")
        if (shard, chunk, size, first_row) != (self._shard, number, len(data), row):
            raise broken(
                f"chunk {number} says it is chunk {chunk} of shard {shard} with {size} bytes from row {first_row}"
            )
        if crc != google_crc32c.value(np.frombuffer(data, np.uint8)):
            raise broken(f"the checksum of chunk {number} does not fit its bytes")

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Decode rows ``start:stop``, counted from the first row of the shard."""
        out = np.empty((stop - start, *self._field.row_shape), self._field.dtype)
        self.read_into(start, stop, out)
        return out

    def read_into(self, start: int, stop: int, out: NDArray[Any] | CutRows) -> None:
        """Decode rows ``start:stop`` into ``out``, or cut them out as they are coded."""
        field, step = self._field, self._field.chunk_rows
        for number in range(start // step, -(-stop // step)):
            base = number * step
            low = max(start - base, 0)
            data = self.chunk(number)
            try:
                if field.kind == "raw" and len(data) != field.raw_chunk_bytes:
                    raise CorruptDataError(f"chunk {number} has {len(data)} bytes, expected {field.raw_chunk_bytes}")
                field.decode_chunk(data, low, out[base + low - start : base + step - start])
            except (CorruptDataError, UnsupportedVersionError) as error:
                raise error.at(path=self.path, shard=self._shard, row=self._first_row + base + low) from None

    def close(self) -> None:
        """Let go of the file; it lives on while arrays still look into it."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
