"""Batches made ahead: in order, not too many, and with errors where they belong."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from logitstore.stream.prefetch import prefetched


class Tasks:
    """Numbers, some of which fail, and how many were begun."""

    def __init__(self, count: int, failing: int = -1) -> None:
        self.handed_out = 0
        self._count = count
        self._failing = failing

    def __iter__(self) -> Any:
        for number in range(self._count):
            self.handed_out += 1
            yield lambda number=number: self._work(number)

    def _work(self, number: int) -> int:
        if number == self._failing:
            raise KeyError(number)
        return number


@pytest.mark.parametrize("ahead", [0, 1, 2, 7, 100])
@pytest.mark.parametrize("threads", [1, 3])
def test_results_come_in_order(ahead: int, threads: int) -> None:
    assert list(prefetched(iter(Tasks(50)), ahead=ahead, threads=threads)) == list(range(50))
    assert list(prefetched(iter(Tasks(0)), ahead=ahead, threads=threads)) == []


def test_later_results_wait_for_earlier_ones() -> None:
    second_done = threading.Event()

    def first() -> str:
        assert second_done.wait(60)
        return "first"

    def second() -> str:
        second_done.set()
        return "second"

    assert list(prefetched(iter([first, second]), ahead=2, threads=2)) == ["first", "second"]


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_no_more_is_made_ahead_than_was_said(ahead: int) -> None:
    tasks = Tasks(50)
    made = prefetched(iter(tasks), ahead=ahead, threads=2)
    assert tasks.handed_out == 0
    for number in range(10):
        assert next(made) == number
        assert tasks.handed_out == number + 1 + ahead
    made.close()


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_an_error_comes_after_what_was_sound(ahead: int) -> None:
    made = prefetched(iter(Tasks(20, failing=5)), ahead=ahead, threads=2)
    assert [next(made) for _ in range(5)] == list(range(5))
    with pytest.raises(KeyError, match="5"):
        next(made)
    assert next(made, None) is None


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_so_does_an_error_of_planning(ahead: int) -> None:
    def tasks() -> Any:
        yield lambda: 1
        raise OSError("no plan")

    made = prefetched(tasks(), ahead=ahead, threads=1)
    assert next(made) == 1
    with pytest.raises(OSError, match="no plan"):
        next(made)


def test_threads_are_gone_when_it_is_closed() -> None:
    # Other tests' stores keep threads for a while.
    others = set(threading.enumerate())

    def ours() -> set[threading.Thread]:
        return set(threading.enumerate()) - others

    made = prefetched(iter(Tasks(50)), ahead=4, threads=3)
    assert not ours()
    next(made)
    assert ours()
    made.close()
    assert not ours()
    made = prefetched(iter(Tasks(50)), ahead=4, threads=3)
    next(made)
    del made
    assert not ours()
    list(prefetched(iter(Tasks(5)), ahead=4, threads=3))
    assert not ours()
