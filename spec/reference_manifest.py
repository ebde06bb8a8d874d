"""What stores of both containers have in common, in the order of FORMAT.md: sections 2 to 5.

Standard library only. See ``reference_decoder.py``.
"""

from __future__ import annotations

import hashlib
import json
import sys
from typing import TYPE_CHECKING, Any

from reference_chunk import FormatError, ceil_div, decode_chunk, require
from reference_compact import IdBook, ValueBook, check_compact, decode_compact, read_codebook

if TYPE_CHECKING:
    from pathlib import Path

MANIFEST_KEYS: dict[str, tuple[type, ...]] = {
    "store_id": (str,), "complete": (bool,), "vocab_size": (int,), "padded_vocab_size": (int,), "slots": (int,),
    "values": (str,), "rows_per_shard": (int,), "selection": (dict,), "temperatures": (list,), "has_counts": (bool,),
    "rows": (int,), "documents": (int,), "entries": (int,), "record_bytes": (int,), "bytes_by_field": (dict,),
    "documents_file": (dict, type(None)), "shard_table": (dict, type(None)), "teacher": (dict,), "tokenizer": (dict,),
    "corpus": (dict,), "build": (dict,), "versions": (dict,),
}  # fmt: skip
TAR_KEYS: dict[str, tuple[type, ...]] = {"shard_bytes": (int,), "index_file": (dict, type(None))}
"""Keys that a manifest has besides where ``container`` is ``"webdataset"``."""
COMPACT = ("logitstore.compact", 2)
DOCUMENT_SHARD = 1 << 16
INDEX_RECORD_BYTES = 64


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


def read_manifest(path: Path) -> dict[str, Any]:
    """Section 4: the checked manifest of a complete store."""
    manifest = path / "manifest.json"
    require(not manifest.is_file() or manifest.stat().st_size <= 16 << 20, "S2", "the manifest is above 16 MiB")
    m = parse_object(read_file(manifest, "S1"), "S2", "the manifest")
    check_manifest(m)
    return m


def check_manifest(m: dict[str, Any]) -> None:
    """Section 4: rules S3 to S7, and S25."""
    version = m.get("format_version")
    parts = version.split(".") if isinstance(version, str) else []
    sound = len(parts) == 2 and all(p.isascii() and p.isdecimal() and len(p) <= 9 for p in parts)
    require(m.get("format") == "logitstore" and sound, "S3", f"{m.get('format')!r}, version {version!r}")
    require(int(parts[0]) <= 1, "S4", f"format version {version}", "unsupported")
    codec = m.get("codec")
    require(isinstance(codec, dict), "S6", "codec is an object")
    version = codec.get("version") if isinstance(codec, dict) else None
    known = type(version) is int and (codec.get("name"), version) in (("logitstore.exact", 1), COMPACT)
    require(known, "S5", f"codec {codec}", "unsupported")
    container = m.get("container", "zarr")
    require(isinstance(container, str), "S6", f"container is {container!r}")
    require(container in ("zarr", "webdataset"), "S25", f"container {container!r}", "unsupported")
    tars = container == "webdataset"
    for key, types in (MANIFEST_KEYS | (TAR_KEYS if tars else {})).items():
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
    if is_compact(m):
        check_codec(m)
    if m["complete"]:
        for key in ("documents_file", "shard_table", *(["index_file"] if tars else [])):
            require(m[key] is not None, "S6", f"a complete store has a {key}")
        size = m["shard_table"]["bytes"]
        if tars:
            whole = size == 0 if m["rows"] == 0 else size > 0 < m["record_bytes"] and size % m["record_bytes"] == 0
            require(whole, "S6", f"shards.jsonl has {size} bytes, which is no number of lines")
            index = m["index_file"]["bytes"]
            require(index == INDEX_RECORD_BYTES * m["documents"], "S6", f"documents.idx has {index} bytes")
        else:
            lines = ceil_div(m["rows"], m["rows_per_shard"]) + ceil_div(m["documents"] + 1, DOCUMENT_SHARD)
            require(size == lines * m["record_bytes"], "S6", f"shards.jsonl has {lines} lines")
    require(m["complete"], "S7", "the build was not finished", "truncated")


def is_compact(m: dict[str, Any]) -> bool:
    """Whether a store is of the compact codec."""
    return bool(m["codec"]["name"] == COMPACT[0])


