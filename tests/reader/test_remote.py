"""Stores behind URLs: the same rows, by range, in spite of failures, within the memory allowed."""

from __future__ import annotations

import multiprocessing
import pickle
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec
import numpy as np
import pytest

import logitstore
from logitstore import CorruptDataError, InvalidArgumentError, LogitStoreError, TruncatedDataError
from logitstore.container import remote
from logitstore.container.codec_record import CodecRecord
from logitstore.container.remote import RemoteFiles
from tests.conftest import use_codebooks
from tests.reader import servers

if TYPE_CHECKING:
    from collections.abc import Iterator

# boto's and aiohttp's own housekeeping.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")

LENGTHS = [200, 13, 9, 1, 140, 70]
FIELDS = ("tokens", "ids", "values", "lse", "label_logprob", "mask")


@pytest.fixture(scope="module")
def folder(stores: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("served")
    stores.make(path / "z", LENGTHS, rows_per_shard=64)
    stores.make(path / "t", LENGTHS, rows_per_shard=64, container="webdataset", shard_bytes=9000)
    with pytest.MonkeyPatch.context() as patch:
        use_codebooks(patch)
        codec = CodecRecord.compact(training_rows=128)
        stores.make(path / "c", LENGTHS, rows_per_shard=64, codec=codec)
    return Path(path)


@pytest.fixture
def server(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.001)
    with servers.serve_folder(folder) as running:
        yield running


def assert_reads_the_same(folder: Path, name: str, url: str, **options: Any) -> None:
    with logitstore.open(folder / name) as local, logitstore.open(url, **options) as far:
        assert (len(far), len(far.rows)) == (len(local), len(local.rows))
        for ours, theirs in zip(far, local, strict=True):
            assert (ours.key, ours.metadata, ours.parent) == (theirs.key, theirs.metadata, theirs.parent)
            for field in FIELDS:
                assert getattr(ours, field).tobytes() == getattr(theirs, field).tobytes()
        for picked in ([5, 210, 3], slice(60, 70)):
            assert far.rows[picked].ids.tobytes() == local.rows[picked].ids.tobytes()


@pytest.mark.parametrize("verify", ["lazy", "full"])
@pytest.mark.parametrize("name", ["z", "t", "c"])
def test_http(folder: Path, server: Any, name: str, verify: str) -> None:
    assert_reads_the_same(folder, name, f"{server.url}/{name}", verify=verify)


@pytest.mark.parametrize("name", ["z", "t", "c"])
def test_s3(folder: Path, name: str) -> None:
    with servers.serve_s3("bucket", folder) as options:
        assert_reads_the_same(folder, name, f"s3://bucket/{name}", storage_options=options)
        with pytest.raises(TruncatedDataError, match="no such file"):
            logitstore.open("s3://bucket/nothing", storage_options=options)


@pytest.mark.parametrize("name", ["z", "t"])
def test_any_fsspec_file_system(folder: Path, name: str) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(str(folder / name), f"/stores/{name}", recursive=True)
    try:
        assert_reads_the_same(folder, name, f"memory://stores/{name}")
        assert_reads_the_same(folder, name, f"file://{folder / name}")
    finally:
        memory.rm("/stores", recursive=True)


def test_ranges_are_small(stores: Any, tmp_path: Path) -> None:
    path = stores.make(tmp_path / "t", [100] * 300, slots=97, container="webdataset", shard_bytes=10**8)
    size = (path / "shard-000000.tar").stat().st_size
    assert size > 5_000_000
    with servers.serve_folder(tmp_path) as server, logitstore.open(f"{server.url}/t") as store:
        assert len(store[150]) == 100
        assert server.bytes_sent() < size / 3


@pytest.mark.parametrize("failures", [[503, 429, 500], ["drop", "drop"], [503, "drop", 408]])
@pytest.mark.parametrize("name", ["z", "t"])
def test_failures_that_pass(folder: Path, server: Any, name: str, failures: list[Any]) -> None:
    server.failures = list(failures)
    assert_reads_the_same(folder, name, f"{server.url}/{name}")
    assert server.failures == []
    with logitstore.open(f"{server.url}/{name}") as store:
        server.failures = list(failures)
        assert len(store[0]) == LENGTHS[0]
        assert server.failures == []


def test_failures_that_do_not_pass(folder: Path, server: Any) -> None:
    server.failures = [503] * 1000
    with pytest.raises(LogitStoreError, match=f"after {remote.ATTEMPTS} attempts") as caught:
        logitstore.open(f"{server.url}/t")
    assert caught.value.path == f"{server.url}/t/manifest.json"
    assert server.failures == [503] * (1000 - remote.ATTEMPTS)
    server.failures = [403]
    with pytest.raises(LogitStoreError, match="at the first attempt"):
        logitstore.open(f"{server.url}/t")
    assert server.failures == []


def test_a_failure_is_not_remembered(folder: Path, server: Any) -> None:
    with logitstore.open(f"{server.url}/t") as store:
        server.failures = [503] * 1000
        with pytest.raises(LogitStoreError, match="attempts"):
            store[0]
        server.failures = []
        assert len(store[0]) == LENGTHS[0]


def test_a_server_without_ranges(folder: Path, server: Any) -> None:
    server.honours_ranges = False
    store = logitstore.open(f"{server.url}/t", cache_bytes=1 << 20)
    files = RemoteFiles(server.url, {}, 1 << 20)
    with pytest.raises(LogitStoreError, match="does not honour byte ranges"):
        files.open("t/shard-000000.tar", 1024).read(0, 10)
    # Files of a single block are asked for as a whole and can be read all the same.
    assert len(store[0]) == LENGTHS[0]


def test_what_is_missing_is_named(folder: Path, server: Any, tmp_path: Path) -> None:
    with pytest.raises(TruncatedDataError, match="no such file"):
        logitstore.open(f"{server.url}/nothing")
    with pytest.raises(InvalidArgumentError, match="nosuch"):
        logitstore.open("nosuch://bucket/store")
    store = logitstore.open(f"{server.url}/t")
    shard = folder / "t" / "shard-000001.tar"
    content = shard.read_bytes()
    try:
        shard.unlink()
        with pytest.raises(TruncatedDataError, match="missing") as caught:
            list(store)
        assert caught.value.path == f"{server.url}/t/shard-000001.tar"
        assert caught.value.shard == 1
        shard.write_bytes(content[:-512])
        with pytest.raises(TruncatedDataError, match="bytes, the file has"):
            list(logitstore.open(f"{server.url}/t"))
        shard.write_bytes(bytes(byte ^ 255 for byte in content))
        with pytest.raises(CorruptDataError):
            list(logitstore.open(f"{server.url}/t"))
    finally:
        shard.write_bytes(content)


def test_blocks_are_fetched_once_by_many_threads_and_a_little_ahead(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(np.arange(64 << 10, dtype="<u4").tobytes())
    with servers.serve_folder(tmp_path) as server:
        files = RemoteFiles(server.url, {}, 1 << 20)
        file = files.open("file", 16 << 10)
        found: list[bytes] = []
        threads = [threading.Thread(target=lambda: found.append(bytes(file.read(20_000, 40_000)))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert set(found) == {(tmp_path / "file").read_bytes()[20_000:40_000]}
        starts = [start for _, start, _ in server.sent]
        assert len(starts) == len(set(starts))
        # Two neighbouring blocks were asked for: the next ones are fetched before anybody does.
        assert {16 << 10, 32 << 10} < set(starts)
        assert max(starts) <= (16 << 10) * (2 + 3)


def test_memory_is_bounded(tmp_path: Path) -> None:
    content = np.random.default_rng(0).bytes(1 << 20)
    (tmp_path / "file").write_bytes(content)
    with servers.serve_folder(tmp_path) as server:
        files = RemoteFiles(server.url, {}, 100 << 10)
        file = files.open("file", 16 << 10)
        for start in range(0, 1 << 20, 10_000):
            stop = min(start + 10_000, 1 << 20)
            assert bytes(file.read(start, stop)) == content[start:stop]
            blocks = files._blocks
            assert sum(size for _, size in blocks._held.values()) == blocks._bytes <= 100 << 10
        assert server.bytes_sent() == 1 << 20  # read once from end to end, nothing twice


def _first_ids(store: Any) -> bytes:
    return bytes(store[0].ids.tobytes())


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_open_their_own_connections(folder: Path, server: Any, method: str) -> None:
    store = logitstore.open(f"{server.url}/t")
    expected = _first_ids(store)
    assert _first_ids(pickle.loads(pickle.dumps(store))) == expected
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map(_first_ids, [store, store]) == [expected, expected]
