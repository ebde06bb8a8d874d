"""The build, from a configuration to a finished store and its summary; `logitstore.build.flow` moves the rows."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Literal

from logitstore.build.extract import Extractor
from logitstore.build.flow import write_store
from logitstore.build.generate import GeneratingExtractor
from logitstore.build.generation import iter_prompt_windows
from logitstore.build.identity import require_same_build, start_manifest, versions
from logitstore.build.record import append_run
from logitstore.build.windows import iter_windows
from logitstore.container.manifest import Manifest, is_store
from logitstore.container.progress import PROGRESS_FILE
from logitstore.container.writer import prepare_directory, refuse_directory
from logitstore.corpus import CorpusCounters
from logitstore.errors import InvalidArgumentError
from logitstore.stopwatch import Stopwatch
from logitstore.teacher import load_teacher

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from logitstore.build.config import BuildConfig
    from logitstore.build.flow import BuildProgress
    from logitstore.build.windows import Cursor, Window

__all__ = ["BuildSummary", "build"]


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
        ``check`` summed over the threads that do it; ``train`` of codebooks; ``write``; ``starve`` and ``wait``, in
        which the teacher waited for text and for the writer.
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
    encode: Literal["host", "device"] = "host",
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
    encode
        ``"host"``: by those threads. ``"device"``: where the teacher is, so that what crosses over is compressed; the
        bytes are the same. Entries of a window stay on the device meanwhile (256 MiB, or those of one batch; of a
        teacher that writes always those of one batch, for a moment twice), of as many windows as wait for the writer,
        about six. For the exact codec.
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
    if encode not in ("host", "device"):
        raise InvalidArgumentError(f"encode is 'host' or 'device', found {encode!r}")
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
    kind = Extractor if config.generation is None else GeneratingExtractor
    extractor = kind(teacher, config, watch, gather=encode == "device")
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
            manifest = write_store(
                out, manifest, extractor, partial(_windows, config, extractor, manifest.slots, counters), counters,
                watch, holds_maximum=config.selection.top_entries(manifest.vocab_size) > 0, workers=workers,
                on_progress=on_progress,
            )  # fmt: skip
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


def _windows(
    config: BuildConfig, extractor: Extractor, slots: int, counters: CorpusCounters, start: Cursor
) -> Iterator[Window]:
    if config.generation is not None:
        return iter_prompt_windows(config, extractor.tokenizer, start, counters)
    return iter_windows(config.corpus, extractor.tokenizer, config.window_tokens(slots), start, counters)
