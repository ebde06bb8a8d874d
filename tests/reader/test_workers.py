"""Many readers of one store: threads, processes, and a bounded number of open files."""

from __future__ import annotations

import multiprocessing
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import logitstore

_STORE: Any = None


def _checksum(store: Any, number: int) -> int:
    document = store[number]
    return int(document.ids.astype(np.uint64).sum() + document.values.view(np.uint16).astype(np.uint64).sum())


def _from_global(number: int) -> int:
    return _checksum(_STORE, number)


def _from_pickle(task: tuple[Any, int]) -> int:
    return _checksum(*task)


@pytest.fixture(scope="module")
def path(stores: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stores.make(tmp_path_factory.mktemp("stores") / "s", [17] * 40, rows_per_shard=16)


def test_a_pickled_store_reads_the_same(path: Path) -> None:
    store = logitstore.open(path, order="stored")
    store[0]
    copy = pickle.loads(pickle.dumps(store))
    assert (copy.order, len(copy)) == ("stored", len(store))
    assert [_checksum(copy, number) for number in range(40)] == [_checksum(store, number) for number in range(40)]
    assert len(pickle.dumps(store)) < 20_000


def test_threads_share_a_store_whose_files_come_and_go(path: Path) -> None:
    from logitstore.container.files import LocalFiles
    from logitstore.reader.store import Store

    expected = [_checksum(logitstore.open(path), number) for number in range(40)]
    store = Store(LocalFiles(path), verify="lazy", order="logit", open_files=2)
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            assert list(pool.map(lambda number: _checksum(store, number), range(40))) == expected


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
# Python 3.12 warns of forking with threads, which is what a training process does.
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_forked_workers(path: Path) -> None:
    global _STORE  # noqa: PLW0603
    _STORE = logitstore.open(path)
    expected = [_checksum(_STORE, number) for number in range(40)]
    # A fork while another thread holds the lock must not leave the child waiting for it.
    with _STORE._rows._shards._open._lock, multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map_async(_from_global, range(40)).get(timeout=60) == expected


def test_spawned_workers(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = logitstore.open(path)
    expected = [_checksum(store, number) for number in range(4)]
    script = (
        "import pickle, sys, numpy\n"
        "store = pickle.load(sys.stdin.buffer)\n"
        "d = [store[n] for n in range(4)]\n"
        "print([int(x.ids.astype('u8').sum() + x.values.view('u2').astype('u8').sum()) for x in d])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], input=pickle.dumps(store), capture_output=True, check=True)
    assert done.stdout.decode().strip() == str(expected)


def test_errors_reach_the_parent_whole(path: Path, stores: Any, tmp_path: Path) -> None:
    broken = stores.make(tmp_path / "s", [40])
    (broken / "ids" / "c.1.0").unlink()
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        error = pool.submit(_error_of, str(broken)).result()
    assert isinstance(error, logitstore.TruncatedDataError)
    assert error.shard == 1
    assert str(error.path).endswith(str(Path("ids") / "c.1.0"))


def _error_of(path: str) -> Exception | None:
    try:
        logitstore.open(path).rows[:]
    except logitstore.LogitStoreError as error:
        return error
    return None


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="counts mappings of files through /proc")
def test_few_files_are_open_whatever_the_number_of_shards(stores: Any, tmp_path: Path) -> None:
    path = stores.make(tmp_path / "s", [200], rows_per_shard=2)
    # A process of its own: what other tests leave open is closed whenever the collector runs.
    script = (
        "import os, sys, logitstore\n"
        "from pathlib import Path\n"
        "def held():\n"
        "    maps = Path('/proc/self/maps').read_text().count(sys.argv[1])\n"
        "    links = [os.readlink(f'/proc/self/fd/{fd}') for fd in os.listdir('/proc/self/fd') if\n"
        "             os.path.islink(f'/proc/self/fd/{fd}')]\n"
        "    return maps, sum(link.startswith(sys.argv[1]) for link in links)\n"
        "with logitstore.open(sys.argv[1]) as store:\n"
        "    for row in range(200):\n"
        "        store.rows[row]\n"
        "    print(*held())\n"
        "print(*held())\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, check=True, text=True)
    mapped, opened, mapped_after, opened_after = map(int, done.stdout.split())
    assert 0 < mapped <= 64
    assert opened <= 64
    assert mapped_after == opened_after == 0


def test_opening_costs_the_same_for_many_shards(stores: Any, tmp_path: Path) -> None:
    small = stores.make(tmp_path / "small", [4], rows_per_shard=2)
    large = stores.make(tmp_path / "large", [8] * 40, rows_per_shard=2)
    assert opened_files(large, lambda: logitstore.open(large)) == opened_files(small, lambda: logitstore.open(small))
    store = logitstore.open(large)
    # One row: a line of the shard table and a shard for each of six arrays.
    assert len(opened_files(large, lambda: store.rows[200])) <= 12


_watched: tuple[str, list[str], int] | None = None


def _hook(event: str, arguments: Any) -> None:
    if event == "open" and _watched is not None and _watched[2] == threading.get_ident():
        name = str(arguments[0])
        if name.startswith(_watched[0]):
            _watched[1].append(name.removeprefix(_watched[0]))


def opened_files(path: Path, work: Any) -> list[str]:
    """Names of the files below ``path`` that ``work`` opens."""
    global _watched  # noqa: PLW0603
    if not getattr(sys, "_logitstore_hook", False):
        sys.addaudithook(_hook)  # cannot be taken away again, hence the switch
        sys._logitstore_hook = True  # type: ignore[attr-defined]
    names: list[str] = []
    _watched = (str(path), names, threading.get_ident())
    try:
        work()
    finally:
        _watched = None
    return names
