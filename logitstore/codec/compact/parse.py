"""Reading a codebook file, and checking everything that a decoder relies on."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import google_crc32c
import numpy as np

from logitstore import layout
from logitstore.codec.compact.codebook import (
    COLUMN_CONTEXTS,
    GAP_CONTEXTS,
    IdBook,
    ValueBook,
)
from logitstore.codec.compact.sections import Sections, runs_of_gaps
from logitstore.errors import CorruptDataError, TruncatedDataError, UnsupportedVersionError

if TYPE_CHECKING:
    from logitstore.codec.compact.codebook import Codebook

__all__ = ["parse"]


def parse(data: bytes) -> Codebook:
    """Read a codebook file.

    Raises
    ------
    CorruptDataError
        The bytes break a rule.
    TruncatedDataError
        They end too early.
    UnsupportedVersionError
        They are of a newer version.
    """
    if len(data) < layout.CODEBOOK_HEADER_BYTES + layout.CRC_BYTES:
        raise TruncatedDataError(f"a codebook has at least 48 bytes, found {len(data)}")
    if len(data) > layout.CODEBOOK_MAX_BYTES:
        raise CorruptDataError(f"a codebook has at most {layout.CODEBOOK_MAX_BYTES} bytes, found {len(data)}")
    magic, kind, dtype, zero, bound, first, second, sections, max_error, max_kl = struct.unpack_from(
        layout.CODEBOOK_HEADER, data
    )
    if magic != layout.CODEBOOK_MAGIC:
        if magic[:7] == layout.CODEBOOK_MAGIC[:7]:
            raise UnsupportedVersionError(f"codebook version {magic[7:]!r} is newer than this logitstore reads (b'1')")
        raise CorruptDataError(f"a codebook starts with {layout.CODEBOOK_MAGIC!r}, found {magic!r}")
    stored = int.from_bytes(data[-layout.CRC_BYTES :], "little")
    if google_crc32c.value(data[: -layout.CRC_BYTES]) != stored:
        raise CorruptDataError("the codebook's checksum does not fit its bytes")
    reader = Sections(data, sections)
    if zero:
        raise CorruptDataError(f"bytes 10 and 11 of a codebook are zero, found {zero}")
    book: Codebook
    if kind == layout.KIND_IDS and dtype == layout.DTYPE_UINT32:
        book = _parse_ids(reader, bound, first, second)
    elif kind == layout.KIND_VALUES and dtype in (layout.DTYPE_FLOAT16, layout.DTYPE_UINT8) and bound == 0:
        book = _parse_values(reader, dtype, first, second, max_error, max_kl)
    else:
        raise CorruptDataError(f"a codebook is of ids or values, found kind {kind}, type {dtype}, bound {bound}")
    reader.finish()
    # The digest names these bytes, not what another writer might make of them.
    book.__dict__["blob"] = bytes(data)
    return book


def _parse_ids(reader: Sections, vocab_size: int, classes: int, contexts: int) -> IdBook:
    if not 1 <= vocab_size <= layout.MAX_VOCAB_SIZE:
        raise CorruptDataError(f"a vocabulary has 1 to 2^31 ids, found {vocab_size}")
    if not (1 <= classes <= layout.CODEBOOK_MAX_CLASSES and 1 <= contexts <= layout.TABLES_MAX):
        raise CorruptDataError(f"a codebook has 1 to 65,536 classes of 1 to 256 contexts, found {classes}, {contexts}")
    if vocab_size > layout.CODEBOOK_MAX_LISTED:
        raise CorruptDataError(f"codebooks are for vocabularies of up to 2^26 ids, found {vocab_size}")
    sizes = reader.take(None, 64)
    head = runs_of_gaps(
        reader.take(int(sizes.sum(dtype=np.int64)), vocab_size), sizes, vocab_size, "an id of the order"
    )
    seen = np.zeros(vocab_size, np.bool_)
    seen[head] = True
    if int(seen.sum()) != len(head):
        raise CorruptDataError("an id is twice in the order of a codebook")
    order = np.concatenate([head, np.flatnonzero(~seen).astype(np.uint32)])
    nibbles = reader.take(classes * contexts, layout.CODEBOOK_MAX_CLASSES * layout.TABLES_MAX).reshape(classes, -1)
    total = int(nibbles.sum(dtype=np.int64)) * layout.NIBBLE
    if total > layout.CODEBOOK_MAX_LISTED:
        raise CorruptDataError(f"the classes of a codebook list at most 2^26 ids, found {total}")
    run_sizes = nibbles.reshape(-1).astype(np.int64) * layout.NIBBLE
    listed = runs_of_gaps(reader.take(total, layout.CODEBOOK_MAX_LISTED), run_sizes, vocab_size, "a rank of a class")
    book = IdBook(vocab_size, order, sizes, nibbles, listed, *[reader.code() for _ in range(4)])
    for name, code, count in (
        ("classes", book.class_code, 1), ("misses", book.miss_code, 1), ("gaps", book.gap_code, GAP_CONTEXTS),
        ("nibbles", book.nibble_code, contexts),
    ):  # fmt: skip
        code.check(name, count)
    if len(book.nibble_code.widths) != 1 << layout.NIBBLE or book.nibble_code.widths.any():
        raise CorruptDataError("the code of nibbles has 16 symbols without raw bits")
    ends = book.first_nibble * layout.NIBBLE
    owner = np.repeat(np.arange(classes), np.diff(ends))
    keys = owner * np.int64(vocab_size) + listed
    if len(np.unique(keys)) != len(keys):
        raise CorruptDataError("an id is twice in the list of a class")
    return book


def _parse_values(reader: Sections, dtype: int, levels: int, bounds: int, max_error: float, max_kl: float) -> ValueBook:
    limit = 1 << (16 if dtype == layout.DTYPE_FLOAT16 else 8)
    if not (1 <= levels <= limit and bounds <= 15):
        raise CorruptDataError(f"a codebook has 1 to {limit} levels and up to 15 bounds, found {levels} and {bounds}")
    if not (max_error >= 0 and max_kl >= 0):
        raise CorruptDataError(f"a codebook's bounds are not negative, found {max_error} and {max_kl}")
    keys = runs_of_gaps(reader.take(levels, limit), np.array([levels]), limit, "a level")
    edges = reader.take(bounds, 15)
    if (np.diff(edges.astype(np.int64)) <= 0).any():
        raise CorruptDataError(f"the bounds of a codebook ascend, found {edges.tolist()}")
    book = ValueBook(dtype, keys, edges, reader.code(), reader.code(), max_error, max_kl)
    book.base_code.check("bases", 1)
    book.delta_code.check("distances", (bounds + 1) * COLUMN_CONTEXTS)
    return book
