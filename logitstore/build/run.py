"""The build: three threads and a pool, joined by short queues.

*reader* tokenises and cuts windows → *main* runs the teacher, which reads or writes, and the selection → *writer* puts
rows in order, has the pool encode them, and commits shards. Each waits for the next when its queue is full, so memory
is bounded.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from logitstore.build.assemble import Assembler
from logitstore.build.extract import ExtractedBatch, Extractor
from logitstore.build.generate import GeneratingExtractor
from logitstore.build.generation import iter_prompt_windows
from logitstore.build.identity import require_same_build, start_manifest, versions
from logitstore.build.record import append_run
from logitstore.build.relay import Relay, Stopped, Worker, run_sender
from logitstore.build.windows import Cursor, Window, iter_windows
from logitstore.container.manifest import Manifest, is_store
from logitstore.container.progress import PROGRESS_FILE
from logitstore.container.writer import StoreWriter, prepare_directory, refuse_directory
from logitstore.corpus import CorpusCounters
from logitstore.errors import InvalidArgumentError
from logitstore.stopwatch import Stopwatch
from logitstore.teacher import load_teacher

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from logitstore.build.config import BuildConfig

__all__ = ["BuildProgress", "BuildSummary", "build"]

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


@dataclass(frozen=True)
class BuildSummary:
    """What a finished build made.

    Attributes
    ----------
    manifest
        The store's.
    seconds
        Wall-clock seconds of this run.
    stage_seconds
        Seconds by stage: ``load`` of the teacher; ``forward`` and ``selection`` on the device; ``encode`` and
        ``check`` summed over the pool's threads; ``train`` of codebooks; ``write``; ``starve`` and ``wait``, in which
        the teacher waited for text and for the writer.
    new_rows
        Rows computed by this run; fewer than all when it was resumed.
    kept_mass, perplexity
        Mean over the rows computed by this run; NaN if there were none.
    counters
        What was read of the corpus in this run.
    """

    manifest: Manifest
    seconds: float
    stage_seconds: dict[str, float]
    new_rows: int
    kept_mass: float
    perplexity: float
    counters: CorpusCounters

    @property
    def stage_shares(self) -> dict[str, float]:
        """Seconds by stage over those of the run. Stages run side by side: together they may pass 1."""
        return {name: seconds / self.seconds for name, seconds in self.stage_seconds.items()}

    @property
    def teacher_waited(self) -> float:
        """Seconds in which the teacher had nothing to do: no text yet, or the writer behind."""
        return self.stage_seconds.get("starve", 0.0) + self.stage_seconds.get("wait", 0.0)


def build(
    config: BuildConfig,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    workers: int = 2,
    command: str = "",
    on_progress: Callable[[BuildProgress], None] | None = None,
) -> BuildSummary:
    """Run a teacher over a corpus, or have it go on with prompts, and store what it says.

    Parameters
    ----------
    config
        What to do.
    out
        Directory of the store.
    resume
        Go on with the unfinished store at ``out``; start one if there is none.
    overwrite
        Replace a store at ``out``.
    workers
        Threads that encode.
    command
        Kept in ``build.json``.
    on_progress
        Called now and then, by one thread at a time.

    Raises
    ------
    InvalidArgumentError
        Something does not fit: arguments, tokenizer and model, a store that exists or was started otherwise.
    CorruptDataError
        The corpus cannot be read, or the teacher's rows break a rule.

    Examples
    --------
    >>> build(BuildConfig(teacher, corpus, Selection(top_k=64)), Path("teacher.zarr"))  # doctest: +SKIP
    """
    if resume and overwrite:
        raise InvalidArgumentError("resume goes on with a store, overwrite replaces it; ask for one of them")
    started = datetime.now(UTC)
    clock = time.perf_counter()
    going_on = resume and is_store(out)
    if not going_on:
        refuse_directory(out, overwrite=overwrite)
    watch = Stopwatch()
    with watch.measure("load"):
        teacher = load_teacher(config.teacher)
    config = config.with_seq_len_of(teacher.max_length)
    manifest = start_manifest(config, teacher)
    extractor = (Extractor if config.generation is None else GeneratingExtractor)(teacher, config, watch)
    if going_on:
        found = Manifest.read(out)
        require_same_build(found, manifest, out)
        manifest = found
    else:
        prepare_directory(out, overwrite=overwrite)

    counters = CorpusCounters()
    finished = False
    try:
        if manifest.complete:
            # A crash right behind the last manifest leaves it.
            (out / PROGRESS_FILE).unlink(missing_ok=True)
        else:
            report = _one_at_a_time(on_progress or _ignore)
            manifest = _write_store(config, out, manifest, extractor, counters, watch, workers, report)
        finished = True
    finally:
        seconds = time.perf_counter() - clock
        if is_store(out):
            run = {
                "command": command,
                "started": started.isoformat(timespec="seconds"),
                "finished": finished,
                "seconds": round(seconds, 3),
                "rows_computed": extractor.tally.rows,
                "stage_seconds": {name: round(value, 3) for name, value in watch.seconds().items()},
                "versions": versions(),
            }
            append_run(out, run)
    return BuildSummary(
        manifest=manifest,
        seconds=seconds,
        stage_seconds=watch.seconds(),
        new_rows=extractor.tally.rows,
        kept_mass=extractor.tally.kept_mass,
        perplexity=extractor.tally.perplexity,
        counters=counters,
    )


def _write_store(
    config: BuildConfig,
    out: Path,
    manifest: Manifest,
    extractor: Extractor,
    counters: CorpusCounters,
    watch: Stopwatch,
    workers: int,
    on_progress: Callable[[BuildProgress], None],
) -> Manifest:
    holds_maximum = config.selection.top_entries(manifest.vocab_size) > 0
    with StoreWriter(out, manifest, workers=workers, holds_maximum=holds_maximum, watch=watch) as writer:
        committed = writer.progress.rows
        writer.on_training = lambda part: on_progress(_progress(extractor, writer, counters, committed, part))
        _run(config, extractor, writer, counters, watch, on_progress)
        extractor.clock.finish()
        with watch.measure("write"):
            return writer.finish()


def _run(
    config: BuildConfig,
    extractor: Extractor,
    writer: StoreWriter,
    counters: CorpusCounters,
    watch: Stopwatch,
    on_progress: Callable[[BuildProgress], None],
) -> None:
    committed = writer.progress.rows
    start = Cursor(**writer.progress.cursor) if writer.progress.cursor else Cursor()
    writer.rewind(start.document, start.row)

    windows: Relay[Window] = Relay(_WINDOWS_AHEAD)
    rows: Relay[Window | ExtractedBatch] = Relay(_BATCHES_BEHIND)
    reader = run_sender(
        windows,
        lambda: _windows(config, extractor, writer.manifest.slots, start, counters),
        "logitstore-read",
    )
    outcome: list[BaseException] = []
    sink = Worker(lambda: _write(rows, writer, committed, outcome), "logitstore-write")
    try:
        on_progress(_progress(extractor, writer, counters, committed))
        for window in _arriving(windows, watch):
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
        windows.stop()
        reader.wait()
        sink.wait()
    if outcome:
        raise outcome[0]
    if writer.rows == 0:
        raise InvalidArgumentError("the corpus holds no document with any text")
    on_progress(_progress(extractor, writer, counters, committed))


def _windows(
    config: BuildConfig, extractor: Extractor, slots: int, start: Cursor, counters: CorpusCounters
) -> Iterator[Window]:
    if config.generation is not None:
        return iter_prompt_windows(config, extractor.tokenizer, start, counters)
    return iter_windows(config.corpus, extractor.tokenizer, config.window_tokens(slots), start, counters)


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
    rows: Relay[Window | ExtractedBatch], writer: StoreWriter, committed: int, outcome: list[BaseException]
) -> None:
    try:
        for _ in _written(rows, writer, committed):
            pass
    except BaseException as error:
        outcome.append(error)
        rows.stop()


def _written(rows: Relay[Window | ExtractedBatch], writer: StoreWriter, committed: int) -> Iterator[None]:
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
            )
            ready = assembler.ready()
        else:
            assert assembler is not None
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
