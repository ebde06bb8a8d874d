"""Read a document file (``.lgt``) with nothing but Python's standard library, in the order of FORMAT.md section 16.

It checks rules D1 to D13 of section 12; the rule that was broken is in the error.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

from reference_chunk import FormatError, ceil_div, crc32c, number_of, require
from reference_manifest import decode_entries

HEADER = struct.Struct("<8s16sQQIIIHHII")
ENTRY = struct.Struct("<16sII")
MAX_TABLE_BYTES = 1 << 26
CODINGS = {
    "tokens": ("flat", "uint32"), "ids": ("ids", "uint32"), "logprobs": ("values", "float16"),
    "logits": ("values", "float16"), "lse": ("flat", "float32"), "label_logprob": ("flat", "float32"),
    "mask": ("flat", "uint8"), "counts": ("values", "uint8"), "lse_T": ("flat", "float32"),
}  # fmt: skip
"""Coding and type of each array, in the order in which arrays stand in a document file."""
ALWAYS = {"tokens", "ids", "lse", "label_logprob", "mask"}


@dataclass(frozen=True)
class DocumentHeader:
    """What a document file says of itself."""

    store_id: str
    document: int
    first_row: int
    rows: int
    slots: int
    vocab_size: int
    temperatures: int


@dataclass(frozen=True)
class DocumentArray:
    """An entry of the table, and where its chunks lie: first byte and size of each."""

    chunk_rows: int
    chunks: list[tuple[int, int]]


class DocumentFile:
    """A document file. Header and table are checked at once, chunks when they are read."""

    def __init__(self, data: bytes, books: Any = None) -> None:
        self.data = data
        self.books = books
        require(len(data) >= HEADER.size, "D1", f"{len(data)} bytes", "truncated")
        magic, store_id, *numbers = HEADER.unpack_from(data)
        require(magic[:6] == b"LGTDOC", "D2", f"magic {magic!r}")
        require(magic[6:] == b"01", "D3", f"version {magic[6:]!r}", "unsupported")
        *numbers, arrays, table_bytes, crc = numbers
        self.header = h = DocumentHeader(store_id.hex(), *numbers)
        require(table_bytes <= MAX_TABLE_BYTES, "D4", f"a table of {table_bytes} bytes")
        end = HEADER.size + table_bytes
        require(len(data) >= end, "D5", f"{len(data)} bytes, the table ends at {end}", "truncated")
        require(crc == crc32c(data[: HEADER.size - 4] + data[HEADER.size : end]), "D6", "checksum of header and table")
        within = 1 <= h.rows <= 1 << 30 and 1 <= h.vocab_size <= 1 << 31
        require(within and 1 <= h.slots <= min(h.vocab_size, (1 << 31) - 1), "D7", f"{h}")
        self.arrays: dict[str, DocumentArray] = {}
        size = self.read_table(data[HEADER.size : end], arrays, end)
        require(len(data) >= size, "D11", f"{len(data)} of {size} bytes", "truncated")
        require(len(data) == size, "D12", f"{len(data)} bytes, expected {size}")
        names = set(self.arrays)
        require(names >= ALWAYS and len(names & {"logprobs", "logits"}) == 1, "D9", f"arrays {sorted(names)}")
        require(("lse_T" in names) == (h.temperatures > 0), "D9", f"lse_T of {h.temperatures} columns")

    def read_table(self, table: bytes, arrays: int, offset: int) -> int:
        """Find the chunks, of which the first is at ``offset``; return where the last one ends."""
        order = list(CODINGS)
        position, last = 0, -1
        for _ in range(arrays):
            require(position + ENTRY.size <= len(table), "D8", "the table ends inside an entry")
            raw, chunk_rows, count = ENTRY.unpack_from(table, position)
            position += ENTRY.size
            name = raw.rstrip(b"\0").decode("latin-1")
            require(name in order and order.index(name) > last, "D9", f"array {name!r} stands behind {order[:last]}")
            last = order.index(name)
            sound = 1 <= chunk_rows <= 1 << 30 and count == ceil_div(self.header.rows, chunk_rows)
            require(sound, "D10", f"{name}: {count} chunks of {chunk_rows} rows for {self.header.rows}")
            require(position + 4 * count <= len(table), "D8", "the table ends inside an entry")
            chunks = []
            for size in struct.unpack_from(f"<{count}I", table, position):
                chunks.append((offset, size))
                offset += 8 * ceil_div(size, 8)
            position += 4 * count
            self.arrays[name] = DocumentArray(chunk_rows, chunks)
        require(len(table) == 8 * ceil_div(position, 8), "D8", f"{len(table)} bytes, entries take {position}")
        return offset

    def columns(self, name: str) -> int | None:
        """Length of an array's second axis."""
        if name == "lse_T":
            return self.header.temperatures
        return None if CODINGS[name][0] == "flat" else self.header.slots

    def bits(self, name: str) -> list[Any]:
        """All rows of an array as the bits of its elements: numbers, or lists of numbers."""
        coding, type_ = CODINGS[name]
        array, columns = self.arrays[name], self.columns(name)
        out: list[Any] = []
        for number, (offset, size) in enumerate(array.chunks):
            rows = min(array.chunk_rows, self.header.rows - number * array.chunk_rows)
            shape = (rows,) if columns is None else (rows, columns)
            bound = self.header.vocab_size if coding == "ids" else 0
            try:
                chunk = self.data[offset : offset + size]
                found = decode_entries(chunk, name, coding, type_, shape, bound, self.books)
            except FormatError as error:
                raise FormatError("D13", error.kind, f"{name}, chunk {number}: {error}") from None
            if coding != "flat":
                out += found
            elif columns is None:
                out += found[0]
            else:
                out += [found[0][first : first + columns] for first in range(0, len(found[0]), columns)]
        return out

    def read(self, name: str) -> list[Any]:
        """All rows of an array: numbers, or lists of numbers."""
        type_ = CODINGS[name][1]
        return [
            [number_of(bits, type_) for bits in row] if isinstance(row, list) else number_of(row, type_)
            for row in self.bits(name)
        ]
