"""Progress of a build on standard error."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from logitstore.build import BuildProgress

__all__ = ["build_progress"]


@contextmanager
def build_progress() -> Iterator[Callable[[BuildProgress], None]]:
    """Show a bar; what is yielded moves it."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.completed:,.0f} tokens"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[rates]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    started = time.perf_counter()
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("build", total=None, rates="loading the teacher")

        def report(progress: BuildProgress) -> None:
            nonlocal started
            if progress.tokens == progress.new_tokens == 0:
                started = time.perf_counter()
            seconds = max(1e-9, time.perf_counter() - started)
            rates = [f"{progress.new_tokens / seconds:,.0f} tokens/s", f"{progress.entries / seconds:,.0f} entries/s"]
            if progress.bytes:
                rates.append(f"{progress.bytes / progress.written_rows:,.0f} bytes/token")
            if progress.training is not None:
                rates.append(f"codebooks {progress.training:.0%}")
            bar.update(task, completed=progress.tokens, total=progress.total_tokens, rates=", ".join(rates))

        yield report
