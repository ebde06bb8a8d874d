"""The fixed header of an ``exact`` chunk: written, read and checked here, for every implementation of the codec."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

import google_crc32c
import numpy as np

from logitstore import layout
from logitstore.errors import CorruptDataError, TruncatedDataError, UnsupportedVersionError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Buffer

__all__ = ["DTYPE_BITS", "ChunkHeader", "Column", "check_bytes", "finish_chunk", "read_header"]

_DTYPES_OF_KIND = {
    layout.KIND_IDS: (layout.DTYPE_UINT32,),
    layout.KIND_VALUES: (layout.DTYPE_FLOAT16, layout.DTYPE_UINT8),
    layout.KIND_FLAT: (layout.DTYPE_UINT8, layout.DTYPE_UINT32, layout.DTYPE_FLOAT32),
}
DTYPE_BITS = {
    layout.DTYPE_UINT8: 8,
    layout.DTYPE_FLOAT16: 16,
    layout.DTYPE_UINT32: 32,
    layout.DTYPE_FLOAT32: 32,
}


@dataclass(frozen=True)
class Column:
    """A column of the row table: each row's value is ``minimum`` plus ``width`` packed bits."""

    minimum: int
    width: int

    def words(self, rows: int) -> int:
        """32-bit words the packed part takes for ``rows`` rows."""
        return -(-rows * self.width // 32)


@dataclass(frozen=True)
class ChunkHeader:
    """What the first 48 bytes of a chunk say; see ``spec/FORMAT.md``, "Chunk"."""

    kind: int
    dtype: int
    block_log2: int
    parameter_base: int
    rows: int
    slots: int
    bound: int
    shift: int
    counts: Column
    lengths: Column
    bases: Column
    payload_words: int
    entries: int
    shift_width: int = 0

    @property
    def shifts(self) -> Column:
        """The column of shifts: ``shift`` is its minimum."""
        return Column(self.shift, self.shift_width)

    @property
    def columns(self) -> tuple[Column, Column, Column, Column]:
        """The columns in the order they are stored."""
        return self.counts, self.lengths, self.bases, self.shifts

    @property
    def columns_bytes(self) -> int:
        """Bytes of the packed columns that follow the header."""
        return 4 * sum(column.words(self.rows) for column in self.columns)

    @property
    def chunk_bytes(self) -> int:
        """Bytes of the whole chunk, checksum included."""
        return layout.CHUNK_HEADER_BYTES + self.columns_bytes + 4 * self.payload_words + layout.CRC_BYTES

    def pack(self) -> bytes:
        """Return the 48 header bytes."""
        return struct.pack(
            layout.CHUNK_HEADER,
            layout.CHUNK_MAGIC,
            self.kind,
            self.dtype,
            self.block_log2,
            self.parameter_base,
            self.rows,
            self.slots,
            self.bound,
            self.shift,
            self.counts.width,
            self.lengths.width,
            self.bases.width,
            self.counts.minimum,
            self.lengths.minimum,
            self.bases.minimum,
            self.payload_words,
            self.entries,
            self.shift_width,
        )


def finish_chunk(parts: Sequence[bytes | memoryview]) -> bytes:
    """Join header, columns and payload and append their checksum."""
    checksum = 0
    for part in parts:
        checksum = google_crc32c.extend(checksum, np.frombuffer(part, np.uint8))
    return b"".join([*parts, struct.pack("<I", checksum)])


def read_header(data: Buffer, *, verify: bool = True) -> ChunkHeader:
    """Read and check a chunk's header, its length and, unless ``verify`` is False, its checksum.

    Parameters
    ----------
    data
        All bytes of the chunk.
    verify
        Whether to compute the crc32c over the chunk. Everything else is always checked.

    Raises
    ------
    TruncatedDataError
        The bytes are fewer than the header says.
    CorruptDataError
        The bytes break a rule.
    UnsupportedVersionError
        The chunk was written by a newer version of the codec.
    """
    view = memoryview(data).cast("B")
    if len(view) < layout.CHUNK_HEADER_BYTES + layout.CRC_BYTES:
        raise TruncatedDataError(
            f"a chunk has at least {layout.CHUNK_HEADER_BYTES + layout.CRC_BYTES} bytes, found {len(view)}"
        )
    fields = struct.unpack_from(layout.CHUNK_HEADER, view)
    magic, kind, dtype, block_log2, parameter_base, rows, slots, bound = fields[:8]
    shift, count_width, length_width, base_width, count_min, length_min, base_min = fields[8:15]
    payload_words, entries, shift_width = fields[15:]
    if magic != layout.CHUNK_MAGIC:
        if magic[:3] == layout.CHUNK_MAGIC[:3]:
            raise UnsupportedVersionError(f"chunk version {magic[3:]!r} is newer than this logitstore reads (b'1')")
        raise CorruptDataError(f"a chunk starts with {layout.CHUNK_MAGIC!r}, found {magic!r}")
    header = ChunkHeader(
        kind, dtype, block_log2, parameter_base, rows, slots, bound, shift,
        Column(count_min, count_width), Column(length_min, length_width), Column(base_min, base_width),
        payload_words, entries, shift_width,
    )  # fmt: skip
    _check_fields(header)
    check_bytes(view, header.chunk_bytes, verify=verify)
    return header


def check_bytes(view: memoryview, chunk_bytes: int, *, verify: bool) -> None:
    """Raise unless a chunk has as many bytes as its header says, and, with ``verify``, the checksum at its end."""
    if len(view) != chunk_bytes:
        kind_of_error = TruncatedDataError if len(view) < chunk_bytes else CorruptDataError
        raise kind_of_error(f"the chunk's header says {chunk_bytes} bytes, found {len(view)}")
    if verify:
        stored = struct.unpack_from("<I", view, len(view) - layout.CRC_BYTES)[0]
        computed = google_crc32c.value(np.frombuffer(view[: -layout.CRC_BYTES], np.uint8))
        if stored != computed:
            raise CorruptDataError(f"chunk checksum is {stored:#010x}, its bytes give {computed:#010x}")


def _check_fields(header: ChunkHeader) -> None:
    def require(condition: bool, rule: str, found: object) -> None:
        if not condition:
            raise CorruptDataError(f"{rule}, found {found}")

    require(header.kind in _DTYPES_OF_KIND, "a chunk's kind is 1, 2 or 3", header.kind)
    require(
        header.dtype in _DTYPES_OF_KIND[header.kind],
        f"a chunk of kind {header.kind} has a type out of {_DTYPES_OF_KIND[header.kind]}",
        header.dtype,
    )
    require(
        layout.BLOCK_LOG2_MIN <= header.block_log2 <= layout.BLOCK_LOG2_MAX,
        "block_log2 is 4, 5 or 6", header.block_log2,
    )  # fmt: skip
    require(header.parameter_base <= layout.PARAMETER_MAX, "parameter_base is at most 31", header.parameter_base)
    require(header.shift_width <= layout.SHIFT_WIDTH_MAX, "shift_width is at most 5", header.shift_width)
    for name in ("counts", "lengths", "bases"):
        column: Column = getattr(header, name)
        require(column.width <= 32, f"the width of {name} is at most 32", column.width)
    require(header.rows <= layout.MAX_CHUNK_ROWS, "a chunk has at most 2^30 rows", header.rows)
    require(1 <= header.slots < layout.MAX_SLOTS, "a row has 1 to 2^31-1 slots", header.slots)
    bits = DTYPE_BITS[header.dtype]
    if header.kind == layout.KIND_IDS:
        require(1 <= header.bound <= layout.MAX_VOCAB_SIZE, "the vocabulary has 1 to 2^31 ids", header.bound)
        require(header.shifts == Column(0, 0), "ids have no shift", header.shifts)
        require(header.bases == Column(0, 0), "ids have no bases", header.bases)
    else:
        require(header.bound == 0, "bound is 0 unless the chunk holds ids", header.bound)
        require(header.shift < bits, f"shift is below {bits}", header.shift)
    if header.kind == layout.KIND_FLAT:
        require(header.slots == layout.FLAT_GROUP, f"a flat group has {layout.FLAT_GROUP} slots", header.slots)
        require(header.counts == Column(layout.FLAT_GROUP, 0), f"flat counts are {layout.FLAT_GROUP}", header.counts)
        require(
            header.rows == -(-header.entries // layout.FLAT_GROUP),
            f"{header.entries} flat elements make {-(-header.entries // layout.FLAT_GROUP)} groups", header.rows,
        )  # fmt: skip
    require(
        layout.GUARD_WORDS <= header.payload_words <= layout.MAX_PAYLOAD_WORDS,
        f"a payload has {layout.GUARD_WORDS} to {layout.MAX_PAYLOAD_WORDS} words", header.payload_words,
    )  # fmt: skip
