"""Damaged stores: every error names the file, and nothing reads back as zeros or as other rows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import logitstore
from logitstore import CorruptDataError, LogitStoreError, TruncatedDataError, UnsupportedVersionError

ROW_ARRAYS = ["tokens", "ids", "logprobs", "lse", "label_logprob", "mask", "counts"]
ARRAYS = [*ROW_ARRAYS, "doc_offsets", "doc_lines"]


@pytest.fixture(scope="module")
def sound(stores: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    settings = {"has_counts": True, "rows_per_shard": 16, "selection": {"top_k": 5, "samples": 50}}
    stores.make(folder / "a", [20, 13, 9], **settings)
    stores.make(folder / "b", [20, 13, 9], seed=1, store_id="ff" * 16, **settings)
    return folder


@pytest.fixture
def store(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound / "a", tmp_path / "s"))


def read_all(path: Path, verify: str) -> list[bytes]:
    with logitstore.open(path, verify=verify, order="stored") as store:
        found = [store.read_field(name, 0, 42 if name in ROW_ARRAYS else 4).tobytes() for name in ARRAYS]
        for document in store:
            found += [document.key.encode(), document.ids.tobytes()]
        return found


def assert_names(path: Path, file: str, verify: str, kind: type[LogitStoreError] = CorruptDataError) -> None:
    with pytest.raises(kind) as caught:
        read_all(path, verify)
    assert Path(str(caught.value.path)) == path / file
    name = file.rsplit("/", maxsplit=1)[-1]
    if name.startswith("c."):
        assert caught.value.shard == int(name.split(".")[1])


def shard_file(array: str, shard: int) -> str:
    return f"{array}/c.{shard}" + (".0" if array in ("ids", "logprobs", "counts") else "")


FILES = [shard_file(array, 1 if array in ROW_ARRAYS else 0) for array in ARRAYS]
VERIFY = pytest.mark.parametrize("verify", ["lazy", "full"])


@VERIFY
@pytest.mark.parametrize(
    "file", [*FILES, *(f"{array}/zarr.json" for array in ARRAYS), "shards.jsonl", "documents.jsonl"]
)
def test_missing_and_cut_files(store: Path, file: str, verify: str) -> None:
    content = (store / file).read_bytes()
    (store / file).unlink()
    assert_names(store, file, verify, TruncatedDataError)
    cuts = [0, 1, len(content) // 2, len(content) - 2]
    for cut in cuts:
        (store / file).write_bytes(content[:cut])
        assert_names(store, file, verify)
    if "c." in file:
        (store / file).write_bytes(content[:-1])
        assert_names(store, file, verify, TruncatedDataError)
        (store / file).write_bytes(content + b"\0")
        assert_names(store, file, verify)


@VERIFY
@pytest.mark.parametrize("array", ROW_ARRAYS)
def test_swapped_shards(sound: Path, store: Path, array: str, verify: str) -> None:
    first, second = store / shard_file(array, 0), store / shard_file(array, 1)
    first_bytes, second_bytes = first.read_bytes(), second.read_bytes()
    first.write_bytes(second_bytes)
    second.write_bytes(first_bytes)
    assert_names(store, shard_file(array, 0), verify)
    # Shard 1 over shard 0, of the very same length: sizes cannot tell.
    first.write_bytes((second_bytes + bytes(len(first_bytes)))[: len(first_bytes)])
    assert_names(store, shard_file(array, 0), verify)
    # The same shard of another store, with a shard table that knows its size and digest.
    shutil.copytree(sound / "b" / array, store / array, dirs_exist_ok=True)
    edit_table(store, {array: sound / "b" / array})
    assert_names(store, shard_file(array, 0), "lazy")


@VERIFY
def test_swapped_arrays(store: Path, verify: str) -> None:
    for shard in range(3):
        a, b = store / f"lse/c.{shard}", store / f"label_logprob/c.{shard}"
        a_bytes, b_bytes = a.read_bytes(), b.read_bytes()
        a.write_bytes(b_bytes)
        b.write_bytes(a_bytes)
    assert_names(store, "lse/c.0", verify)
    if verify == "lazy":
        edit_table(store, {"lse": store / "lse", "label_logprob": store / "label_logprob"})
        assert_names(store, "lse/c.0", verify)


def edit_table(path: Path, folders: dict[str, Path]) -> None:
    """Make the shard table tell the sizes of the files that are there now."""
    lines = []
    for line in (path / "shards.jsonl").read_bytes().splitlines(keepends=True):
        record = json.loads(line)
        for array, folder in folders.items():
            if array in record["files"]:
                record["files"][array]["bytes"] = (
                    (folder / Path(shard_file(array, record["shard"])).name).stat().st_size
                )
        lines.append(json.dumps(record, separators=(",", ":")).encode().ljust(len(line) - 1) + b"\n")
    (path / "shards.jsonl").write_bytes(b"".join(lines))


def outcome(path: Path, verify: str) -> list[bytes] | Path:
    """What a store reads as, or the file that its error names."""
    try:
        return read_all(path, verify)
    except LogitStoreError as error:
        return Path(str(error.path))


@pytest.mark.parametrize("array", ARRAYS)
def test_flipped_bits_in_every_part_of_a_shard(store: Path, array: str) -> None:
    file = store / shard_file(array, 0)
    sound = read_all(store, "full")
    content = file.read_bytes()
    step = max(1, len(content) // 40)
    header, index = range(0, 96, 3), range(len(content) - 20, len(content), 3)
    offsets = sorted({60, *header, *index, *range(96, len(content), step)})
    unnoticed = 0
    for offset in offsets:
        damaged = bytearray(content)
        damaged[offset] ^= 1 << offset % 8
        file.write_bytes(damaged)
        with pytest.raises(CorruptDataError) as caught:
            logitstore.open(store, verify="full").read_field(array, 0, 1)
        assert caught.value.shard == 0
        # Lazily, a gap between chunks may be damaged unnoticed; what is read may not.
        found = outcome(store, "lazy")
        assert found in (sound, file)
        unnoticed += found == sound
        # Without checks anything may come back, or an error; but never a crash.
        outcome(store, "none")
    # The header's last four bytes and up to seven bytes behind a chunk are such gaps.
    assert unnoticed <= 4 + 7


def test_an_edited_index_does_not_lead_out_of_the_file(store: Path) -> None:
    import google_crc32c

    file = store / "ids/c.0.0"
    content = file.read_bytes()
    index = np.frombuffer(content[-20:-4], "<u8")
    offset, size = (int(number) for number in index)
    entries = [(offset, size + 8), (1 << 63, size), (offset, 1 << 63), (len(content), 8), (0, size), (offset - 8, size)]
    for entry in (*entries, ((1 << 64) - 1, (1 << 64) - 1), (offset, 0)):
        raw = np.array(entry, "<u8").tobytes()
        file.write_bytes(content[:-20] + raw + int(google_crc32c.value(raw)).to_bytes(4, "little"))
        for verify in ("none", "lazy", "full"):
            with pytest.raises(CorruptDataError) as caught:
                logitstore.open(store, verify=verify).read_field("ids", 0, 16)
            assert caught.value.shard == 0


EDITS = [
    ("shape", lambda m: m["shape"].__setitem__(0, 43)),
    ("shape", lambda m: m["shape"].__setitem__(0, 10)),
    ("fill_value", lambda m: m.update(fill_value=7)),
    ("data_type", lambda m: m.update(data_type="int16")),
    ("chunk_grid", lambda m: m["chunk_grid"]["configuration"]["chunk_shape"].__setitem__(0, 32)),
    ("codecs", lambda m: m["codecs"][0]["configuration"]["chunk_shape"].__setitem__(0, 8)),
    ("chunk_key_encoding", lambda m: m["chunk_key_encoding"]["configuration"].update(separator="/")),
    ("more", lambda m: m.update(more=1)),
]


@pytest.mark.parametrize(("key", "edit"), EDITS)
def test_edited_array_metadata(store: Path, key: str, edit: Any) -> None:
    for array in ARRAYS:
        file = store / array / "zarr.json"
        before = file.read_bytes()
        metadata = json.loads(before)
        edit(metadata)
        file.write_text(json.dumps(metadata))
        with pytest.raises(CorruptDataError, match=key) as caught:
            logitstore.open(store, verify="none")
        assert Path(str(caught.value.path)) == file
        file.write_bytes(before)
    for text in ("[]", "3", "{", "[" * 100_000):
        (store / "ids" / "zarr.json").write_text(text)
        with pytest.raises(CorruptDataError, match="metadata"):
            logitstore.open(store)


@VERIFY
@pytest.mark.parametrize(
    "change",
    [
        {"rows": 41}, {"rows": 32}, {"rows": 0, "documents": 0, "entries": 0}, {"documents": 2}, {"documents": 42},
        {"vocab_size": 98}, {"slots": 6}, {"slots": 4}, {"values": "logit"}, {"rows_per_shard": 32},
        {"rows_per_shard": 8}, {"store_id": "ff" * 16}, {"has_counts": False, "rows_per_shard": 64},
        {"temperatures": [2.0]}, {"record_bytes": 10}, {"documents_file": None}, {"shard_table": None},
        {"complete": "yes"}, {"rows": -1}, {"rows": 1e3}, {"rows": True}, {"rows_per_shard": 24}, {"vocab_size": 0},
        {"vocab_size": 1 << 32}, {"padded_vocab_size": 5}, {"store_id": "xy" * 16}, {"store_id": None},
        {"values": "probability"}, {"temperatures": [-1]}, {"selection": []}, {"format": "other"},
        {"format_version": "1"}, {"format_version": "a.b"}, {"format_version": 1.0}, {"entries": 1 << 40},
        {"documents_file": {"bytes": 10}}, {"slots": 1 << 40},
    ],
    ids=str,
)  # fmt: skip
def test_edited_manifest(store: Path, change: dict[str, Any], verify: str) -> None:
    edit_manifest(store, lambda content: content.update(change))
    with pytest.raises(CorruptDataError) as caught:
        read_all(store, verify)
    assert str(caught.value.path).startswith(str(store))


def edit_manifest(path: Path, edit: Any) -> None:
    content = json.loads((path / "manifest.json").read_text())
    edit(content)
    (path / "manifest.json").write_text(json.dumps(content))


def test_manifest_without_a_key(store: Path) -> None:
    whole = (store / "manifest.json").read_text()
    for key in json.loads(whole):
        edit_manifest(store, lambda content, key=key: content.pop(key))
        with pytest.raises(CorruptDataError, match=key):
            logitstore.open(store)
        (store / "manifest.json").write_text(whole)


def test_no_manifest_is_no_store(store: Path, tmp_path: Path) -> None:
    for text in ("", "[]", "null", "{", "[" * 100_000, '{"format": "logitstore"}'):
        (store / "manifest.json").write_text(text)
        with pytest.raises(CorruptDataError) as caught:
            logitstore.open(store)
        assert str(caught.value.path).endswith("manifest.json")
    (store / "manifest.json").unlink()
    for path in (store, tmp_path / "nothing", store / "documents.jsonl"):
        with pytest.raises(TruncatedDataError):
            logitstore.open(path)


def test_newer_versions(store: Path) -> None:
    edit_manifest(store, lambda content: content.update(format_version="1.7", written_by_a_newer_minor_version=1))
    read_all(store, "full")
    edit_manifest(store, lambda content: content.update(format_version="2.0"))
    with pytest.raises(UnsupportedVersionError, match=r"2\.0"):
        logitstore.open(store)
    edit_manifest(store, lambda content: content.update(format_version="1.0", codec={"name": "better", "version": 1}))
    with pytest.raises(UnsupportedVersionError, match="better"):
        logitstore.open(store)


@VERIFY
def test_swapped_documents(sound: Path, store: Path, stores: Any, tmp_path: Path, verify: str) -> None:
    shutil.copy(stores.make(tmp_path / "other", [13, 20, 9]) / "documents.jsonl", store)
    assert_names(store, "documents.jsonl", verify)


@pytest.mark.parametrize(
    "line",
    [b"{}", b"[]", b"3", b'{"key": "a"}', b'{"key": 3, "rows": 20}', b'{"key": "a", "rows": "20"}',
     b'{"key": "a", "rows": 20, "parent": 3}', b'{"key": "a", "rows": 20, "parent": {"key": "b"}}', b"\xff"],
)  # fmt: skip
def test_broken_lines_of_documents(store: Path, line: bytes) -> None:
    file = store / "documents.jsonl"
    lines = file.read_bytes().splitlines()
    file.write_bytes(b"\n".join([line.ljust(len(lines[0])), *lines[1:]]) + b"\n")
    assert_names(store, "documents.jsonl", "lazy")


def test_full_verification_covers_every_byte_of_the_records(store: Path) -> None:
    for name in ("documents.jsonl", "shards.jsonl"):
        content = (store / name).read_bytes()
        for offset in range(0, len(content), 97):
            damaged = bytearray(content)
            damaged[offset] ^= 1
            (store / name).write_bytes(damaged)
            assert_names(store, name, "full")
        (store / name).write_bytes(content)
