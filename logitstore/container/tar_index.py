"""``documents.idx``: where each document of a WebDataset store lies. One record of 64 bytes a document, in order."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

import google_crc32c
import numpy as np

from logitstore import layout
from logitstore.errors import CorruptDataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["IndexRecord", "shard_name", "tar_key"]


def tar_key(document: int) -> str:
    """Name of a document's members in its tar, without the extension: its number, so that names sort as documents."""
    return f"{document:010d}"


def shard_name(shard: int) -> str:
    """Name of a tar shard."""
    return f"shard-{shard:06d}.tar"


class IndexRecord(NamedTuple):
    """A record of the index.

    Attributes
    ----------
    shard
        Number of the tar.
    rows, first_row
        Of the document.
    offset, size
        First byte of the ``.lgt`` member's content in the tar, and its bytes.
    line_offset, line_size
        Where the document's line begins in ``documents.jsonl``, and its bytes.
    json_size
        Bytes of the ``.json`` member, which ends where the header of the ``.lgt`` member begins.
    crc, json_crc
        crc32c of both members' contents.
    """

    shard: int
    rows: int
    first_row: int
    offset: int
    size: int
    line_offset: int
    line_size: int
    json_size: int
    crc: int
    json_crc: int

    @property
    def json_offset(self) -> int:
        """First byte of the ``.json`` member's content in the tar."""
        return self.offset - layout.TAR_BLOCK - -(-self.json_size // layout.TAR_BLOCK) * layout.TAR_BLOCK

    def pack(self) -> bytes:
        """Return the record's bytes."""
        head = struct.pack(
            layout.INDEX_RECORD, self.shard, self.rows, self.first_row, self.offset, self.size, self.line_offset,
            self.line_size, self.json_size, self.crc, self.json_crc, 0, 0,
        )[:-4]  # fmt: skip
        return head + struct.pack("<I", google_crc32c.value(head))

    @classmethod
    def unpack(cls, data: bytes | memoryview) -> IndexRecord:
        """Read a record and check its checksum."""
        raw = bytes(data)
        *fields, _, crc = struct.unpack(layout.INDEX_RECORD, raw)
        if crc != google_crc32c.value(raw[:-4]):
            raise CorruptDataError("the checksum of the index record does not fit its bytes")
        return cls(*fields)

    @staticmethod
    def first_rows(data: bytes) -> NDArray[np.int64]:
        """Return the first rows of consecutive records, ``(n,)``, and check every record's checksum."""
        size = layout.INDEX_RECORD_BYTES
        words = np.frombuffer(data, "<u4").reshape(-1, size // 4)
        for number, stored in enumerate(words[:, -1].tolist()):
            if stored != google_crc32c.value(data[number * size : (number + 1) * size - layout.CRC_BYTES]):
                raise CorruptDataError("the checksum of an index record does not fit its bytes")
        return np.ascontiguousarray(words[:, 2:4]).view("<i8")[:, 0]
