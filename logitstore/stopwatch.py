"""Where the time of a long run goes: seconds per stage, summed over threads."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Stopwatch"]


class Stopwatch:
    """Sum the seconds that stages take.

    Examples
    --------
    >>> watch = Stopwatch()
    >>> with watch.measure("encode"):
    ...     pass
    >>> sorted(watch.seconds())
    ['encode']
    """

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._lock = threading.Lock()

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Add the duration of the block to a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(stage, time.perf_counter() - start)

    def add(self, stage: str, seconds: float) -> None:
        """Add seconds that were measured otherwise."""
        with self._lock:
            self._seconds[stage] = self._seconds.get(stage, 0.0) + seconds

    def seconds(self) -> dict[str, float]:
        """Return the sums so far."""
        with self._lock:
            return dict(self._seconds)
