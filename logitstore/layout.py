"""Every number of the on-disk format, in one place. ``spec/FORMAT.md`` gives each one its reason.

All integers are little-endian and unsigned. Bit streams are filled from the least significant bit of each byte.
"""

from __future__ import annotations

from typing import Final

FORMAT_NAME: Final = "logitstore"
FORMAT_VERSION: Final = (1, 2)
"""``(major, minor)``: readers refuse a higher major and accept any minor."""
FORMAT_VERSION_OF_CONTAINER: Final = {"zarr": (1, 0), "webdataset": (1, 1)}
FORMAT_VERSION_OF_CODEC: Final = {"exact": (1, 0), "compact": (1, 2)}
"""What a store is written as: the lowest version that knows its container and its codec."""

CODEC_VERSION: Final = {"exact": 1, "compact": 2}
"""Version by name, as manifests and Zarr metadata give it. No store has version 1 of ``compact``: in the vectors of
format 1.0 it stands for a codec that nobody knows."""

# --- unused slots and missing values -------------------------------------------------------------------------------
UNUSED_ID: Final = 0xFFFFFFFF
MAX_VOCAB_SIZE: Final = 1 << 31
MAX_SLOTS: Final = 1 << 31
MAX_CHUNK_ROWS: Final = 1 << 30
MAX_PAYLOAD_WORDS: Final = (1 << 27) - 1

# --- exact codec: a chunk ------------------------------------------------------------------------------------------
CHUNK_MAGIC: Final = b"LGX1"
CHUNK_HEADER: Final = "<4sBBBBIIIBBBBIIIIII"
CHUNK_HEADER_BYTES: Final = 48
CRC_BYTES: Final = 4
KIND_IDS: Final = 1
KIND_VALUES: Final = 2
KIND_FLAT: Final = 3
DTYPE_UINT8: Final = 1
DTYPE_FLOAT16: Final = 2
DTYPE_UINT32: Final = 3
DTYPE_FLOAT32: Final = 4
BLOCK_LOG2_MIN: Final = 4
BLOCK_LOG2_MAX: Final = 6
PARAMETER_BITS: Final = 4
PARAMETER_MAX: Final = 31
FLAT_GROUP: Final = 256
SHIFT_WIDTH_MAX: Final = 5
GUARD_WORDS: Final = 2

# --- compact codec: a chunk and a codebook --------------------------------------------------------------------------
COMPACT_MAGIC: Final = b"LGC1"
COMPACT_HEADER: Final = "<4sBBBxIII16sIIBBxxII"
"""magic, kind, type, group_log2, rows, slots, bound, codebook digest, minima and widths of counts and lengths,
16-bit words of the payload, entries."""
COMPACT_HEADER_BYTES: Final = 56
COMPACT_GUARD_BYTES: Final = 8
GROUP_LOG2_MAX: Final = 10
CODEBOOK_MAGIC: Final = b"LGCBOOK1"
CODEBOOK_HEADER: Final = "<8sBBHIIIIdd"
"""magic, kind, type, zero, bound, classes, contexts, sections, largest error, largest generalised KL."""
CODEBOOK_HEADER_BYTES: Final = 44
CODEBOOK_DIGEST_BYTES: Final = 16
CODEBOOK_MAX_BYTES: Final = 1 << 28
CODEBOOK_FOLDER: Final = "codebooks"
CODEBOOK_SUFFIX: Final = ".lgb"
CODEBOOK_MAX_SECTIONS: Final = 64
CODEBOOK_MAX_CLASSES: Final = 1 << 16
CODEBOOK_MAX_LISTED: Final = 1 << 26
SYMBOLS_MAX: Final = 256
TABLES_MAX: Final = 256
TABLE_LOG2: Final = 10
RANS_LOW: Final = 1 << 16
RAW_WIDTH_MAX: Final = 31
ESCAPE: Final = 32
NIBBLE: Final = 4

# --- shard files ---------------------------------------------------------------------------------------------------
SHARD_MAGIC: Final = b"LGSHARD1"
SHARD_HEADER: Final = "<8s16s16sIIQI4x"
"""magic, store id, field name (ASCII, zero-padded), shard number, rows in the shard, first row, crc32c."""
SHARD_HEADER_BYTES: Final = 64
FRAME_MAGIC: Final = b"LGFR"
FRAME_HEADER: Final = "<4sIIIQII"
"""magic, shard number, chunk number in the shard, payload bytes, first row, payload crc32c, header crc32c."""
FRAME_HEADER_BYTES: Final = 32
FRAME_ALIGNMENT: Final = 8
EMPTY_CHUNK: Final = (1 << 64) - 1

# --- documents in tar shards ---------------------------------------------------------------------------------------
DOCUMENT_MAGIC: Final = b"LGTDOC01"
DOCUMENT_HEADER: Final = "<8s16sQQIIIHHII"
"""magic, store id, document, first row, rows, slots, vocabulary, columns of lse_T, arrays, table bytes, crc32c."""
DOCUMENT_HEADER_BYTES: Final = 64
ARRAY_ENTRY: Final = "<16sII"
"""array name (ASCII, zero-padded), rows of a chunk, number of chunks; the chunks' sizes follow, a u32 each."""
ARRAY_ENTRY_BYTES: Final = 24
CHUNK_ALIGNMENT: Final = 8
MAX_DOCUMENT_TABLE_BYTES: Final = 1 << 26
MAX_DOCUMENT_TEMPERATURES: Final = (1 << 16) - 1
INDEX_RECORD: Final = "<IIQQQQIIIIII"
"""shard, rows, first row, first byte of the .lgt in the tar, its bytes, first byte of the line in documents.jsonl,
bytes of the line, bytes of the .json, crc32c of the .lgt, crc32c of the .json, zero, crc32c of the record."""
INDEX_RECORD_BYTES: Final = 64
INDEX_FILE: Final = "documents.idx"
TAR_BLOCK: Final = 512
MAX_TAR_MEMBER_BYTES: Final = (1 << 33) - 1
"""Eleven octal digits, which is what a plain tar header has for a size."""

# --- store ---------------------------------------------------------------------------------------------------------
MANIFEST_FILE: Final = "manifest.json"
SHARD_TABLE_FILE: Final = "shards.jsonl"
BUILD_RECORD_FILE: Final = "build.json"
MAX_MANIFEST_BYTES: Final = 16 << 20
MAX_SHARD_RECORD_BYTES: Final = 1 << 16
