"""Windows of documents in, a store out: three threads and a pool, joined by short queues.

*reader* reads and cuts windows → *main* runs the teacher, which reads or writes, and the selection → *writer* puts
rows in order, has the pool encode them, and commits shards. Each waits for the next when its queue is full, so memory
is bounded.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from logitstore.build.assemble import Assembler
from logitstore.build.encode import ChunkEncoder
from logitstore.build.relay import Relay, Stopped, Worker, run_sender
from logitstore.build.windows import Cursor, Window
from logitstore.container.progress import Progress
from logitstore.container.writer import StoreWriter
from logitstore.errors import InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from logitstore.build.extract import ExtractedBatch, Extractor
    from logitstore.container.manifest import Manifest
    from logitstore.corpus import CorpusCounters
    from logitstore.stopwatch import Stopwatch

__all__ = ["BuildProgress", "write_store"]

_WINDOWS_AHEAD = 1
_BATCHES_BEHIND = 4


@dataclass(frozen=True)
class BuildProgress:
    """How far a build is.

    Attributes
    ----------
    tokens, total_tokens
        Tokens read or written by the teacher or found committed, and an estimate of all; None while nothing is known.
    new_tokens
        Tokens the teacher has read or written in this run.
    written_rows, entries, bytes
        Of this run alone: rows handed to the writer, entries they keep, bytes written so far.
    committed_rows
        Rows that survive a crash.
    training
        Part done, 0 to 1, of the codebooks that are being trained for the next rows; None while none are.
    """

    tokens: int
    total_tokens: int | None
    new_tokens: int
    written_rows: int
    entries: int
    bytes: int
    committed_rows: int
    training: float | None = None


def write_store(
    out: Path,
    manifest: Manifest,
    extractor: Extractor,
    windows: Callable[[Cursor], Iterator[Window]],
    counters: CorpusCounters,
    watch: Stopwatch,
    *,
    holds_maximum: bool = True,
    workers: int = 2,
    on_progress: Callable[[BuildProgress], None] | None = None,
) -> Manifest:
    """Run the teacher over windows and store what it says.

    Parameters
    ----------
    out
        Directory of the store, empty or with an unfinished one to go on with.
    manifest
        What the store is.
    extractor
        Teacher and selection; where its entries stay on the device, they are encoded there.
    windows
        Called in a thread with where to start; gives the windows from there on.
    counters
        What was read of the corpus so far, for estimates.
    watch
        Gets the seconds of the stages.
    holds_maximum
        Whether every row keeps its most probable id.
    workers
        Threads that encode.
    on_progress
        Called now and then, by one thread at a time.

    Raises
    ------
    InvalidArgumentError
        There was no document.
    CorruptDataError
        The teacher's rows break a rule.
    """
    encoder = None
    if extractor.gathers:
        encoder = ChunkEncoder(manifest, Progress.read(out).rows, holds_maximum=holds_maximum, watch=watch)
    with StoreWriter(
        out, manifest, workers=workers, holds_maximum=holds_maximum, watch=watch,
        coded=None if encoder is None else encoder.chunks,
    ) as writer:  # fmt: skip
        report = _one_at_a_time(on_progress or _ignore)
        committed = writer.progress.rows
        writer.on_training = lambda part: report(_progress(extractor, writer, counters, committed, part))
        _run(extractor, encoder, writer, windows, counters, watch, report)
        extractor.clock.finish()
        with watch.measure("write"):
            return writer.finish()


def _run(
    extractor: Extractor,
    encoder: ChunkEncoder | None,
    writer: StoreWriter,
    windows: Callable[[Cursor], Iterator[Window]],
    counters: CorpusCounters,
    watch: Stopwatch,
    on_progress: Callable[[BuildProgress], None],
) -> None:
    committed = writer.progress.rows
    start = Cursor(**writer.progress.cursor) if writer.progress.cursor else Cursor()
    writer.rewind(start.document, start.row)

    arriving: Relay[Window] = Relay(_WINDOWS_AHEAD)
    rows: Relay[Window | ExtractedBatch] = Relay(_BATCHES_BEHIND)
    reader = run_sender(arriving, lambda: windows(start), "logitstore-read")
    outcome: list[BaseException] = []
    sink = Worker(lambda: _write(rows, encoder, writer, committed, outcome), "logitstore-write")
    try:
        on_progress(_progress(extractor, writer, counters, committed))
        for window in _arriving(arriving, watch):
            for item in extractor.run(window, committed):
                if item is not None:
                    _send(rows, item, watch)
                on_progress(_progress(extractor, writer, counters, committed))
        rows.end()
        sink.wait()
    except Stopped:
        pass  # the writer failed: its error is in `outcome`
    except BaseException:
        rows.stop()
        raise
    finally:
        arriving.stop()
        reader.wait()
        sink.wait()
    if outcome:
        raise outcome[0]
    if writer.rows == 0:
        raise InvalidArgumentError("the corpus holds no document with any text")
    on_progress(_progress(extractor, writer, counters, committed))


def _arriving(windows: Relay[Window], watch: Stopwatch) -> Iterator[Window]:
    arriving = iter(windows)
    while True:
        with watch.measure("starve"):
            window = next(arriving, None)
        if window is None:
            return
        yield window


def _send(rows: Relay[Window | ExtractedBatch], item: Window | ExtractedBatch, watch: Stopwatch) -> None:
    with watch.measure("wait"):
        rows.put(item)


def _write(
    rows: Relay[Window | ExtractedBatch],
    encoder: ChunkEncoder | None,
    writer: StoreWriter,
    committed: int,
    outcome: list[BaseException],
) -> None:
    try:
        for _ in _written(rows, encoder, writer, committed):
            pass
        if encoder is not None:
            encoder.finish()
    except BaseException as error:
        outcome.append(error)
        rows.stop()


def _written(
    rows: Relay[Window | ExtractedBatch], encoder: ChunkEncoder | None, writer: StoreWriter, committed: int
) -> Iterator[None]:
    manifest = writer.manifest
    assembler: Assembler | None = None
    for item in rows:
        if isinstance(item, Window):
            assembler = Assembler(
                item,
                slots=manifest.slots,
                counts=manifest.has_counts,
                temperatures=len(manifest.temperatures),
                committed_rows=committed,
                coded=encoder is not None,
            )
            ready = assembler.ready()
        else:
            assert assembler is not None
            assembler.require_sound(item)
            if encoder is not None and item.gathered is not None:
                encoder.add(item.gathered)
            ready = assembler.add(item)
        for document, kept in ready:
            writer.append(document, kept, assembler.window.cursor.to_json())
            yield


def _progress(
    extractor: Extractor, writer: StoreWriter, counters: CorpusCounters, committed: int, training: float | None = None
) -> BuildProgress:
    new = extractor.tokens
    estimate = extractor.estimated_rows(counters)
    return BuildProgress(
        tokens=committed + new,
        total_tokens=None if estimate is None else estimate + writer.rewound_rows,
        new_tokens=new,
        written_rows=max(0, writer.rows - committed),
        entries=writer.new_entries,
        bytes=writer.new_bytes,
        committed_rows=writer.progress.rows,
        training=training,
    )


def _one_at_a_time(report: Callable[[BuildProgress], None]) -> Callable[[BuildProgress], None]:
    lock = threading.Lock()

    def locked(progress: BuildProgress) -> None:
        with lock:
            report(progress)

    return locked


def _ignore(_: BuildProgress) -> None:
    return
