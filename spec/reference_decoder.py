"""Read a logitstore with nothing but Python's standard library, in the order of FORMAT.md.

Slow and plain on purpose: a second opinion on what the bytes mean. It checks every rule of FORMAT.md section 12; the
rule that was broken is in the error. Chunks are read by ``reference_chunk.py`` beside this file.

    python spec/reference_decoder.py STORE [--rows a:b]

prints a store's documents and rows as JSON, one object per line.
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

__all__ = ["FormatError", "Store", "crc32c", "decode_chunk", "number_of"]

# --- sections 3 to 7: a store --------------------------------------------------------------------------------------

MANIFEST_KEYS: dict[str, tuple[type, ...]] = {
    "store_id": (str,), "complete": (bool,), "vocab_size": (int,), "padded_vocab_size": (int,), "slots": (int,),
    "values": (str,), "rows_per_shard": (int,), "selection": (dict,), "temperatures": (list,), "has_counts": (bool,),
    "rows": (int,), "documents": (int,), "entries": (int,), "record_bytes": (int,), "bytes_by_field": (dict,),
    "documents_file": (dict, type(None)), "shard_table": (dict, type(None)), "teacher": (dict,), "tokenizer": (dict,),
    "corpus": (dict,), "build": (dict,), "versions": (dict,),
}  # fmt: skip
DOCUMENT_SHARD = 1 << 16
LITTLE = {"name": "bytes", "configuration": {"endian": "little"}}


def is_hex(value: Any, digits: int) -> bool:
    """Whether a JSON value is a string of so many hexadecimal digits."""
    return isinstance(value, str) and len(value) == digits and set(value) <= set("0123456789abcdef")


def is_whole(value: Any) -> bool:
    """Whether a JSON value is a whole number."""
    return type(value) is int and 0 <= value < 1 << 63


def is_file_record(value: Any) -> bool:
    """Whether a JSON value gives size and sha256 of a file."""
    return isinstance(value, dict) and is_whole(value.get("bytes")) and is_hex(value.get("sha256"), 64)


def parse_object(data: bytes, rule: str, what: str) -> dict[str, Any]:
    """Parse a JSON object, or say that ``rule`` is broken."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise FormatError(rule, "corrupt", f"{what} is not JSON: {error}") from None
    require(isinstance(value, dict), rule, f"{what} is not an object")
    return dict(value)


def read_file(path: Path, rule: str) -> bytes:
    """Return a file's bytes, or say that ``rule`` is broken."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise FormatError(rule, "truncated", f"there is no {path.name} in {path.parent}") from None


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

    def metadata(self, vocab_size: int) -> dict[str, Any]:
        """``zarr.json``."""
        tail = [] if self.columns is None else [self.columns]
        configuration: dict[str, Any] = {"kind": self.coding, "version": 1}
        if self.coding == "ids":
            configuration["vocab_size"] = vocab_size
        exact: list[Any] = [{"name": "logitstore.exact", "configuration": configuration}]
        sharding = {
            "chunk_shape": [self.chunk_rows, *tail],
            "codecs": [LITTLE, {"name": "crc32c"}] if self.coding == "raw" else exact,
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
    """A complete store, checked as it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        manifest = path / "manifest.json"
        require(not manifest.is_file() or manifest.stat().st_size <= 16 << 20, "S2", "the manifest is above 16 MiB")
        self.manifest = m = parse_object(read_file(manifest, "S1"), "S2", "the manifest")
        check_manifest(m)
        self.arrays = {array.name: array for array in arrays_of(m)}
        for array in self.arrays.values():
            data = read_file(path / array.name / "zarr.json", "S8")
            found = parse_object(data, "S9", f"{array.name}/zarr.json")
            found["attributes"] = {}
            if found.get("storage_transformers") == []:
                del found["storage_transformers"]
            require(found == array.metadata(m["vocab_size"]), "S9", f"{array.name}/zarr.json: {found}")
        self.row_shards = ceil_div(m["rows"], m["rows_per_shard"])
        self.table = read_file(path / "shards.jsonl", "S10")

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
        rows = decode_chunk(payload, array.coding, array.type, shape, bound=bound)
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
        about = parse_object(lines[first:last], "S23", f"the line of document {number}")
        require(isinstance(about.get("key"), str), "S23", f"document {number} has no key")
        require(is_whole(about.get("rows")) and about["rows"] > 0, "S23", f"document {number} has no rows")
        parent = about.get("parent", {"key": "", "first_token": 0})
        sound = isinstance(parent, dict) and isinstance(parent.get("key"), str) and is_whole(parent.get("first_token"))
        require(sound and isinstance(about.get("metadata", {}), dict), "S23", f"document {number}: parent or metadata")
        low, high = self.read("doc_offsets", number, number + 2)
        require(0 <= low < high <= self.manifest["rows"], "S24", f"document {number} has rows {low}:{high}")
        require(about["rows"] == high - low, "S24", f"document {number} has {high - low} rows, its line says otherwise")
        return {**about, "first_row": low}


