"""An interrupted writer leaves a readable store, or one that says it is unfinished and can be finished."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

import logitstore
from logitstore import LogitStoreError, TruncatedDataError
from logitstore.container.codec_record import CodecRecord
from logitstore.container.progress import Progress
from logitstore.container.writer import StoreWriter, prepare_directory

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from logitstore.container.manifest import Manifest

LENGTHS = [3, 20, 1, 4, 31, 9]
"""68 rows in shards of 16; documents that end at, begin at and reach over the shards' ends."""


class Crash(Exception):
    pass


EXACT = ("zarr", "webdataset")


@pytest.fixture(params=[*EXACT, "zarr compact", "webdataset compact"])
def case(stores: Any, request: pytest.FixtureRequest) -> tuple[Manifest, Any]:
    container, *compact = request.param.split()
    # Tars of 5,000 bytes hold one to three of these documents.
    shard_bytes = 5000 if container == "webdataset" else 0
    codec = CodecRecord.compact(max_kl=1e-3, training_rows=8, retrain_rows=32) if compact else CodecRecord()
    if compact:
        request.getfixturevalue("codebooks_always")
    manifest = stores.manifest(
        rows_per_shard=16, temperatures=(2.0,), container=container, shard_bytes=shard_bytes, codec=codec
    )
    return manifest, stores.documents(LENGTHS, manifest)


def finish(path: Path, case: Any, *, skip_committed: bool = False) -> None:
    """Go on with an unfinished store from its first document."""
    manifest, documents = case
    with StoreWriter(path, manifest) as writer:
        writer.rewind(0, 0)
        for document, rows in documents:
            committed = skip_committed and writer.is_committed(len(rows))
            writer.append(document, None if committed else rows)
        writer.finish()


def assert_unfinished(path: Path) -> None:
    with pytest.raises(TruncatedDataError, match=r"not finished: \d+ rows of \d+ documents"):
        logitstore.open(path)


def test_closed_without_finish(stores: Any, case: Any, tmp_path: Path) -> None:
    manifest, documents = case
    whole = stores.digests(stores.write(tmp_path / "whole", documents, manifest))
    for count in range(len(documents) + 1):
        path = tmp_path / f"part{count}"
        prepare_directory(path)
        with StoreWriter(path, manifest) as writer:
            for document, rows in documents[:count]:
                writer.append(document, rows)
        assert_unfinished(path)
        assert not list(path.rglob("*.partial"))
        done = Progress.read(path)
        assert done.rows <= sum(LENGTHS[:count])
        assert (done.shards > 0) == (done.rows > 0)
        assert manifest.container != "zarr" or done.rows == done.shards * 16
        finish(path, case, skip_committed=bool(count % 2))
        assert stores.digests(path) == whole


def test_exception_of_the_producer(stores: Any, case: Any, tmp_path: Path) -> None:
    manifest, documents = case
    with pytest.raises(Crash):
        stores.write(tmp_path / "s", failing(documents), manifest)
    assert_unfinished(tmp_path / "s")


def failing(documents: Any) -> Any:
    yield from documents[:4]
    raise Crash


def test_resume_from_a_cursor_in_the_middle(stores: Any, case: Any, tmp_path: Path) -> None:
    manifest, documents = case
    whole = stores.digests(stores.write(tmp_path / "whole", documents, manifest))
    path = tmp_path / "s"
    prepare_directory(path)
    with StoreWriter(path, manifest) as writer:
        for number, (document, rows) in enumerate(documents[:5]):
            writer.append(document, rows, cursor={"document": number, "row": sum(LENGTHS[:number])})
    cursor = Progress.read(path).cursor
    if manifest.container == "zarr" and manifest.codec.name == "exact":
        assert cursor == {"document": 4, "row": 28}
    else:  # how far depends on how fast the documents were encoded, and on those that wait for codebooks
        cursor = cursor or {"document": 0, "row": 0}
        assert cursor["row"] == sum(LENGTHS[: cursor["document"]])
    with StoreWriter(path, manifest) as writer:
        writer.rewind(**cursor)
        for document, rows in documents[cursor["document"] :]:
            writer.append(document, rows)
        writer.finish()
    assert stores.digests(path) == whole