def check_codec(m: dict[str, Any]) -> None:
    """Section 4: what ``codec`` has with the compact codec."""
    codec = m["codec"]
    bounds = [codec.get("max_kl", ""), codec.get("max_error", "")]
    require(all(bound is None or is_amount(bound) for bound in bounds), "S6", f"bounds {bounds}")
    require(None in bounds and (bounds[0] is None or m["values"] == "logprob"), "S6", f"bounds {bounds}")
    require(all(is_whole(codec.get(key)) for key in ("training_rows", "retrain_rows")), "S6", f"rows of {codec}")
    arrays = {"ids", "logprobs" if m["values"] == "logprob" else "logits"} | ({"counts"} if m["has_counts"] else set())
    sets = codec.get("codebooks")
    require(isinstance(sets, list), "S6", "codebooks is a list")
    last = -1
    for number, books in enumerate(sets):
        sound = isinstance(books, dict) and is_whole(books.get("first_row")) and isinstance(books.get("files"), dict)
        require(sound and books["first_row"] > last, "S6", f"set {number} of codebooks: {books}")
        last = books["first_row"]
        require(number > 0 or last == 0, "S6", f"the first set begins with row {last}")
        require(all(is_file_record(file) for file in books["files"].values()), "S6", f"files of set {number}")
        require(set(books["files"]) in (set(), arrays), "S6", f"set {number} has {set(books['files'])}")
    require(bool(sets) or not (m["complete"] and m["rows"]), "S6", "no codebooks for row 0")
    loss = codec.get("loss", "")
    if loss is not None:
        require(isinstance(loss, dict), "S6", f"loss is {loss!r}")
        whole = all(is_whole(loss.get(key)) for key in ("rows", "entries"))
        numbers = [loss.get(key, "") for key in ("kl_mean", "kl_p99", "kl_worst")]
        errors = [loss.get(key) for key in ("error_mean", "error_worst")]
        sound = whole and all(n is None or is_amount(n) for n in numbers) and all(map(is_amount, errors))
        require(sound, "S6", f"loss is {loss}")


def is_amount(value: Any) -> bool:
    """Whether a JSON value is a number that is not negative."""
    return type(value) in (int, float) and 0 <= value <= sys.float_info.max


def read_codebooks(path: Path, m: dict[str, Any]) -> dict[tuple[str, bytes], IdBook | ValueBook]:
    """Section 4: every codebook of a store, by array and by the digest that chunks give."""
    found: dict[tuple[str, bytes], IdBook | ValueBook] = {}
    for books in m["codec"]["codebooks"] if is_compact(m) else []:
        for array, file in books["files"].items():
            name = f"codebooks/{file['sha256'][:32]}.lgb"
            data = read_file(path / name, "S26")
            require(len(data) >= file["bytes"], "S26", f"{name} has {len(data)} bytes", "truncated")
            digest = hashlib.sha256(data)
            require(len(data) == file["bytes"] and digest.hexdigest() == file["sha256"], "S27", f"{name} is another")
            try:
                book = read_codebook(data)
            except FormatError as error:
                raise FormatError("S27", "corrupt", f"{name}: {error}") from None
            kind = (IdBook, m["vocab_size"]) if array == "ids" else (ValueBook, 8 if array == "counts" else 16)
            require((type(book), book.size) == kind, "S27", f"{name} is not a codebook for {array}")
            found[array, digest.digest()[:16]] = book
    return found


def decode_entries(
    data: bytes, name: str, coding: str, type_: str, shape: tuple[int, ...], bound: int, books: Any
) -> list[list[int]]:
    """Sections 4, 7 and 9: the bits of a chunk, of whichever codec it is."""
    if books is None or data[:3] != b"LGC" or coding == "flat":
        return decode_chunk(data, coding, type_, shape, bound=bound)
    book = books.get((name, data[20:36]))
    if book is None:
        check_compact(data)
        raise FormatError("S28", "corrupt", f"the chunk names codebook {data[20:36].hex()}, which is none of {name}")
    return decode_compact(data, book, (shape[0], shape[1]))


def check_line(line: bytes, number: int, rows: int) -> dict[str, Any]:
    """Section 5: rules S23 and S24 of the line of a document that has so many rows."""
    about = parse_object(line, "S23", f"the line of document {number}")
    require(isinstance(about.get("key"), str), "S23", f"document {number} has no key")
    require(is_whole(about.get("rows")) and about["rows"] > 0, "S23", f"document {number} has no rows")
    parent = about.get("parent", {"key": "", "first_token": 0})
    sound = isinstance(parent, dict) and isinstance(parent.get("key"), str) and is_whole(parent.get("first_token"))
    require(sound and isinstance(about.get("metadata", {}), dict), "S23", f"document {number}: parent or metadata")
    require(about["rows"] == rows, "S24", f"document {number} has {rows} rows, its line says {about['rows']}")
    return about
