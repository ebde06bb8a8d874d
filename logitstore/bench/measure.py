"""How things are measured: contenders of a case take turns; every figure is a median, and stands beside its bound."""

from __future__ import annotations

import statistics
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from logitstore.bench.sizes import Sizes

__all__ = ["Case", "Clock", "Contender", "DeviceBench", "Figure", "Goal", "Setting", "Verdict", "copy_speed", "measure"]

_FLUSH_BYTES = 2**28
"""Written before each turn, so that no contender finds its input in the cache."""


class Setting(NamedTuple):
    """What a case is made for: sizes, a device, and an empty folder for what it writes."""

    sizes: Sizes
    device: torch.device
    folder: Path


@dataclass(frozen=True)
class Contender:
    """A name, and what to run; the result is dropped. What prepares a turn is not measured."""

    name: str
    run: Callable[[], object]
    prepare: Callable[[], object] = lambda: None


@dataclass(frozen=True)
class Goal:
    """What the first contender of a case is to reach.

    Attributes
    ----------
    limit
        Of seconds and memory: at most so many times what the other takes. Of entries a second: at least as many.
    than
        Name of the other contender, who may be missing; None: the bound.
    of
        What counts.
    """

    limit: float
    than: str | None = None
    of: Literal["seconds", "peak_bytes", "entries_per_second"] = "seconds"

    @property
    def asked(self) -> str:
        """What is asked for, in words."""
        if self.of == "entries_per_second":
            return f"at least {self.limit / 1e9:g} G entries/s"
        what = "time" if self.of == "seconds" else "memory"
        return f"{what} at most {self.limit:g} times that of {self.than or 'the bound'}"


@dataclass(frozen=True)
class Case:
    """Contenders for the same work, the first of which is ours.

    Attributes
    ----------
    name
        Of the work.
    bound
        What the bound is: "one read of the logits", say.
    contenders
        Who does it.
    goals
        What ours is to reach.
    bytes
        What must be moved at least: counts as the time that a copy takes to move as much.
    least
        Work that is a part of the bound as it is measured, of a contender or of its own.
    entries
        Entries that are worked on; an entry is an id and its value.
    long
        A turn takes seconds and more than the device: it is timed by the wall clock, half as often.
    """

    name: str
    bound: str
    contenders: list[Contender]
    goals: tuple[Goal, ...] = ()
    bytes: int = 0
    least: Contender | None = None
    entries: int | None = None
    long: bool = False


@dataclass(frozen=True)
class Figure:
    """Median seconds of one contender, those of the bound, and the bytes it took on the device at most (or None).

    And of work on entries, how many a second.
    """

    case: str
    contender: str
    seconds: float
    bound: str
    bound_seconds: float
    peak_bytes: int | None
    entries_per_second: float | None = None

    @property
    def times_bound(self) -> float:
        """How many times as long as the bound."""
        return self.seconds / self.bound_seconds


@dataclass(frozen=True)
class Verdict:
    """What was asked for in a case, what was found, and whether that will do; None: not measured."""

    case: str
    asked: str
    found: float | None
    reached: bool | None


@dataclass(frozen=True)
class DeviceBench:
    """All figures, the device's name, and the bytes a second that a copy reads and writes, both counted."""

    device: str
    copy_bytes_per_second: float
    sizes: dict[str, Any]
    figures: list[Figure] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON."""
        figures = [asdict(figure) | {"times_bound": figure.times_bound} for figure in self.figures]
        return asdict(self) | {"figures": figures}


class Clock:
    """Seconds and peak memory of one call: by CUDA events on a GPU, else by the wall clock."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._cuda = device.type == "cuda"
        self._flush = torch.empty(_FLUSH_BYTES if self._cuda else 0, dtype=torch.uint8, device=device)

    def measure(self, contender: Contender, *, by_wall: bool = False) -> tuple[float, int | None]:
        """Let a contender take its turn; ``by_wall``: until the host is done as well, by its own clock."""
        contender.prepare()
        if not self._cuda:
            start = time.perf_counter()
            contender.run()
            return time.perf_counter() - start, None
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._flush.zero_()
        torch.cuda.synchronize(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        before = torch.cuda.memory_allocated(self._device)
        start = time.perf_counter()
        begin.record()
        contender.run()
        end.record()
        end.synchronize()
        wall = time.perf_counter() - start
        peak = torch.cuda.max_memory_allocated(self._device) - before
        return wall if by_wall else float(begin.elapsed_time(end)) / 1000, peak


def copy_speed(sizes: Sizes, device: torch.device, clock: Clock) -> float:
    """Return the bytes a second that a copy of all logits reads and writes."""
    source = torch.zeros(sizes.rows * sizes.vocab_size, dtype=sizes.dtype, device=device)
    target = torch.empty_like(source)
    ((seconds, _),) = _medians([Contender("copy", lambda: target.copy_(source))], clock, sizes.rounds, by_wall=False)
    return 2 * source.nbytes / seconds


def measure(case: Case, clock: Clock, rounds: int, speed: float) -> tuple[list[Figure], list[Verdict]]:
    """Let the contenders take turns, and say what they reached.

    Parameters
    ----------
    case
        The work.
    clock
        Of the device.
    rounds
        Turns that count.
    speed
        Bytes a second of a copy.
    """
    taking_turns = [*case.contenders]
    if case.least is not None and case.least not in taking_turns:
        taking_turns.append(case.least)
    rounds = -(-rounds // 2) if case.long else rounds
    measured = dict(zip(taking_turns, _medians(taking_turns, clock, rounds, by_wall=case.long), strict=True))
    bound = case.bytes / speed + (0.0 if case.least is None else measured[case.least][0])
    figures = []
    for contender in case.contenders:
        seconds, peak = measured[contender]
        rate = None if case.entries is None else case.entries / seconds
        figures.append(Figure(case.name, contender.name, seconds, case.bound, bound, peak, rate))
    return figures, [_verdict(case, goal, figures) for goal in case.goals]


def _verdict(case: Case, goal: Goal, figures: list[Figure]) -> Verdict:
    ours = figures[0]
    found: float | None = None
    if goal.of == "entries_per_second":
        found = ours.entries_per_second
        return Verdict(case.name, goal.asked, found, None if found is None else found >= goal.limit)
    if goal.than is None:
        found = ours.times_bound
    elif other := next((figure for figure in figures if figure.contender == goal.than), None):
        mine, its = getattr(ours, goal.of), getattr(other, goal.of)
        found = mine / its if mine is not None and its else None
    return Verdict(case.name, goal.asked, found, None if found is None else found <= goal.limit)


def _medians(
    contenders: list[Contender], clock: Clock, rounds: int, *, by_wall: bool
) -> list[tuple[float, int | None]]:
    turns: list[list[tuple[float, int | None]]] = [[] for _ in contenders]
    for turn in range(rounds + 1):
        for measured, contender in zip(turns, contenders, strict=True):
            result = clock.measure(contender, by_wall=by_wall)
            if turn:  # the first one compiles and warms up
                measured.append(result)
    return [(statistics.median(seconds for seconds, _ in measured), measured[0][1]) for measured in turns]
