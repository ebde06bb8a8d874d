"""A build in a process of its own that is told to stop, or killed, goes on in another one."""

from __future__ import annotations

import pickle
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

import logitstore.build.config
from logitstore.build import build
from logitstore.build.relay import Relay
from logitstore.container.progress import Progress
from logitstore.container.writer import StoreWriter

if TYPE_CHECKING:
    from pathlib import Path

WINDOW_BYTES = 150 * 6 * 4

BUILD = """
import pickle, sys, threading
from pathlib import Path

import torch
import logitstore.build.config
from logitstore.build import build

torch.set_num_threads(1)
logitstore.build.config._WINDOW_BYTES = int(sys.argv[3])

def wait_after_three_shards(progress):
    if progress.committed_rows >= 192:
        print("waiting", flush=True)
        threading.Event().wait()

try:
    build(pickle.loads(Path(sys.argv[1]).read_bytes()), Path(sys.argv[2]), on_progress=wait_after_three_shards)
except KeyboardInterrupt:
    print([t.name for t in threading.enumerate() if t.name.startswith("logitstore")], flush=True)
    sys.exit(130)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=lambda number: number.name)
def test_a_build_survives_the_end_of_its_process(
    number: signal.Signals, configure: Any, write_corpus: Any, texts: Any, tmp_path: Path, files_of: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(logitstore.build.config, "_WINDOW_BYTES", WINDOW_BYTES)
    data = write_corpus(texts(30, 2, 9, 14, 1, 40, 5, 5, 12, 3, 21, 40, 40))
    config = configure(data, top_k=4, seq_len=50, tokens_per_batch=60, rows_per_shard=64)
    (tmp_path / "config").write_bytes(pickle.dumps(config))
    store = tmp_path / "store.zarr"
    command = [sys.executable, "-c", BUILD, str(tmp_path / "config"), str(store), str(WINDOW_BYTES)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "waiting\n"
            process.send_signal(number)
            rest = process.stdout.read()
            code = process.wait(timeout=60)
        finally:
            process.kill()
    if number == signal.SIGINT:
        assert (code, rest) == (130, "[]\n")
    else:
        assert code == -signal.SIGKILL
    assert Progress.read(store).rows >= 192
    summary = build(config, store, resume=True)
    assert 0 < summary.new_rows < summary.manifest.rows
    build(config, tmp_path / "whole.zarr")
    assert files_of(store) == files_of(tmp_path / "whole.zarr")


@pytest.mark.usefixtures("load_once")
def test_ctrl_c_while_the_last_rows_are_written_stops_the_writer_first(
    configure: Any, write_corpus: Any, texts: Any, tmp_path: Path, files_of: Any, our_threads: Any
) -> None:
    config = configure(write_corpus(texts(*[6] * 20)), top_k=4, tokens_per_batch=400, rows_per_shard=16)
    store = tmp_path / "store.zarr"
    everything_sent = threading.Event()
    appended: list[str] = []
    writing_at_close: list[str] = []
    end, append, close = Relay.end, StoreWriter.append, StoreWriter.close

    def tell_end(self: Relay[Any], error: BaseException | None = None) -> None:
        end(self, error)
        if threading.current_thread() is threading.main_thread():
            everything_sent.set()

    def interrupt_when_everything_is_sent(self: StoreWriter, *arguments: Any) -> None:
        everything_sent.wait()
        if not appended:
            # Long enough for the other thread to come to where it waits for this one.
            time.sleep(0.1)
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        appended.append(threading.current_thread().name)
        # Long enough for the interrupted thread to come to `close`, if nothing holds it.
        time.sleep(0.05)
        append(self, *arguments)

    def look_around(self: StoreWriter) -> None:
        writing_at_close.extend(name for name in our_threads() if name == "logitstore-write")
        close(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Relay, "end", tell_end)
        patch.setattr(StoreWriter, "append", interrupt_when_everything_is_sent)
        patch.setattr(StoreWriter, "close", look_around)
        with pytest.raises(KeyboardInterrupt):
            build(config, store)
    assert set(appended) == {"logitstore-write"}
    assert writing_at_close == []
    assert not our_threads()
    build(config, store, resume=True)
    build(config, tmp_path / "whole.zarr")
    assert files_of(store) == files_of(tmp_path / "whole.zarr")
