"""The files a reader has open: few, however many the store has."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

__all__ = ["OpenFiles"]


class _File(Protocol):
    @property
    def size(self) -> int: ...

    def close(self) -> None: ...


F = TypeVar("F", bound=_File)


class OpenFiles(Generic[F]):
    """Open files on demand and keep the most recently used ones.

    Safe to use from several threads. A forked child and an unpickled copy start with nothing open.

    Parameters
    ----------
    capacity
        Files kept open, at least one.
    max_bytes
        Sum of their sizes, which is what may be mapped into memory at a time; one file may be larger.
    """

    def __init__(self, capacity: int, max_bytes: int) -> None:
        self._capacity = max(1, capacity)
        self._max_bytes = max_bytes
        self._start()

    def _start(self) -> None:
        self._open: OrderedDict[Hashable, F] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {"_capacity": self._capacity, "_max_bytes": self._max_bytes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    def get(self, key: Hashable, open_file: Callable[[], F]) -> F:
        """Return the open file called ``key``; open it if it is not."""
        if self._process != os.getpid():
            self._start()
        with self._lock:
            file = self._open.get(key)
            if file is not None:
                self._open.move_to_end(key)
                return file
            file = open_file()
            self._open[key] = file
            self._bytes += file.size
            while len(self._open) > 1 and (len(self._open) > self._capacity or self._bytes > self._max_bytes):
                # Dropped, not closed: another thread may be reading it. The last reference unmaps the file.
                self._bytes -= self._open.popitem(last=False)[1].size
            return file

    def close(self) -> None:
        """Close everything."""
        with self._lock:
            for file in self._open.values():
                file.close()
            self._open.clear()
            self._bytes = 0
