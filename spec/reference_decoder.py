"""Read a logitstore with nothing but Python's standard library, in the order of FORMAT.md.

Slow and plain on purpose: a second opinion on what the bytes mean. It checks every rule of FORMAT.md section 12; the
rule that was broken is in the error. Beside this file lie ``reference_chunk.py`` (section 9), ``reference_compact.py``
(COMPACT.md), ``reference_manifest.py`` (sections 2 to 5), ``reference_document.py`` (section 16) and
``reference_tars.py`` (sections 17 and 18).

    python spec/reference_decoder.py STORE [--rows a:b | --sequential]

prints a store's documents and rows as JSON, one object per line. With ``--sequential`` tar shards are read from
beginning to end, without the index.
"""

from __future__ import annotations

import argparse
import json
import math
import struct
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reference_chunk import FormatError, ceil_div, crc32c, decode_chunk, number_of, require
from reference_document import DocumentFile
from reference_manifest import (
    COMPACT,
    DOCUMENT_SHARD,
    check_line,
    check_manifest,
    decode_entries,
    is_compact,
    is_file_record,
    parse_object,
    read_codebooks,
    read_file,
    read_manifest,
)
from reference_tars import TarStore

__all__ = [
    "DocumentFile", "FormatError", "Store", "TarStore", "check_manifest", "crc32c", "decode_chunk", "number_of",
    "open_store",
]  # fmt: skip

# --- sections 6 to 8: a Zarr store ---------------------------------------------------------------------------------

LITTLE = {"name": "bytes", "configuration": {"endian": "little"}}


@dataclass(frozen=True)
class Array:
    """A line of the first table of section 7."""

    name: str
    type: str
    columns: int | None
    coding: str
    fill: Any
    chunk_rows: int
    total: int
    shard_rows: int

    def metadata(self, vocab_size: int, compact: bool) -> dict[str, Any]:
        """``zarr.json``."""
        tail = [] if self.columns is None else [self.columns]
        configuration: dict[str, Any] = {"kind": self.coding, "version": 1}
        if self.coding == "ids":
            configuration["vocab_size"] = vocab_size
        codec = "logitstore.exact"
        if compact and self.coding in ("ids", "values"):
            codec, configuration["version"] = COMPACT
        named: list[Any] = [{"name": codec, "configuration": configuration}]
        sharding = {
            "chunk_shape": [self.chunk_rows, *tail],
            "codecs": [LITTLE, {"name": "crc32c"}] if self.coding == "raw" else named,
            "index_codecs": [LITTLE, {"name": "crc32c"}],
            "index_location": "end",
        }
        grid = {"name": "regular", "configuration": {"chunk_shape": [self.shard_rows, *tail]}}
        return {
            "zarr_format": 3,
            "node_type": "array",
            "shape": [self.total, *tail],
            "data_type": self.type,
            "chunk_grid": grid,
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
            "fill_value": self.fill,
            "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
            "attributes": {},
            "dimension_names": ["document" if self.coding == "raw" else "row", "slot"][: 1 + len(tail)],
        }


