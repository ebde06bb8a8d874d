"""``documents.jsonl`` against the arrays that are derived from it."""

from __future__ import annotations

import hashlib
import json
from array import array
from typing import TYPE_CHECKING, Any

import numpy as np

from logitstore.container.fields import DOCUMENT_FIELDS
from logitstore.container.writer import DOCUMENTS_FILE
from logitstore.errors import LogitStoreError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from logitstore.audit.report import Findings
    from logitstore.container.manifest import Manifest
    from logitstore.reader.shard_cache import ShardCache

__all__ = ["check_documents", "walk_documents"]


def check_documents(path: Path, manifest: Manifest, shards: ShardCache, found: Findings) -> NDArray[np.int64] | None:
    """Check lines, keys and offsets.

    Returns
    -------
    NDArray or None
        ``(D + 1,)`` int64, the row behind each document with a 0 in front, from the lines or else from the arrays;
        None where neither can be trusted.
    """
    walked = walk_documents(path, manifest, found)
    stored = {field.name: _read_all(manifest, shards, field) for field in DOCUMENT_FIELDS}
    if walked is not None:
        for (name, array_found), lines in zip(stored.items(), walked, strict=True):
            if array_found is not None and not np.array_equal(array_found, lines):
                unequal = np.flatnonzero(array_found[: len(lines)] != lines[: len(array_found)])
                at = int(unequal[0]) if len(unequal) else min(len(array_found), len(lines))
                found.error(
                    name, name.replace("_", "-"),
                    f"element {at} is {array_found[at] if at < len(array_found) else 'missing'}, {DOCUMENTS_FILE} "
                    f"gives {lines[at] if at < len(lines) else 'nothing'}",
                )  # fmt: skip
        return walked[0]
    offsets = stored["doc_offsets"]
    if offsets is None:
        return None
    if offsets[0] != 0 or offsets[-1] != manifest.rows or (np.diff(offsets) < 1).any():
        found.error("doc_offsets", "doc-offsets", f"the offsets rise from 0 to {manifest.rows}, the number of rows")
        return None
    return offsets


def walk_documents(
    path: Path, manifest: Manifest, found: Findings
) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    """Read every line; rows and bytes behind each document, or None if a line is broken."""
    rows, lines = array("q", [0]), array("q", [0])
    keys: set[bytes] = set()
    row = byte = 0
    sound = True
    try:
        with (path / DOCUMENTS_FILE).open("rb") as file:
            for number, line in enumerate(file):
                about = _parse(line)
                if about is None:
                    found.error(
                        DOCUMENTS_FILE, "document-line",
                        f"line {number} is an object with a key, a number of rows, and perhaps parent and metadata",
                        row=row,
                    )  # fmt: skip
                    return None
                key = hashlib.blake2b(about["key"].encode("utf-8", "surrogatepass"), digest_size=16).digest()
                if key in keys:
                    found.error(DOCUMENTS_FILE, "document-key", f"the key {about['key']!r} is there twice", row=row)
                keys.add(key)
                row += about["rows"]
                byte += len(line)
                if row > manifest.rows:
                    sound = False
                    break
                rows.append(row)
                lines.append(byte)
    except OSError:
        return None  # the digest has reported it
    if not sound or (row, len(rows) - 1) != (manifest.rows, manifest.documents):
        found.error(
            DOCUMENTS_FILE, "document-total",
            f"the manifest says {manifest.documents} documents with {manifest.rows} rows, the lines give "
            f"{len(rows) - 1} with {row}{' and more' if not sound else ''}",
        )  # fmt: skip
        return None
    return np.frombuffer(rows, np.int64), np.frombuffer(lines, np.int64)


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        about = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(about, dict) or not isinstance(about.get("key"), str):
        return None
    parent = about.get("parent")
    sound = (
        type(about.get("rows")) is int
        and about["rows"] >= 1
        and isinstance(about.get("metadata", {}), dict)
        and (
            parent is None
            or (
                isinstance(parent, dict)
                and isinstance(parent.get("key"), str)
                and type(parent.get("first_token")) is int
                and parent["first_token"] >= 0
            )
        )
    )
    return about if sound else None


def _read_all(manifest: Manifest, shards: ShardCache, field: Any) -> NDArray[np.int64] | None:
    """Return the whole array, or None where a shard is broken, which the shard's own check reports."""
    length, rows_per_shard = manifest.geometry(field)
    parts = []
    try:
        for shard in range(manifest.document_shards):
            rows = min(rows_per_shard, length - shard * rows_per_shard)
            parts.append(shards.get(field, shard).read(0, rows))
    except LogitStoreError:
        return None
    return np.concatenate(parts)