def check_manifest(m: dict[str, Any]) -> None:
    """Section 4: rules S3 to S7."""
    version = m.get("format_version")
    parts = version.split(".") if isinstance(version, str) else []
    sound = len(parts) == 2 and all(p.isascii() and p.isdecimal() and len(p) <= 9 for p in parts)
    require(m.get("format") == "logitstore" and sound, "S3", f"{m.get('format')!r}, version {version!r}")
    require(int(parts[0]) <= 1, "S4", f"format version {version}", "unsupported")
    codec = m.get("codec")
    require(isinstance(codec, dict), "S6", "codec is an object")
    known = isinstance(codec, dict) and (codec.get("name"), codec.get("version")) == ("logitstore.exact", 1)
    require(known, "S5", f"codec {codec}", "unsupported")
    for key, types in MANIFEST_KEYS.items():
        require(key in m and type(m[key]) in types, "S6", f"{key} is {m.get(key)!r}")
        require(types != (int,) or is_whole(m[key]), "S6", f"{key} is {m[key]!r}")
        require(types[0] is not dict or len(types) == 1 or m[key] is None or is_file_record(m[key]), "S6", key)
    limits = {
        "store_id": is_hex(m["store_id"], 32),
        "vocab_size": 1 <= m["vocab_size"] <= 1 << 31,
        "padded_vocab_size": m["padded_vocab_size"] >= m["vocab_size"],
        "slots": 1 <= m["slots"] <= min(m["vocab_size"], (1 << 31) - 1),
        "values": m["values"] in ("logprob", "logit"),
        "rows_per_shard": 1 <= m["rows_per_shard"] <= 1 << 30 and m["rows_per_shard"].bit_count() == 1,
        "temperatures": all(type(t) in (int, float) and 0 < t <= sys.float_info.max for t in m["temperatures"]),
        "documents": m["documents"] <= m["rows"],
        "entries": m["entries"] <= m["rows"] * m["slots"],
        "record_bytes": m["record_bytes"] <= 1 << 16,
        "bytes_by_field": all(is_whole(size) for size in m["bytes_by_field"].values()),
        "versions": all(isinstance(version, str) for version in m["versions"].values()),
    }
    for key, within in limits.items():
        require(within, "S6", f"{key} is {m[key]!r}")
    if m["complete"]:
        for key in ("documents_file", "shard_table"):
            require(m[key] is not None, "S6", f"a complete store has a {key}")
        lines = ceil_div(m["rows"], m["rows_per_shard"]) + ceil_div(m["documents"] + 1, DOCUMENT_SHARD)
        require(m["shard_table"]["bytes"] == lines * m["record_bytes"], "S6", f"shards.jsonl has {lines} lines")
    require(m["complete"], "S7", "the build was not finished", "truncated")


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


def plain_json(value: Any) -> Any:
    """NaN and infinities as strings: JSON has none."""
    if isinstance(value, list):
        return [plain_json(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def main(arguments: list[str] | None = None) -> int:
    """Run the command; 0 if the store is sound, 1 if it is not."""
    parser = argparse.ArgumentParser(description="Print a logitstore as JSON, one object per line.")
    parser.add_argument("store", type=Path)
    parser.add_argument("--rows", metavar="a:b", help="only these rows, and no documents")
    options = parser.parse_args(arguments)
    try:
        store = Store(options.store)
        total = store.manifest["rows"]
        start, stop = 0, total
        if options.rows is None:
            for number in range(store.manifest["documents"]):
                print(json.dumps({"document": number, **store.document(number)}))
        else:
            first, _, last = options.rows.partition(":")
            if not (first.isdecimal() and last.isdecimal() and int(first) <= int(last) <= total):
                parser.error(f"--rows is a:b within 0:{total}, found {options.rows!r}")
            start, stop = int(first), int(last)
        columns = {name: store.read(name, start, stop) for name, a in store.arrays.items() if a.coding != "raw"}
        for row in range(start, stop):
            print(json.dumps({"row": row, **{name: plain_json(rows[row - start]) for name, rows in columns.items()}}))
    except FormatError as error:
        print(f"{options.store}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
