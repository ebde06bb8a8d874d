"""The frame of a ``compact`` chunk: header, columns of counts and of group lengths, payload, checksum."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from logitstore import layout
from logitstore.codec.header import Column, check_bytes, finish_chunk
from logitstore.errors import CorruptDataError, InvalidArgumentError, TruncatedDataError, UnsupportedVersionError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from logitstore.codec.compact.codebook import Codebook

__all__ = ["CompactHeader", "build_chunk", "group_log2_for", "read_header"]


@dataclass(frozen=True)
class CompactHeader:
    """What the first 56 bytes of a chunk say; see ``spec/COMPACT.md``."""

    kind: int
    dtype: int
    group_log2: int
    rows: int
    slots: int
    bound: int
    digest: bytes
    counts: Column
    lengths: Column
    payload_words: int
    entries: int

    @property
    def groups(self) -> int:
        """Groups of rows in the chunk."""
        return -(-self.rows >> self.group_log2)

    @property
    def payload_start(self) -> int:
        """First byte of the payload."""
        words = self.counts.words(self.rows) + self.lengths.words(self.groups)
        return layout.COMPACT_HEADER_BYTES + 4 * words

    @property
    def chunk_bytes(self) -> int:
        """Bytes of the whole chunk, checksum included."""
        return self.payload_start + 2 * self.payload_words + layout.COMPACT_GUARD_BYTES + layout.CRC_BYTES

    def pack(self) -> bytes:
        """Return the 56 header bytes."""
        return struct.pack(
            layout.COMPACT_HEADER, layout.COMPACT_MAGIC, self.kind, self.dtype, self.group_log2, self.rows, self.slots,
            self.bound, self.digest, self.counts.minimum, self.lengths.minimum, self.counts.width, self.lengths.width,
            self.payload_words, self.entries,
        )  # fmt: skip


def group_log2_for(entries: int, rows: int) -> int:
    """Rows of a group, as a power of two: so many that they have about 1,024 entries and its 6 bytes are little."""
    mean = max(1, entries // max(1, rows))
    return min(6, max(0, (1024 // mean).bit_length() - 1))


def build_chunk(
    book: Codebook,
    shape: tuple[int, int],
    group_log2: int,
    counts: tuple[Column, memoryview | bytes],
    lengths: tuple[Column, memoryview | bytes],
    payload: NDArray[np.uint16],
    entries: int,
) -> bytes:
    """Put header and checksum around what was coded."""
    if shape[0] > layout.MAX_CHUNK_ROWS or len(payload) > layout.MAX_PAYLOAD_WORDS:
        raise InvalidArgumentError(
            f"a chunk has at most 2^30 rows and 2^27 - 1 words, found {shape[0]}, {len(payload)}"
        )
    header = CompactHeader(
        book.kind, book.dtype, group_log2, shape[0], shape[1],
        book.vocab_size if book.kind == layout.KIND_IDS else 0,  # type: ignore[union-attr]
        book.digest, counts[0], lengths[0], len(payload), entries,
    )  # fmt: skip
    guard = bytes(layout.COMPACT_GUARD_BYTES)
    return finish_chunk([header.pack(), counts[1], lengths[1], payload.astype("<u2", copy=False).data.cast("B"), guard])


def read_header(view: memoryview, *, verify: bool = True) -> CompactHeader:
    """Read and check a chunk's header, its length and, unless ``verify`` is False, its checksum.

    Raises
    ------
    TruncatedDataError
        The bytes are fewer than the header says.
    CorruptDataError
        The bytes break a rule.
    UnsupportedVersionError
        The chunk was written by a newer version of the codec.
    """
    least = layout.COMPACT_HEADER_BYTES + layout.COMPACT_GUARD_BYTES + layout.CRC_BYTES
    if len(view) < least:
        raise TruncatedDataError(f"a compact chunk has at least {least} bytes, found {len(view)}")
    magic, kind, dtype, group_log2, rows, slots, bound, digest, *rest = struct.unpack_from(layout.COMPACT_HEADER, view)
    count_min, length_min, count_width, length_width, words, entries = rest
    if magic != layout.COMPACT_MAGIC:
        if magic[:3] == layout.COMPACT_MAGIC[:3]:
            raise UnsupportedVersionError(f"chunk version {magic[3:]!r} is newer than this logitstore reads (b'1')")
        raise CorruptDataError(f"a compact chunk starts with {layout.COMPACT_MAGIC!r}, found {magic!r}")
    header = CompactHeader(
        kind, dtype, group_log2, rows, slots, bound, digest, Column(count_min, count_width),
        Column(length_min, length_width), words, entries,
    )  # fmt: skip
    _check_fields(header)
    check_bytes(view, header.chunk_bytes, verify=verify)
    return header


def _check_fields(header: CompactHeader) -> None:
    def require(condition: bool, rule: str, found: object) -> None:
        if not condition:
            raise CorruptDataError(f"{rule}, found {found}")

    allowed = {
        layout.KIND_IDS: (layout.DTYPE_UINT32,),
        layout.KIND_VALUES: (layout.DTYPE_FLOAT16, layout.DTYPE_UINT8),
    }
    require(header.kind in allowed, "a compact chunk's kind is 1 or 2", header.kind)
    require(header.dtype in allowed[header.kind], f"type is one of {allowed[header.kind]}", header.dtype)
    require(header.group_log2 <= layout.GROUP_LOG2_MAX, "group_log2 is at most 10", header.group_log2)
    require(header.rows <= layout.MAX_CHUNK_ROWS, "a chunk has at most 2^30 rows", header.rows)
    require(1 <= header.slots < layout.MAX_SLOTS, "a row has 1 to 2^31-1 slots", header.slots)
    if header.kind == layout.KIND_IDS:
        require(1 <= header.bound <= layout.MAX_VOCAB_SIZE, "the vocabulary has 1 to 2^31 ids", header.bound)
    else:
        require(header.bound == 0, "bound is 0 unless the chunk holds ids", header.bound)
    require(header.counts.width <= 32, "the width of counts is at most 32", header.counts.width)
    require(header.lengths.width <= 32, "the width of lengths is at most 32", header.lengths.width)
    require(header.payload_words <= layout.MAX_PAYLOAD_WORDS, "a payload has < 2^27 words", header.payload_words)
    # A group begins with two words; so rows have to be paid for in bytes.
    require(header.payload_words >= 2 * header.groups, "a group has at least two words", header.payload_words)
