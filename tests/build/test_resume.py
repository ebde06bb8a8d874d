"""A build that stops anywhere, and is resumed, ends with the same bytes as one that was never interrupted."""

from __future__ import annotations

import os
import shutil
import threading
from typing import TYPE_CHECKING, Any

import pytest

import logitstore
from logitstore.build import build
from logitstore.container.progress import PROGRESS_FILE, Progress
from logitstore.errors import TruncatedDataError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from logitstore.build import BuildConfig

pytestmark = pytest.mark.usefixtures("load_once")


class Interruption(OSError):
    """A disk that fails."""


class Steps:
    """Counts the steps of a build that reach the disk: fsync and rename."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at_step: Callable[[int], None]) -> None:
        self.count = 0
        self._at_step = at_step
        self._lock = threading.Lock()
        replace = os.replace
        monkeypatch.setattr(os, "replace", lambda *paths: self._step() or replace(*paths))
        # Nothing here loses power: only the order of the steps matters, not that they take long.
        monkeypatch.setattr(os, "fsync", lambda descriptor: self._step())

    def _step(self) -> None:
        with self._lock:
            self.count += 1
            self._at_step(self.count)


@pytest.fixture
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows of 150 tokens for rows of 4 slots."""
    monkeypatch.setattr("logitstore.build.config._WINDOW_BYTES", 150 * 6 * 4)


@pytest.fixture
def config(configure: Any, write_corpus: Any, texts: Any, small_windows: None) -> BuildConfig:
    """Windows, documents and shards that all end in different places; a record that is cut across two windows."""
    data = write_corpus(texts(30, 2, 9, 14, 1, 40, 5, 5, 12, 3, 21))
    return configure(data, top_k=4, seq_len=50, tokens_per_batch=60, rows_per_chunk=32, rows_per_shard=64)


@pytest.fixture
def short_config(configure: Any, write_corpus: Any, texts: Any, small_windows: None) -> BuildConfig:
    """Three shards, with every kind of array."""
    data = write_corpus(texts(14, 2, 9, 10, 1, 8))
    return configure(data, top_k=2, samples=2, temperatures=(2.0,), seq_len=40, tokens_per_batch=60, rows_per_shard=64)


def test_the_corpus_of_these_tests_is_awkward(config: BuildConfig, run: Any, tmp_path: Path) -> None:
    manifest = run(config).manifest
    store = logitstore.open(tmp_path / "store.zarr")
    starts = {document.first_row for document in store}
    boundaries = set(range(64, manifest.rows, 64))
    assert manifest.row_shards > 6
    assert len(boundaries - starts) > 3
    assert any(document.parent is not None for document in store)


def test_progress_may_be_interrupted_at_any_call(
    config: BuildConfig, run: Any, tmp_path: Path, files_of: Any, interrupt_at_call: Any, our_threads: Any
) -> None:
    calls: list[Any] = []
    run(config, "whole.zarr", on_progress=calls.append)
    whole = files_of(tmp_path / "whole.zarr")
    assert len(calls) > 10
    for last in range(1, len(calls) + 1):
        store = tmp_path / f"store{last}.zarr"
        interrupt_at_call(config, store, last)
        assert not our_threads()
        with pytest.raises(TruncatedDataError, match=f"{Progress.read(store).rows} rows .*--resume"):
            logitstore.open(store)
        build(config, store, resume=True)
        assert files_of(store) == whole, f"interrupted at call {last}"


def test_work_that_is_committed_is_not_done_again(config: BuildConfig, tmp_path: Path) -> None:
    store = tmp_path / "store.zarr"

    def interrupt(progress: Any) -> None:
        if progress.committed_rows >= 256:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(config, store, on_progress=interrupt)
    committed = Progress.read(store).rows
    assert committed >= 256
    first: list[Any] = []
    summary = build(config, store, resume=True, on_progress=first.append)
    assert summary.new_rows < summary.manifest.rows - committed + 200
    assert first[0].committed_rows >= committed
    assert summary.counters.tokens < summary.manifest.rows


