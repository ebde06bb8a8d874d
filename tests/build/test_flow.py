"""The parts between the threads: windows, relays, and how much may wait in them."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from logitstore.build import flow
from logitstore.build import run as build_run
from logitstore.build.relay import Relay, Stopped, run_sender
from logitstore.build.windows import Cursor, Window, iter_windows
from logitstore.container.writer import StoreWriter
from logitstore.corpus import CorpusConfig, CorpusCounters
from logitstore.teacher import load_teacher

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def collect(corpus: CorpusConfig, tokenizer: Any, start: Cursor = Cursor()) -> list[Window]:  # noqa: B008 - frozen
    return list(iter_windows(corpus, tokenizer, 50, start, CorpusCounters()))


def described(windows: list[Window]) -> list[Any]:
    return [(w.cursor, [(d.key, d.parent, d.tokens.tolist()) for d in w.documents]) for w in windows]


def test_windows_hold_all_documents_and_start_again_at_any_cursor(
    configure: Any, write_corpus: Any, texts: Any
) -> None:
    tokenizer = load_teacher(configure("x").teacher).tokenizer
    corpus = CorpusConfig(data=(write_corpus([*texts(4, 60), "", *texts(3, 2, 40, 7)]),), seq_len=30)
    windows = collect(corpus, tokenizer)
    assert any(window.cursor.piece for window in windows)
    rows = documents = 0
    for window in windows:
        assert (window.cursor.document, window.cursor.row) == (documents, rows)
        assert window.first_rows == [rows + sum(len(d.tokens) for d in window.documents[:i])
                                     for i in range(len(window.documents) + 1)]  # fmt: skip
        assert window is windows[-1] or window.first_rows[-1] - rows >= 50
        documents, rows = documents + len(window.documents), window.first_rows[-1]
    for number, window in enumerate(windows):
        assert described(collect(corpus, tokenizer, window.cursor)) == described(windows[number:])


def test_a_cursor_goes_through_json() -> None:
    cursor = Cursor(record=3, piece=1, document=7, row=90)
    assert Cursor(**cursor.to_json()) == cursor


def test_a_relay_hands_over_everything_in_order() -> None:
    relay: Relay[int] = Relay(2)
    thread = run_sender(relay, lambda: iter(range(100)), "sender")
    assert list(relay) == list(range(100))
    thread.wait()


def test_a_relay_hands_over_an_error_behind_the_items() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise KeyError("broken")

    relay: Relay[int] = Relay(5)
    thread = run_sender(relay, items, "sender")
    received = []
    with pytest.raises(KeyError, match="broken"):
        received.extend(relay)
    thread.wait()
    # What `extend` had taken when the error came is in the list.
    assert received == [1]


def test_a_stopped_relay_ends_both_sides() -> None:
    relay: Relay[int] = Relay(1)
    thread = run_sender(relay, lambda: iter(range(10**9)), "sender")
    assert next(iter(relay)) == 0
    relay.stop()
    thread.wait()
    assert list(relay) == []
    with pytest.raises(Stopped):
        relay.put(1)
    relay.end()


@pytest.mark.usefixtures("load_once")
def test_a_slow_writer_holds_up_the_teacher_and_the_reader(
    configure: Any, write_corpus: Any, texts: Any, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a fast teacher would fill the memory."""
    monkeypatch.setattr("logitstore.build.config._WINDOW_BYTES", 60 * 6 * 8)
    lock = threading.Lock()
    ahead = {"windows": 0, "batches": 0}
    most = dict(ahead)

    def count(what: str, step: int) -> None:
        with lock:
            ahead[what] += step
            most[what] = max(most[what], ahead[what])

    windows, batches = iter_windows, build_run.Extractor.batches
    add, append = flow.Assembler.add, StoreWriter.append

    def counted_windows(*arguments: Any) -> Iterator[Window]:
        for window in windows(*arguments):
            count("windows", 1)
            yield window

    def counted_batches(self: Any, window: Window, committed: int) -> Iterator[Any]:
        count("windows", -1)
        for batch in batches(self, window, committed):
            count("batches", 1)
            yield batch

    def counted_add(self: Any, batch: Any) -> Iterator[Any]:
        count("batches", -1)
        return add(self, batch)

    def slow_append(self: Any, *arguments: Any) -> None:
        time.sleep(0.01)
        append(self, *arguments)

    monkeypatch.setattr(build_run, "iter_windows", counted_windows)
    monkeypatch.setattr(build_run.Extractor, "batches", counted_batches)
    monkeypatch.setattr(flow.Assembler, "add", counted_add)
    monkeypatch.setattr(StoreWriter, "append", slow_append)
    run(configure(write_corpus(texts(*[6] * 60)), tokens_per_batch=50))
    # What waits in the queue, and one in the hands of whoever puts it there.
    assert most["windows"] <= flow._WINDOWS_AHEAD + 1 + 1
    assert most["batches"] <= flow._BATCHES_BEHIND + 1
    assert most["batches"] > 1