def crash_at(patch: pytest.MonkeyPatch, number: int, *, before: bool) -> list[int]:
    """Let the numbered call of fsync or rename be the last thing that happens, or the first that does not."""
    calls = [0]

    def wrap(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            calls[0] += 1
            if calls[0] == number and before:
                raise Crash
            result = real(*arguments)
            if calls[0] == number:
                raise Crash
            return result

        return call

    patch.setattr(os, "fsync", wrap(lambda descriptor: None))
    patch.setattr(os, "replace", wrap(os.replace))
    return calls


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_crash_at_every_step_of_every_commit(
    stores: Any, case: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bool
) -> None:
    manifest, documents = case
    with monkeypatch.context() as patch:
        calls = crash_at(patch, 0, before=before)
        whole = stores.digests(stores.write(tmp_path / "whole", documents, manifest))
    assert calls[0] > (100 if manifest.container == "zarr" else 30)
    finished = 0
    for number in range(1, calls[0] + 1, 2 if manifest.codec.name == "exact" else 13):
        path = tmp_path / str(number)
        with monkeypatch.context() as patch:
            crash_at(patch, number, before=before)
            with pytest.raises(Crash):
                stores.write(path, documents, manifest)
            patch.setattr(os, "fsync", lambda descriptor: None)
            try:
                store = logitstore.open(path, verify="full")
            except TruncatedDataError as error:
                says = str(error)
                patch.undo()
                patch.setattr(os, "fsync", lambda descriptor: None)
                finish(path, case)
                assert "not finished" in says or "no manifest.json" in says
            else:
                finished += 1
                assert len(store) == len(LENGTHS)
                (path / "progress.json").unlink(missing_ok=True)
            assert stores.digests(path) == whole, f"crash at call {number}"
    # Only the two syncs that follow the rename of the last manifest may find the store complete.
    assert finished <= 3
    assert bool(list((tmp_path / "whole").glob("codebooks/*"))) == (manifest.codec.name == "compact")


def test_leftovers_of_a_crash_are_cut_off(stores: Any, case: Any, tmp_path: Path) -> None:
    manifest, documents = case
    whole = stores.digests(stores.write(tmp_path / "whole", documents, manifest))
    path = tmp_path / "s"
    prepare_directory(path)
    with StoreWriter(path, manifest) as writer:
        for document, rows in documents[:-1]:
            writer.append(document, rows)
    tables = {"zarr": ["documents.jsonl", "shards.jsonl"]}.get(manifest.container, [
        "documents.jsonl", "shards.jsonl", "documents.idx",
    ])  # fmt: skip
    for name in tables:
        with (path / name).open("ab") as file:
            file.write(b'{"torn": ')
    done = Progress.read(path).shards
    leftover = path / ("ids/c.{}.0" if manifest.container == "zarr" else "shard-{:06d}.tar").format(done)
    leftover.with_name(f".{leftover.name}.partial").write_bytes(b"torn")
    leftover.write_bytes(b"renamed, but not committed")
    finish(path, case)
    assert stores.digests(path) == whole


@pytest.mark.parametrize("case", EXACT, indirect=True)
def test_lost_bytes_of_a_committed_record_are_noticed(stores: Any, case: Any, tmp_path: Path) -> None:
    manifest, documents = case
    path = tmp_path / "s"
    prepare_directory(path)
    with StoreWriter(path, manifest) as writer:
        for document, rows in documents:
            writer.append(document, rows)
    with (path / "shards.jsonl").open("r+b") as file:
        file.truncate(10)
    with pytest.raises(LogitStoreError, match="committed"):
        StoreWriter(path, manifest)


_WRITER = """
import pickle, sys, time
from pathlib import Path
from logitstore.container.writer import StoreWriter, prepare_directory
path = Path(sys.argv[1])
manifest, documents = pickle.load(sys.stdin.buffer)
prepare_directory(path)
with StoreWriter(path, manifest) as writer:
    for document, rows in documents:
        writer.append(document, rows)
        time.sleep(0.05)
    time.sleep(60)
"""


@pytest.mark.parametrize("case", EXACT, indirect=True)
def test_kill_9(stores: Any, case: Any, tmp_path: Path) -> None:
    manifest, documents = case
    whole = stores.digests(stores.write(tmp_path / "whole", documents, manifest))
    path = tmp_path / "s"
    with subprocess.Popen([sys.executable, "-c", _WRITER, str(path)], stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write(pickle.dumps(case))
        process.stdin.close()
        deadline = time.monotonic() + 60
        while not (path / "progress.json").exists() or Progress.read(path).shards < 2:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert_unfinished(path)
    finish(path, case)
    assert stores.digests(path) == whole
