"""Read a store in tar shards with nothing but Python's standard library: FORMAT.md sections 6, 17 and 18.

Both ways: by the index, which gives any document without reading others, and tar after tar from beginning to end,
which needs no index. Rules T1 to T9 of section 12 are those of the first, T8 to T15 those of the second.
"""

from __future__ import annotations

import hashlib
import struct
from typing import TYPE_CHECKING, Any

from reference_chunk import FormatError, crc32c, require
from reference_document import DocumentFile
from reference_manifest import (
    INDEX_RECORD_BYTES,
    check_line,
    is_compact,
    is_file_record,
    is_whole,
    parse_object,
    read_codebooks,
    read_manifest,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

INDEX_RECORD = struct.Struct("<IIQQQQIIIIII")
BLOCK = 512


class HashedFile:
    """A file that is read from its beginning to its end, and its sha256 so far."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("rb")
        self.digest = hashlib.sha256()

    def read(self, size: int) -> bytes:
        """Return the next bytes."""
        data = self.file.read(size)
        self.digest.update(data)
        return data


def octal(field: bytes, what: str) -> int:
    """Return a number of a tar header: octal digits, ended by a zero byte or a space."""
    digits = field.rstrip(b"\0 ")
    require(digits.isdigit() and not set(digits) & set(b"89"), "T10", f"{what} of a member is {field!r}")
    return int(digits, 8)


def read_member(file: HashedFile, left: int) -> tuple[str, bytes] | None:
    """Section 17: name and content of the next member of a tar; None at a block of zeros."""
    header = file.read(BLOCK)
    require(len(header) == BLOCK, "T11", f"a tar ends after {len(header)} bytes of a header", "truncated")
    if not any(header):
        return None
    total = sum(header[:148]) + 8 * ord(" ") + sum(header[156:])
    require(header[257:265] == b"ustar\x0000" and header[156:157] == b"0", "T10", "not a plain file in a USTAR header")
    require(octal(header[148:156], "checksum") == total, "T10", "the checksum of a tar header")
    size = octal(header[124:136], "size")
    padded = -(-size // BLOCK) * BLOCK
    require(padded <= left - BLOCK, "T11", f"a member of {size} bytes, {left - BLOCK} are left", "truncated")
    name, prefix = (header[a:b].rstrip(b"\0").decode("latin-1") for a, b in ((0, 100), (345, 500)))
    return f"{prefix}/{name}" if prefix else name, file.read(padded)[:size]


class TarStore:
    """A complete store in tar shards, checked as it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest = m = read_manifest(path)
        values = "logprobs" if m["values"] == "logprob" else "logits"
        optional = ["counts"] * m["has_counts"] + ["lse_T"] * bool(m["temperatures"])
        self.row_arrays = ["tokens", "ids", values, "lse", "label_logprob", "mask", *optional]
        self.books = read_codebooks(path, m) if is_compact(m) else None
        self.shards = m["shard_table"]["bytes"] // max(1, m["record_bytes"])

    def piece(self, name: str, start: int, size: int, rules: tuple[str, str, str], expected: int) -> bytes:
        """Return bytes of a file; ``rules`` for a missing or shorter one, a longer one, and bytes outside of it."""
        path = self.path / name
        require(path.is_file(), rules[0], f"there is no {name}", "truncated")
        found = path.stat().st_size
        require(found >= expected, rules[0], f"{name} has {found} of {expected} bytes", "truncated")
        require(found == expected, rules[1], f"{name} has {found} bytes, expected {expected}")
        require(size > 0 and start + size <= found, rules[2], f"{name} has {found} bytes, asked for {start} + {size}")
        with path.open("rb") as file:
            file.seek(start)
            return file.read(size)

    def record(self, shard: int) -> dict[str, Any]:
        """Section 6: what the shard table says of a tar."""
        size = self.manifest["record_bytes"]
        path = self.path / "shards.jsonl"
        require(path.is_file(), "S10", "there is no shards.jsonl", "truncated")
        with path.open("rb") as file:
            file.seek(shard * size)
            line = file.read(size)
        require(len(line) == size, "S10", f"shards.jsonl ends before record {shard} does", "truncated")
        record = parse_object(line, "S11", f"record {shard}")
        numbers = [record.get(key) for key in ("shard", "first_row", "rows", "first_document", "documents")]
        require(all(map(is_whole, numbers)) and numbers[0] == shard, "S11", f"record {shard} has {numbers}")
        files = record.get("files")
        file = files.get("tar") if isinstance(files, dict) else None
        require(is_file_record(file), "S11", f"record {shard} has no sound word on its tar")
        return {**record, "file": file}

    def check_identity(self, file: DocumentFile, document: int, first_row: int, rows: int) -> None:
        """Rule T9."""
        m, h = self.manifest, file.header
        found = (h.store_id, h.document, h.first_row, h.rows, h.slots, h.vocab_size, h.temperatures, list(file.arrays))
        expected = (
            m["store_id"], document, first_row, rows, m["slots"], m["vocab_size"], len(m["temperatures"]),
            self.row_arrays,
        )  # fmt: skip
        require(found == expected, "T9", f"the file of document {document} says {found}, expected {expected}")

    def document_file(self, data: bytes, document: int) -> DocumentFile:
        """Rule T8."""
        try:
            return DocumentFile(data, self.books)
        except FormatError as error:
            raise FormatError("T8", error.kind, f"document {document}: {error}") from None

    @staticmethod
    def read_array(file: DocumentFile, name: str) -> list[Any]:
        """Rule T8, of chunks."""
        try:
            return file.read(name)
        except FormatError as error:
            raise FormatError("T8", error.kind, f"document {file.header.document}: {error}") from None

    # --- by the index ----------------------------------------------------------------------------------------------

    def index(self, document: int) -> dict[str, int]:
        """Section 18: a record of ``documents.idx``."""
        size, m = INDEX_RECORD_BYTES, self.manifest
        raw = self.piece("documents.idx", document * size, size, ("T1", "T2", "T1"), m["index_file"]["bytes"])
        *fields, _, crc = INDEX_RECORD.unpack(raw)
        require(crc == crc32c(raw[:-4]), "T3", f"the checksum of index record {document}")
        keys = "shard rows first_row offset size line_offset line_size json_size crc json_crc"
        record = dict(zip(keys.split(), fields, strict=True))
        end = record["first_row"] + record["rows"]
        sound = record["rows"] > 0 and end <= m["rows"] and (end == m["rows"]) == (document == m["documents"] - 1)
        require(sound, "T4", f"document {document} has rows {record['first_row']}:{end} of {m['rows']}")
        return record

    def document(self, number: int) -> dict[str, Any]:
        """Sections 5 and 18: the line of a document, and ``first_row``."""
        index = self.index(number)
        size = self.manifest["documents_file"]["bytes"]
        require((self.path / "documents.jsonl").is_file(), "S22", "there is no documents.jsonl", "truncated")
        rules = ("T1", "T2", "T5")
        line = self.piece("documents.jsonl", index["line_offset"], index["line_size"], rules, size)
        return {**check_line(line, number, index["rows"]), "first_row": index["first_row"]}

    def open_document(self, number: int) -> DocumentFile:
        """Return a document file, found by the index."""
        index = self.index(number)
        shard = index["shard"]
        require(shard < self.shards, "T6", f"document {number} is in shard {shard} of {self.shards}")
        size = self.record(shard)["file"]["bytes"]
        data = self.piece(f"shard-{shard:06d}.tar", index["offset"], index["size"], ("S12", "S13", "T7"), size)
        file = self.document_file(data, number)
        self.check_identity(file, number, index["first_row"], index["rows"])
        return file

    def read(self, name: str, start: int = 0, stop: int | None = None) -> list[Any]:
        """Rows ``start:stop`` of an array: numbers, or lists of numbers."""
        stop = self.manifest["rows"] if stop is None else stop
        rows: list[Any] = []
        following = 0
        for number in range(self.manifest["documents"]):
            index = self.index(number)
            first = index["first_row"]
            require(first == following, "T4", f"document {number} does not follow the one before")
            following += index["rows"]
            if start < following and first < stop:
                found = self.read_array(self.open_document(number), name)
                rows += found[max(start - first, 0) : stop - first]
        return rows

    # --- tar after tar ---------------------------------------------------------------------------------------------

    def read_tar(self, shard: int) -> Iterator[tuple[dict[str, Any], DocumentFile]]:
        """Section 17: what the ``.json`` members of a tar say, and the document files. No index is used."""
        record = self.record(shard)
        path = self.path / f"shard-{shard:06d}.tar"
        size = record["file"]["bytes"]
        require(path.is_file(), "S12", f"there is no {path}", "truncated")
        left = path.stat().st_size
        require(left >= size, "S12", f"{path} has {left} of {size} bytes", "truncated")
        require(left == size, "S13", f"{path} has {left} bytes, expected {size}")
        file = HashedFile(path)
        row = record["first_row"]
        with file.file:
            for document in range(record["first_document"], record["first_document"] + record["documents"]):
                contents = []
                for suffix in ("json", "lgt"):
                    member = read_member(file, left)
                    require(member is not None, "T11", f"{path} ends before document {document}", "truncated")
                    name, content = member or ("", b"")
                    require(name == f"{document:010d}.{suffix}", "T12", f"member {name} stands where {document} should")
                    left -= BLOCK + -(-len(content) // BLOCK) * BLOCK
                    contents.append(content)
                about, sample = self.check_sample(document, row, *contents)
                yield about, sample
                row += sample.header.rows
            end = file.read(2 * BLOCK + 1)
            require(end == bytes(2 * BLOCK), "T13", f"{path} does not end with two blocks of zeros")
            require(row == record["first_row"] + record["rows"], "T13", f"{path} has rows up to {row}")
            require(file.digest.hexdigest() == record["file"]["sha256"], "T14", f"sha256 of {path}")

    def check_sample(self, document: int, row: int, about: bytes, data: bytes) -> tuple[dict[str, Any], DocumentFile]:
        """Rules T8, T9 and T15 of a document read out of a tar."""
        file = self.document_file(data, document)
        self.check_identity(file, document, row, file.header.rows)
        try:
            said = check_line(about, document, file.header.rows)
        except FormatError as error:
            raise FormatError("T15", error.kind, str(error)) from None
        place = (said.pop("document", None), said.get("first_row"))
        require(place == (document, row), "T15", f"the .json of document {document} says document, first row {place}")
        return said, file

    def tars(self) -> Iterator[tuple[dict[str, Any], DocumentFile]]:
        """Every document of the store, tar after tar."""
        document = row = 0
        for shard in range(self.shards):
            record = self.record(shard)
            first = (record["first_document"], record["first_row"])
            require(first == (document, row), "S11", f"shard {shard} begins with document, row {first}")
            document, row = document + record["documents"], row + record["rows"]
            yield from self.read_tar(shard)
        total = (self.manifest["documents"], self.manifest["rows"])
        require((document, row) == total, "S11", f"the shards hold documents, rows {(document, row)}, not {total}")
