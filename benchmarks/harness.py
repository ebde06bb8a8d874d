"""What every benchmark does: stay on one core, time contenders in turns, print a table."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_PACKAGES = ("logitstore", "numpy", "numba", "zarr", "numcodecs", "pyarrow", "blosc2", "pcodec")


def use_one_core() -> None:
    """Keep this process, and what it starts, on one core. Call it before the measured libraries are imported."""
    if hasattr(os, "sched_setaffinity"):
        # The last core: interrupts tend to go to the first one.
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    for name in ("OMP", "BLOSC", "NUMBA", "MKL", "OPENBLAS"):
        os.environ[f"{name}_NUM_THREADS"] = "1"


def machine() -> dict[str, str]:
    """Return what kind of machine this is, and the versions of what is measured."""
    model = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        model = names[0] if names else model
    versions = ", ".join(f"{name} {version(name)}" for name in _PACKAGES)
    return {"cpu": f"{model}, {os.cpu_count()} cores", "python": platform.python_version(), "versions": versions}


def in_turns(contenders: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each contender in each round; every other round goes through them backwards.

    Each is called once before the first round, so that nothing is compiled or first touched while the clock runs.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for call in contenders.values():
        call()
    for turn in range(rounds):
        for name, call in list(contenders.items())[:: 1 if turn % 2 == 0 else -1]:
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def median_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """Return the median over rounds of the quotients within each round."""
    return statistics.median(a / b for a, b in zip(numerators, denominators, strict=True))


def show(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print a table; numbers are given three or four digits, None is a dash."""
    table = Table(title=title, title_justify="left")
    for name, value in rows[0].items():
        table.add_column(name, justify="left" if isinstance(value, str) else "right")
    for row in rows:
        table.add_row(*(value if isinstance(value, str) else _digits(value) for value in row.values()))
    Console(width=160).print(table)


def write_json(path: Path | None, tables: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    if path is not None:
        path.write_text(json.dumps({"machine": machine(), **tables}, indent=1) + "\n")


def _digits(value: float | None) -> str:
    if value is None:
        return "–"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}" if value >= 1 else f"{value:.3g}"
