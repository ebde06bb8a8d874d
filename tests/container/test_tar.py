"""Tar shards hold the same rows as Zarr shards, look as people expect, and every damage is noticed."""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import logitstore
from logitstore import CorruptDataError, LogitStoreError, TruncatedDataError
from logitstore.audit import summarise, verify
from logitstore.container.tar_index import IndexRecord

if TYPE_CHECKING:
    from collections.abc import Callable

FIELDS = ("tokens", "ids", "values", "lse", "label_logprob", "mask", "counts", "lse_T")
LENGTHS = [20, 13, 9, 1, 40, 7]
SETTINGS = {
    "rows_per_shard": 16,
    "has_counts": True,
    "temperatures": (2.0,),
    "selection": {"top_k": 5, "samples": 50},
    "container": "webdataset",
    "shard_bytes": 8000,
}


@pytest.fixture(scope="module")
def sound(stores: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tars")
    stores.make(folder / "a", LENGTHS, **SETTINGS)
    stores.make(folder / "b", LENGTHS, seed=1, **{**SETTINGS, "store_id": "ff" * 16})
    return folder


@pytest.fixture
def store(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound / "a", tmp_path / "s"))


@settings(max_examples=15, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 60), min_size=0, max_size=7),
    slots=st.sampled_from([1, 5, 97]),
    shard_bytes=st.sampled_from([1, 3000, 10**6]),
    masked=st.booleans(),
    ragged=st.booleans(),
    rows_per_shard=st.sampled_from([1, 16, 1024]),
    values=st.sampled_from(["logprob", "logit"]),
    data=st.data(),
)
def test_tars_and_zarr_read_the_same(
    stores: Any, lengths: list[int], slots: int, shard_bytes: int, masked: bool, ragged: bool, rows_per_shard: int,
    values: str, data: st.DataObject,
) -> None:  # fmt: skip
    shape: dict[str, Any] = {
        "slots": slots, "rows_per_shard": rows_per_shard, "build": {"rows": "masked" if masked else "all"},
        "values": values,
    }  # fmt: skip
    documents = stores.documents(lengths, stores.manifest(**shape), ragged=ragged)
    with tempfile.TemporaryDirectory() as folder:
        zarr_path = stores.write(Path(folder) / "z", documents, stores.manifest(**shape))
        tars = stores.manifest(**shape, container="webdataset", shard_bytes=shard_bytes)
        tar_path = stores.write(Path(folder) / "t", documents, tars)
        assert verify(tar_path).ok, verify(tar_path).errors
        ours, theirs = logitstore.open(tar_path, verify="full"), logitstore.open(zarr_path)
        assert len(ours) == len(theirs) == len(lengths)
        for mine, other in zip(ours, theirs, strict=True):
            assert_same(mine, other)
            assert (mine.key, mine.index, mine.first_row) == (other.key, other.index, other.first_row)
            assert (mine.parent, mine.metadata) == (other.parent, other.metadata)
        total = sum(lengths)
        start, stop = sorted(data.draw(st.lists(st.integers(0, total), min_size=2, max_size=2)))
        assert_same(ours.rows[start:stop], theirs.rows[start:stop])
        if total:
            picked = data.draw(st.lists(st.integers(0, total - 1), max_size=5))
            assert_same(ours.rows[picked], theirs.rows[picked])
        first, last = sorted(data.draw(st.lists(st.integers(0, len(lengths)), min_size=2, max_size=2)))
        np.testing.assert_array_equal(ours.offsets(first, last), theirs.offsets(first, last))


def assert_same(a: Any, b: Any) -> None:
    for field in FIELDS:
        x, y = getattr(a, field), getattr(b, field)
        assert (x is None) == (y is None)
        if x is not None:
            assert x.dtype == y.dtype
            assert x.tobytes() == y.tobytes()


def test_a_document_of_many_chunks(stores: Any, tmp_path: Path) -> None:
    manifest = stores.manifest(slots=5, rows_per_shard=8, container="webdataset", shard_bytes=10**6)
    documents = stores.documents([100, 3], manifest)
    store = logitstore.open(stores.write(tmp_path / "s", documents, manifest), order="stored")
    assert store[0].ids.tobytes() == documents[0][1].ids.tobytes()
    assert store.rows[17:50].values.tobytes() == documents[0][1].values[17:50].tobytes()
    assert verify(store.path).ok


