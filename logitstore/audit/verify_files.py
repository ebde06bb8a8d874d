"""The files beside the shards: Zarr metadata, the digests the manifest gives, and files that do not belong."""

from __future__ import annotations

import hashlib
import json
import re
from typing import TYPE_CHECKING, Any

from logitstore import layout
from logitstore.audit.report import problem_of
from logitstore.container.codebooks import StoreBooks
from logitstore.container.codec_record import codebook_name
from logitstore.container.fields import DOCUMENT_FIELDS, group_metadata, metadata_differences
from logitstore.container.files import LocalFiles
from logitstore.container.writer import DOCUMENTS_FILE
from logitstore.errors import LogitStoreError

if TYPE_CHECKING:
    from pathlib import Path

    from logitstore.audit.report import Findings
    from logitstore.container.file_record import FileRecord
    from logitstore.container.manifest import Manifest

__all__ = ["KNOWN_FILES", "check_codebooks", "check_digest", "check_files", "note_strangers"]

KNOWN_FILES = {layout.MANIFEST_FILE, layout.SHARD_TABLE_FILE, layout.BUILD_RECORD_FILE, DOCUMENTS_FILE}
"""Files of a store in either container."""
_LISTED = 20


def check_files(path: Path, manifest: Manifest, found: Findings) -> None:
    """Check everything but the shards themselves."""
    check_digest(path, DOCUMENTS_FILE, manifest.documents_file, found)
    check_digest(path, layout.SHARD_TABLE_FILE, manifest.shard_table, found)
    check_codebooks(path, manifest, found)
    _check_group(path, manifest, found)
    for field in (*manifest.row_fields, *DOCUMENT_FIELDS):
        name = f"{field.name}/zarr.json"
        metadata = _read_json(path, name, found)
        if metadata is None:
            continue
        for key, value, expected in metadata_differences(metadata, field, *manifest.geometry(field)):
            found.error(name, "array-metadata", f"the array's {key} is {value}, the manifest gives {expected}")
    _note_strangers(path, manifest, found)


def check_codebooks(path: Path, manifest: Manifest, found: Findings) -> None:
    """Check that every codebook is there and sound, and note files beside them."""
    source = StoreBooks(LocalFiles(path), manifest)
    for books in manifest.codec.codebooks:
        for array, file in books.files.items():
            try:
                source.book(array, file)
            except LogitStoreError as error:
                found.add(problem_of(error, codebook_name(file), "codebook"))
    folder = path / layout.CODEBOOK_FOLDER
    entries = folder.iterdir() if folder.is_dir() else ()
    names = [f"{layout.CODEBOOK_FOLDER}/{entry.name}" for entry in entries]
    note_strangers([name for name in names if name not in manifest.codec.files], found)


def check_digest(path: Path, name: str, record: FileRecord | None, found: Findings) -> None:
    """Compare a file with its size and sha256 in the manifest."""
    assert record is not None  # the manifest says complete, which includes this
    rule = name.rsplit(".", maxsplit=1)[0] if name.endswith(".jsonl") else "index"
    try:
        with (path / name).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            size = file.tell()
    except OSError as error:
        found.error(name, f"{rule}-digest", f"the file cannot be read: {error.strerror}")
        return
    if (size, digest) != (record.bytes, record.sha256):
        found.error(
            name, f"{rule}-digest",
            f"the manifest says {record.bytes} bytes with sha256 {record.sha256}, the file has {size} with {digest}",
        )  # fmt: skip


def _check_group(path: Path, manifest: Manifest, found: Findings) -> None:
    group = _read_json(path, "zarr.json", found)
    if group is None:
        return
    expected = group_metadata({"logitstore": {"manifest": layout.MANIFEST_FILE, "store_id": manifest.store_id}})
    found_attributes = group.get("attributes")
    # People may add attributes of their own.
    ours = found_attributes.get("logitstore") if isinstance(found_attributes, dict) else None
    if {**group, "attributes": {"logitstore": ours}} != expected:
        found.error("zarr.json", "group-metadata", f"the group's metadata is {expected}, found {group}")


def _read_json(path: Path, name: str, found: Findings) -> dict[str, Any] | None:
    rule = "array-metadata" if "/" in name else "group-metadata"
    try:
        content = json.loads((path / name).read_bytes())
    except OSError as error:
        found.error(name, rule, f"the metadata cannot be read: {error.strerror}")
        return None
    except (ValueError, RecursionError) as error:
        found.error(name, rule, f"the metadata is not JSON: {error}")
        return None
    if not isinstance(content, dict):
        found.error(name, rule, "the metadata is an object")
        return None
    return content


def _note_strangers(path: Path, manifest: Manifest, found: Findings) -> None:
    """Note files that nothing speaks of. They harm nobody, but they are not covered by any checksum."""
    shards = {field.name: manifest.row_shards for field in manifest.row_fields}
    shards |= {field.name: manifest.document_shards for field in DOCUMENT_FIELDS}
    known = {*KNOWN_FILES, *shards, "zarr.json", layout.CODEBOOK_FOLDER}
    strangers = [entry.name for entry in path.iterdir() if entry.name not in known]
    for field in (*manifest.row_fields, *DOCUMENT_FIELDS):
        directory = path / field.name
        suffix = r"" if field.columns is None else r"\.0"
        pattern = re.compile(r"c\.(0|[1-9]\d*)" + suffix)
        for entry in directory.iterdir() if directory.is_dir() else ():
            match = pattern.fullmatch(entry.name)
            if entry.name != "zarr.json" and (match is None or int(match[1]) >= shards[field.name]):
                strangers.append(f"{field.name}/{entry.name}")
    note_strangers(strangers, found)


def note_strangers(strangers: list[str], found: Findings) -> None:
    """Note some files that are not part of the store, and how many more there are."""
    found.notes += [f"{name} is not part of the store" for name in sorted(strangers)[:_LISTED]]
    if len(strangers) > _LISTED:
        found.notes.append(f"{len(strangers) - _LISTED} more files are not part of the store")
