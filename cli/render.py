"""How commands talk: results to stdout, everything else to stderr."""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import Console
    from rich.table import Table

__all__ = [
    "bytes_text",
    "decimal_bytes",
    "describe",
    "key_values",
    "percent",
    "print_json",
    "progress_bar",
    "recoding_progress",
    "seconds_text",
    "status_line",
    "stderr",
    "stdout",
]


def stdout() -> Console:
    """Return a console for results."""
    from rich.console import Console

    # A pipe has no width; 80 columns would break tables that a terminal shows whole.
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 120
    return Console(highlight=False, width=width)


def stderr() -> Console:
    """Return a console for talk and progress."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def print_json(content: Any) -> None:
    """Print a result as JSON."""
    click.echo(json.dumps(content, indent=2, allow_nan=False))


@contextmanager
def progress_bar(description: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar on stderr while the body runs; yields a function to call with units done and units in all."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit))
    with Progress(*columns, TimeRemainingColumn(), console=stderr(), transient=True) as bar:
        task = bar.add_task(description, total=None)

        def update(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield update


@contextmanager
def recoding_progress() -> Iterator[tuple[Callable[[int, int], None], Callable[[float], None]]]:
    """Show a bar of rows and, meanwhile, one of the codebooks that are being trained; yields what moves each."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[rate]}"))
    started = time.perf_counter()
    with Progress(*columns, TimeRemainingColumn(), console=stderr(), transient=True) as bar:
        task = bar.add_task("recoding", total=None, rate="")
        training = bar.add_task("training codebooks", total=1.0, visible=False, rate="")
        first: list[int] = []

        def update(done: int, total: int) -> None:
            first.append(done) if not first else None
            rate = (done - first[0]) / max(1e-9, time.perf_counter() - started)
            bar.update(task, completed=done, total=total, rate=f"{done:,} of {total:,} rows, {rate:,.0f} rows/s")

        yield update, lambda part: bar.update(training, completed=part, visible=part < 1.0)


@contextmanager
def status_line(description: str) -> Iterator[Callable[[str], None]]:
    """Show on stderr what is being done while the body runs; yields a function to call with the next step."""
    with stderr().status(description) as status:
        yield lambda step: status.update(f"{description}: {step}")


def key_values(title: str, pairs: list[tuple[str, str]]) -> Table:
    """Return a table of names and what they are."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", title_style="bold", show_header=False, box=None, pad_edge=False)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in pairs:
        table.add_row(name, Text(value))
    return table


def describe(content: Any) -> str:
    """Return a small JSON object as words: ``top_k 64, seed 0``."""
    if not isinstance(content, dict):
        return str(content)
    return ", ".join(f"{name} {value}" for name, value in content.items() if value is not None) or "–"


def bytes_text(count: float) -> str:
    """Return a number of bytes with a binary unit."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def decimal_bytes(count: float) -> str:
    """Return a number of bytes with a decimal unit, which is what disks and budgets are sold in."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.4g} PB"


def percent(share: float | None) -> str:
    """Return a share as percent; a dash for None."""
    return "–" if share is None else f"{share:.1%}"


def seconds_text(seconds: float) -> str:
    """Return a duration with a fitting unit."""
    for unit, factor in (("s", 1.0), ("ms", 1e3)):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"