def test_what_tar_shows(store: Path) -> None:
    names = []
    for shard in sorted(store.glob("shard-*.tar")):
        listed = subprocess.run(["tar", "tvf", shard], capture_output=True, text=True, check=True)
        assert listed.stderr == ""
        assert all("1970-01-01 00:00" in line for line in listed.stdout.splitlines())
        names += [line.split()[-1] for line in listed.stdout.splitlines()]
    assert names == sorted(names)
    assert names == [f"{number:010d}.{kind}" for number in range(len(LENGTHS)) for kind in ("json", "lgt")]
    with tarfile.open(store / "shard-000000.tar") as tar:
        member = tar.extractfile("0000000000.json")
        assert member is not None
        about = json.loads(member.read())
    parent = {"key": "long", "first_token": 0}
    assert about == {"key": "document 0", "rows": 20, "document": 0, "first_row": 0, "parent": parent}


def test_shards_are_filled_up_to_their_size_and_never_empty(stores: Any, tmp_path: Path) -> None:
    for shard_bytes in (1, 5000, 9000, 10**6):
        path = stores.make(tmp_path / str(shard_bytes), LENGTHS, **{**SETTINGS, "shard_bytes": shard_bytes})
        sizes = [shard.stat().st_size for shard in sorted(path.glob("*.tar"))]
        counts = [len(member_names(shard)) // 2 for shard in sorted(path.glob("*.tar"))]
        assert all(size <= shard_bytes or count == 1 for size, count in zip(sizes, counts, strict=True))
        assert sum(counts) == len(LENGTHS)
        records = [json.loads(line) for line in (path / "shards.jsonl").read_text().splitlines()]
        assert [record["documents"] for record in records] == counts
        assert [record["files"]["tar"]["bytes"] for record in records] == sizes


def member_names(path: Path) -> list[str]:
    with tarfile.open(path) as tar:
        return tar.getnames()


def test_bytes_do_not_depend_on_threads(stores: Any, tmp_path: Path) -> None:
    manifest = stores.manifest(**SETTINGS)
    documents = stores.documents(LENGTHS, manifest)
    one, four = (stores.write(tmp_path / str(workers), documents, manifest, workers=workers) for workers in (1, 4))
    assert stores.digests(one) == stores.digests(four)


def test_the_summary_speaks_of_tars(store: Path) -> None:
    summary = summarise(store)
    assert summary["container"] == "webdataset"
    assert summary["format_version"] == "1.1"
    assert summary["shards"] == len(list(store.glob("*.tar"))) > 2
    assert sum(summary["bytes_by_field"].values()) == sum(file.stat().st_size for file in store.iterdir())
    assert summary["bytes_by_field"]["ids"] > 0


def read_all(path: Path, mode: str) -> bytes:
    with logitstore.open(path, verify=mode, order="stored") as opened:  # type: ignore[arg-type]
        return b"".join(
            document.key.encode() + b"".join(getattr(document, field).tobytes() for field in FIELDS)
            for document in opened
        )


def cut_behind_first_sample(path: Path) -> None:
    tar = path / "shard-000000.tar"
    record = IndexRecord.unpack((path / "documents.idx").read_bytes()[:64])
    end = record.offset + -(-record.size // 512) * 512
    tar.write_bytes(tar.read_bytes()[:end] + bytes(1024))


def swap(path: Path) -> None:
    a, b = path / "shard-000000.tar", path / "shard-000001.tar"
    a_bytes, b_bytes = a.read_bytes(), b.read_bytes()
    size = max(len(a_bytes), len(b_bytes))
    a.write_bytes(b_bytes.ljust(size, b"\0"))
    b.write_bytes(a_bytes.ljust(size, b"\0"))


DAMAGES: dict[str, tuple[Callable[[Path], Any], str, type[LogitStoreError]]] = {
    "cut behind a member": (cut_behind_first_sample, "shard-000000.tar", TruncatedDataError),
    "empty tar": (lambda p: (p / "shard-000001.tar").write_bytes(b""), "shard-000001.tar", TruncatedDataError),
    "missing tar": (lambda p: (p / "shard-000002.tar").unlink(), "shard-000002.tar", TruncatedDataError),
    "longer tar": (
        lambda p: (p / "shard-000001.tar").write_bytes((p / "shard-000001.tar").read_bytes() + bytes(512)),
        "shard-000001.tar", CorruptDataError,
    ),
    "swapped tars": (swap, "shard-000000.tar", CorruptDataError),
    "missing index": (lambda p: (p / "documents.idx").unlink(), "documents.idx", TruncatedDataError),
    "short index": (
        lambda p: (p / "documents.idx").write_bytes((p / "documents.idx").read_bytes()[:-64]),
        "documents.idx", TruncatedDataError,
    ),
    "missing documents": (lambda p: (p / "documents.jsonl").unlink(), "documents.jsonl", TruncatedDataError),
    "missing table": (lambda p: (p / "shards.jsonl").unlink(), "shards.jsonl", TruncatedDataError),
}  # fmt: skip


@pytest.mark.parametrize("mode", ["none", "lazy", "full"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_are_named(store: Path, damage: str, mode: str) -> None:
    break_it, name, kind = DAMAGES[damage]
    break_it(store)
    with pytest.raises(kind) as caught:
        read_all(store, mode)
    assert Path(str(caught.value.path)) == store / name
    report = verify(store)
    assert not report.ok
    assert name in {problem.file for problem in report.errors}


def test_a_tar_of_another_store_of_the_same_size(sound: Path, store: Path) -> None:
    for shard in store.glob("*.tar"):
        other = (sound / "b" / shard.name).read_bytes()
        shard.write_bytes(other[: shard.stat().st_size].ljust(shard.stat().st_size, b"\0"))
    with pytest.raises(CorruptDataError) as caught:
        read_all(store, "none")
    assert caught.value.shard == 0
    assert not verify(store).ok


@pytest.mark.parametrize("name", ["shard-000000.tar", "documents.idx", "documents.jsonl", "shards.jsonl"])
def test_flipped_bits(store: Path, name: str) -> None:
    sound = read_all(store, "full")
    content = (store / name).read_bytes()
    unnoticed = 0
    for offset in range(0, len(content), max(1, len(content) // 60)):
        damaged = bytearray(content)
        damaged[offset] ^= 1 << offset % 8
        (store / name).write_bytes(damaged)
        with pytest.raises(CorruptDataError):
            read_all(store, "full")
        assert not verify(store, workers=1).ok
        try:
            found = read_all(store, "lazy")
        except LogitStoreError:
            continue
        # Lazily, what nobody needs for the rows may be damaged unnoticed: tar headers, padding, other keys of a line.
        unnoticed += 1
        assert found == sound or name == "documents.jsonl"
    assert name != "documents.idx" or unnoticed == 0


def test_members_that_the_index_does_not_know(store: Path) -> None:
    with tarfile.open(store / "shard-000002.tar", "a") as tar:
        tar.add(store / "manifest.json", "0000000099.json")
    report = verify(store)
    assert {problem.rule for problem in report.errors} >= {"shard-size"}


def test_every_broken_document_is_listed_and_the_others_checked(store: Path) -> None:
    records = (store / "documents.idx").read_bytes()
    for number in (0, 4):
        index = IndexRecord.unpack(records[64 * number : 64 * number + 64])
        with (store / f"shard-{index.shard:06d}.tar").open("r+b") as file:
            file.seek(index.offset + index.size - 12)
            byte = file.read(1)
            file.seek(-1, 1)
            file.write(bytes([byte[0] ^ 255]))
    report = verify(store)
    broken = {problem.message.split(":")[0] for problem in report.errors if problem.rule == "tar-checksum"}
    assert broken == {"document 0", "document 4"}
    assert report.rows_checked >= sum(LENGTHS) - LENGTHS[0] - LENGTHS[4]


def test_strangers_are_noted(store: Path) -> None:
    (store / "shard-000099.tar").write_bytes(b"")
    (store / "note.txt").write_text("mine")
    report = verify(store)
    assert report.ok
    assert report.notes == ["note.txt is not part of the store", "shard-000099.tar is not part of the store"]


def test_an_older_manifest_has_no_container(sound: Path, stores: Any, tmp_path: Path) -> None:
    path = stores.make(tmp_path / "z", [3])
    content = json.loads((path / "manifest.json").read_bytes())
    assert content["format_version"] == "1.0"
    assert "container" not in content
    newer = json.loads((sound / "a" / "manifest.json").read_bytes())
    assert (newer["format_version"], newer["container"]) == ("1.1", "webdataset")
    for key in ("shard_bytes", "index_file"):
        broken = tmp_path / key
        shutil.copytree(sound / "a", broken)
        (broken / "manifest.json").write_text(json.dumps({name: newer[name] for name in newer if name != key}))
        with pytest.raises(CorruptDataError, match=key):
            logitstore.open(broken)
    shutil.copytree(sound / "a", tmp_path / "later")
    (tmp_path / "later" / "manifest.json").write_text(json.dumps({**newer, "container": "boxes"}))
    with pytest.raises(logitstore.UnsupportedVersionError, match="boxes"):
        logitstore.open(tmp_path / "later")
