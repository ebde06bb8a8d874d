"""What stores of both containers have in common, in the order of FORMAT.md: sections 2 to 5.

Standard library only. See ``reference_decoder.py``.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from reference_chunk import FormatError, ceil_div, require

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
    known = isinstance(codec, dict) and (codec.get("name"), codec.get("version")) == ("logitstore.exact", 1)
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