class Store:
    """A complete Zarr store, checked as it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest = m = read_manifest(path)
        self.arrays = {array.name: array for array in arrays_of(m)}
        self.row_arrays = [name for name, array in self.arrays.items() if array.coding != "raw"]
        for array in self.arrays.values():
            data = read_file(path / array.name / "zarr.json", "S8")
            found = parse_object(data, "S9", f"{array.name}/zarr.json")
            found["attributes"] = {}
            if found.get("storage_transformers") == []:
                del found["storage_transformers"]
            require(found == array.metadata(m["vocab_size"], is_compact(m)), "S9", f"{array.name}/zarr.json: {found}")
        self.row_shards = ceil_div(m["rows"], m["rows_per_shard"])
        self.table = read_file(path / "shards.jsonl", "S10")
        self.books = read_codebooks(path, m) if is_compact(m) else None

    def record(self, array: Array, shard: int) -> dict[str, Any]:
        """Section 6: what the shard table says of a shard's file."""
        number = shard + (self.row_shards if array.coding == "raw" else 0)
        size = self.manifest["record_bytes"]
        line = self.table[number * size : (number + 1) * size]
        require(len(line) == size, "S10", f"shards.jsonl ends before record {number} does", "truncated")
        require(line[-1:] == b"\n", "S11", f"record {number} does not end with a line feed")
        record = parse_object(line, "S11", f"record {number}")
        first = shard * array.shard_rows
        expected = (shard, first, min(array.shard_rows, array.total - first))
        found = (record.get("shard"), record.get("first_row"), record.get("rows"))
        require(found == expected, "S11", f"record {number} has shard, first row, rows {found}, expected {expected}")
        files = record.get("files")
        require(isinstance(files, dict), "S11", f"record {number} has no files")
        file = files.get(array.name) if isinstance(files, dict) else None
        require(is_file_record(file), "S11", f"record {number} has no sound word on {array.name}")
        return {**record, "file": file}

    def read(self, name: str, start: int = 0, stop: int | None = None) -> list[Any]:
        """Rows ``start:stop`` of an array: numbers, or lists of numbers."""
        array = self.arrays[name]
        stop = array.total if stop is None else stop
        rows: list[Any] = []
        for shard in range(start // array.shard_rows, ceil_div(stop, array.shard_rows)):
            first = shard * array.shard_rows
            rows += self.read_shard(array, shard, max(start - first, 0), min(stop - first, array.shard_rows))
        return rows

    def read_shard(self, array: Array, shard: int, start: int, stop: int) -> list[Any]:
        """Section 8: rows of one shard file, counted from its first."""
        record = self.record(array, shard)
        path = self.path / array.name / (f"c.{shard}" + ("" if array.columns is None else ".0"))
        size = record["file"]["bytes"]
        require(not path.is_file() or path.stat().st_size <= size, "S13", f"{path} is longer than {size} bytes")
        data = read_file(path, "S12")
        require(len(data) == size, "S12", f"{path} has {len(data)} of {size} bytes", "truncated")
        require(size >= 64, "S12", f"{path} is shorter than its header", "truncated")
        magic, store, name, number, rows, first_row, crc = struct.unpack_from("<8s16s16sIIQI", data)
        require(magic == b"LGSHARD1" and crc == crc32c(data[:56]), "S14", f"{path}: shard header")
        found = (store.hex(), name.rstrip(b"\0"), number, rows, first_row)
        expected = (self.manifest["store_id"], array.name.encode(), shard, record["rows"], record["first_row"])
        require(found == expected, "S15", f"{path} says {found}, expected {expected}")

        index = self.read_index(path, data, array.shard_rows // array.chunk_rows, ceil_div(rows, array.chunk_rows))
        out: list[Any] = []
        for chunk in range(start // array.chunk_rows, ceil_div(stop, array.chunk_rows)):
            offset, length = index[chunk]
            row = first_row + chunk * array.chunk_rows
            frame, payload = data[offset - 32 : offset], data[offset : offset + length]
            fields = struct.unpack("<4sIIIQII", frame)
            require(fields[0] == b"LGFR" and fields[6] == crc32c(frame[:28]), "S18", f"{path}: frame {chunk}")
            identity = (shard, chunk, length, row)
            require(fields[1:5] == identity, "S18", f"{path}: frame {chunk} says {fields[1:5]}, expected {identity}")
            require(fields[5] == crc32c(payload), "S19", f"{path}: checksum of chunk {chunk}")
            low = max(start - chunk * array.chunk_rows, 0)
            out += self.decode(array, payload)[low : stop - chunk * array.chunk_rows]
        return out

    def read_index(self, path: Path, data: bytes, chunks: int, used: int) -> list[tuple[int, int]]:
        """Where the chunks of a shard lie."""
        end = len(data) - 16 * chunks - 4
        require(end >= 64, "S12", f"{path} is shorter than its index", "truncated")
        require(crc32c(data[end:-4]) == int.from_bytes(data[-4:], "little"), "S16", f"{path}: checksum of the index")
        index = list(struct.iter_unpack("<QQ", data[end:-4]))
        require(all(entry == ((1 << 64) - 1,) * 2 for entry in index[used:]), "S17", f"{path}: chunks behind the end")
        inside = all(offset >= 96 and offset + length <= end for offset, length in index[:used])
        require(inside, "S17", f"{path}: the index points outside the frames")
        return [(offset, length) for offset, length in index]

    def decode(self, array: Array, payload: bytes) -> list[Any]:
        """All rows of a chunk, as numbers."""
        if array.coding == "raw":
            require(len(payload) == 8 * array.chunk_rows + 4, "S20", f"{array.name}: {len(payload)} bytes")
            require(crc32c(payload[:-4]) == int.from_bytes(payload[-4:], "little"), "S19", f"{array.name}: checksum")
            return list(struct.unpack(f"<{array.chunk_rows}q", payload[:-4]))
        shape = (array.chunk_rows, *(() if array.columns is None else (array.columns,)))
        bound = self.manifest["vocab_size"] if array.coding == "ids" else 0
        rows = decode_entries(payload, array.name, array.coding, array.type, shape, bound, self.books)
        numbers = [[number_of(bits, array.type) for bits in row] for row in rows]
        if array.coding != "flat":
            return numbers
        width = array.columns
        return numbers[0] if width is None else [numbers[0][i : i + width] for i in range(0, len(numbers[0]), width)]

    def document(self, number: int) -> dict[str, Any]:
        """Sections 5 and 10: the line of a document, and ``first_row``."""
        lines = read_file(self.path / "documents.jsonl", "S22")
        first, last = self.read("doc_lines", number, number + 2)
        require(0 <= first < last <= len(lines), "S24", f"the line of document {number} is bytes {first}:{last}")
        low, high = self.read("doc_offsets", number, number + 2)
        require(0 <= low < high <= self.manifest["rows"], "S24", f"document {number} has rows {low}:{high}")
        return {**check_line(lines[first:last], number, high - low), "first_row": low}


def arrays_of(m: dict[str, Any]) -> list[Array]:
    """Section 7: the arrays that a manifest gives."""
    slots, shard, total = m["slots"], m["rows_per_shard"], m["rows"]
    wide = min(shard, 4096, 1 << max(131072 // slots, 1).bit_length() - 1)
    flat = min(shard, 16384)
    values = "logprobs" if m["values"] == "logprob" else "logits"
    arrays = [
        Array("tokens", "uint32", None, "flat", 0, flat, total, shard),
        Array("ids", "uint32", slots, "ids", 0xFFFFFFFF, wide, total, shard),
        Array(values, "float16", slots, "values", "-Infinity", wide, total, shard),
        Array("lse", "float32", None, "flat", "NaN", flat, total, shard),
        Array("label_logprob", "float32", None, "flat", "NaN", flat, total, shard),
        Array("mask", "uint8", None, "flat", 0, flat, total, shard),
    ]
    if m["has_counts"]:
        arrays.append(Array("counts", "uint8", slots, "values", 0, wide, total, shard))
    if m["temperatures"]:
        arrays.append(Array("lse_T", "float32", len(m["temperatures"]), "flat", "NaN", flat, total, shard))
    documents = m["documents"] + 1
    arrays += [Array(n, "int64", None, "raw", 0, 1024, documents, DOCUMENT_SHARD) for n in ("doc_offsets", "doc_lines")]
    return arrays


def open_store(path: Path) -> Store | TarStore:
    """Open a store of either container."""
    return TarStore(path) if read_manifest(path).get("container") == "webdataset" else Store(path)


def print_rows(first: int, columns: dict[str, list[Any]]) -> None:
    """Print rows of all arrays, numbered from ``first`` on."""
    for row, numbers in enumerate(zip(*columns.values(), strict=True), first):
        print(json.dumps({"row": row, **dict(zip(columns, map(plain_json, numbers), strict=True))}))


def plain_json(value: Any) -> Any:
    """NaN and infinities as strings: JSON has none."""
    if isinstance(value, list):
        return [plain_json(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def main(arguments: list[str] | None = None) -> int:
    """Run the command; 0 if the store is sound, 1 if it is not."""
    parser = argparse.ArgumentParser(description="Print a logitstore as JSON, one object per line.")
    parser.add_argument("store", type=Path)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--rows", metavar="a:b", help="only these rows, and no documents")
    which.add_argument("--sequential", action="store_true", help="read tar shards one after the other, by no index")
    options = parser.parse_args(arguments)
    try:
        store = open_store(options.store)
        total = store.manifest["rows"]
        if options.sequential and isinstance(store, TarStore):
            for number, (about, file) in enumerate(store.tars()):
                print(json.dumps({"document": number, **about}))
                print_rows(about["first_row"], {name: store.read_array(file, name) for name in store.row_arrays})
            return 0
        start, stop = 0, total
        if options.rows is None:
            for number in range(store.manifest["documents"]):
                print(json.dumps({"document": number, **store.document(number)}))
        else:
            first, _, last = options.rows.partition(":")
            if not (first.isdecimal() and last.isdecimal() and int(first) <= int(last) <= total):
                parser.error(f"--rows is a:b within 0:{total}, found {options.rows!r}")
            start, stop = int(first), int(last)
        print_rows(start, {name: store.read(name, start, stop) for name in store.row_arrays})
    except FormatError as error:
        print(f"{options.store}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
