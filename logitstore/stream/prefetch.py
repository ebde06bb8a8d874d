"""Batches made ahead by threads, handed out in order."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

__all__ = ["prefetched"]

Result = TypeVar("Result")


def prefetched(tasks: Iterator[Callable[[], Result]], *, ahead: int, threads: int) -> Generator[Result]:
    """Yield the results of tasks in order while threads work on the next ones.

    Threads start with the first result that is asked for, and stop when the generator ends or is closed.

    Parameters
    ----------
    tasks
        Asked for one at a time, by the caller's thread. An error it raises takes the place of a result.
    ahead
        Results that may be waiting or in the making at any time; 0 makes each when it is asked for, without threads.
    threads
        How many work.

    Raises
    ------
    Exception
        Whatever a task raises, in the place of its result.

    Examples
    --------
    >>> list(prefetched(iter([lambda: 1, lambda: 2]), ahead=2, threads=1))
    [1, 2]
    """
    if not ahead:
        for task in tasks:
            yield task()
        return
    pool = ThreadPoolExecutor(threads, thread_name_prefix="logitstore")
    try:
        waiting: deque[Future[Result]] = deque()
        more = True
        while True:
            while more and len(waiting) < ahead:
                more = _submit(tasks, pool, waiting)
            if not waiting:
                return
            result = waiting.popleft().result()
            # Before the result is used, so that the threads have work meanwhile.
            more = more and _submit(tasks, pool, waiting)
            yield result
            del result
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _submit(tasks: Iterator[Callable[[], Result]], pool: ThreadPoolExecutor, waiting: deque[Future[Result]]) -> bool:
    """Put the next task to work; return whether there may be another."""
    try:
        task = next(tasks, None)
    except Exception as error:
        # It is raised when its turn comes, behind results that are sound.
        failed: Future[Result] = Future()
        failed.set_exception(error)
        waiting.append(failed)
        return False
    if task is None:
        return False
    waiting.append(pool.submit(task))
    return True
