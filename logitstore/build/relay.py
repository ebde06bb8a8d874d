"""Threads, and a bounded queue between two of them that carries errors as well as items."""

from __future__ import annotations

import queue
import threading
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Relay", "Stopped", "Worker", "run_sender"]

T = TypeVar("T")
_POLL_SECONDS = 0.1


class Stopped(Exception):  # noqa: N818 - not an error: the other side has no use for more
    """Raised in the sender once the relay was stopped."""


class Relay(Generic[T]):
    """Hand items from one thread to another, at most ``size`` waiting.

    Whoever waits looks up every tenth of a second, so that a stop, or Ctrl-C, is never missed.
    """

    def __init__(self, size: int) -> None:
        self._items: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(size)
        self._stopped = threading.Event()

    def put(self, item: T) -> None:
        """Hand over an item; waits while the queue is full. Raises `Stopped` once nobody takes any more."""
        self._put((item, None))

    def end(self, error: BaseException | None = None) -> None:
        """Say that nothing follows, or that the sender failed."""
        try:
            self._put((None, error))
        except Stopped:
            return

    def _put(self, entry: tuple[T | None, BaseException | None]) -> None:
        while not self._stopped.is_set():
            try:
                self._items.put(entry, timeout=_POLL_SECONDS)
            except queue.Full:
                continue
            return
        raise Stopped

    def stop(self) -> None:
        """Take no more items."""
        self._stopped.set()

    def __iter__(self) -> Iterator[T]:
        while not self._stopped.is_set():
            try:
                item, error = self._items.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                continue
            if error is not None:
                raise error
            if item is None:
                return
            yield item


class Worker:
    """A thread that says itself when it is done.

    Ctrl-C in the middle of ``Thread.join`` makes Python up to 3.12 take a running thread for a stopped one, and the
    next ``join`` returns at once; waiting for an event has no such trap.
    """

    def __init__(self, work: Callable[[], None], name: str) -> None:
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(work,), name=name, daemon=True)
        self._thread.start()

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        finally:
            self._done.set()

    def wait(self) -> None:
        """Return when the work is done; may be interrupted, and called again."""
        self._done.wait()
        self._thread.join()


def run_sender(relay: Relay[T], items: Callable[[], Iterator[T]], name: str) -> Worker:
    """Start a thread that puts everything ``items()`` yields into the relay."""

    def work() -> None:
        try:
            for item in items():
                relay.put(item)
        except Stopped:
            return
        except BaseException as error:
            relay.end(error)
        else:
            relay.end()

    return Worker(work, name)