@pytest.mark.parametrize("seq_len", [50, 90])
def test_a_build_that_is_interrupted_at_every_shard(
    seq_len: int, configure: Any, write_corpus: Any, texts: Any, small_windows: None, run: Any, tmp_path: Path,
    files_of: Any,
) -> None:  # fmt: skip
    data = write_corpus(texts(2, 20, 3, 3, 3, 24, 4))
    config = configure(data, top_k=4, seq_len=seq_len, tokens_per_batch=60, rows_per_shard=16)
    shards = run(config, "whole.zarr").manifest.row_shards
    assert shards > 10
    store = tmp_path / "store.zarr"
    for done in range(1, shards):
        with pytest.MonkeyPatch.context() as patch:
            _fail_after_commit(patch, done)
            with pytest.raises(Interruption):
                build(config, store, resume=True)
        assert Progress.read(store).shards == done
    build(config, store, resume=True)
    assert files_of(store) == files_of(tmp_path / "whole.zarr")


def _fail_after_commit(monkeypatch: pytest.MonkeyPatch, shards: int) -> None:
    write = Progress.write

    def write_and_fail(self: Progress, store: Path) -> None:
        write(self, store)
        if self.shards == shards:
            raise Interruption

    monkeypatch.setattr(Progress, "write", write_and_fail)


def test_the_disk_may_fail_at_any_step(
    short_config: BuildConfig, tmp_path: Path, files_of: Any, our_threads: Any
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        steps = Steps(patch, lambda _: None)
        build(short_config, tmp_path / "whole.zarr")
    whole = files_of(tmp_path / "whole.zarr")
    assert steps.count > 100
    for step in range(1, steps.count + 1):
        store = tmp_path / f"store{step}.zarr"

        def fail(count: int, step: int = step) -> None:
            if count == step:
                raise Interruption(f"step {step}")

        with pytest.MonkeyPatch.context() as patch:
            Steps(patch, fail)
            with pytest.raises(Interruption):
                build(short_config, store)
        assert not our_threads()
        with pytest.MonkeyPatch.context() as patch:
            Steps(patch, lambda _: None)
            build(short_config, store, resume=True)
        assert files_of(store) == whole, f"failed at step {step}"
        shutil.rmtree(store)


def test_the_process_may_die_at_any_step(short_config: BuildConfig, tmp_path: Path, files_of: Any) -> None:
    """What is on disk at a step, without what buffers hold, is what a killed process leaves."""
    store = tmp_path / "whole.zarr"
    with pytest.MonkeyPatch.context() as patch:
        steps = Steps(patch, lambda step: shutil.copytree(store, tmp_path / f"died{step}.zarr"))
        build(short_config, store)
    whole = files_of(store)
    for step in range(1, steps.count + 1):
        died = tmp_path / f"died{step}.zarr"
        with pytest.MonkeyPatch.context() as patch:
            Steps(patch, lambda _: None)
            build(short_config, died, resume=True)
        assert files_of(died) == whole, f"died at step {step}"
        shutil.rmtree(died)


def test_a_finished_store_is_not_run_again(config: BuildConfig, run: Any, tmp_path: Path, files_of: Any) -> None:
    first = run(config)
    before = files_of(tmp_path / "store.zarr")
    calls: list[Any] = []
    again = run(config, resume=True, on_progress=calls.append)
    assert again.manifest == first.manifest
    assert (again.new_rows, calls) == (0, [])
    assert files_of(tmp_path / "store.zarr") == before
    assert not (tmp_path / "store.zarr" / PROGRESS_FILE).exists()


def test_resume_starts_a_store_where_there_is_none(
    config: BuildConfig, run: Any, tmp_path: Path, files_of: Any
) -> None:
    run(config, "whole.zarr")
    (tmp_path / "empty.zarr").mkdir()
    for name in ("none.zarr", "empty.zarr", "new/folder.zarr"):
        run(config, name, resume=True)
        assert files_of(tmp_path / name) == files_of(tmp_path / "whole.zarr")
