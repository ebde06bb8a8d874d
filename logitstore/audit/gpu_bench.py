"""What the kernels reach on a device, beside torch and others, and beside what memory or products allow at best.

Every figure is a median of turns that the contenders of a case take one after the other. To add a row, add a
`Contender` to a case, or a function that makes a `Case` to ``CASES``.
"""

from __future__ import annotations

import os
import statistics
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from logitstore.errors import InvalidArgumentError
from logitstore.kernels.choice import VARIABLE

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Case", "Contender", "DeviceBench", "Figure", "Sizes", "device_bench", "find_device"]

_ROUNDS = 7
_FLUSH_BYTES = 2**28
"""Written before each turn, so that no contender finds its input in the cache."""


@dataclass(frozen=True)
class Sizes:
    """What is measured: ``rows`` rows over ``vocab_size`` ids, hidden states of width ``hidden``, in ``dtype``."""

    rows: int = 4096
    vocab_size: int = 128_256
    hidden: int = 4096
    top_k: int = 64
    top_fraction: float = 0.05
    dtype: torch.dtype = torch.bfloat16


@dataclass(frozen=True)
class Contender:
    """A name, and what to run; the result is dropped."""

    name: str
    run: Callable[[], object]


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
    bytes
        What must be moved at least: the bound is the time that a copy takes to move as much. None: see ``least``.
    least
        Work that is measured as the bound instead.
    """

    name: str
    bound: str
    contenders: list[Contender]
    bytes: int | None = None
    least: Callable[[], object] | None = None


@dataclass(frozen=True)
class Figure:
    """Median seconds of one contender, those of the bound, and the bytes it took on the device at most (or None)."""

    case: str
    contender: str
    seconds: float
    bound: str
    bound_seconds: float
    peak_bytes: int | None

    @property
    def times_bound(self) -> float:
        """How many times as long as the bound."""
        return self.seconds / self.bound_seconds


@dataclass(frozen=True)
class DeviceBench:
    """All figures, the device's name, and the bytes a second that a copy reads and writes, both counted."""

    device: str
    copy_bytes_per_second: float
    sizes: dict[str, Any]
    figures: list[Figure] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON."""
        figures = [asdict(figure) | {"times_bound": figure.times_bound} for figure in self.figures]
        return asdict(self) | {"figures": figures}


def find_device(name: str) -> torch.device:
    """Return the device.

    Raises
    ------
    InvalidArgumentError
        If it is no CUDA device, or there is none.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InvalidArgumentError(f"there is no such device: {name!r}; say cuda, or cuda:1, …") from None
    if device.type != "cuda":
        raise InvalidArgumentError(f"the kernels need a CUDA device, not {name!r}; for a store say its path")
    if not torch.cuda.is_available():
        raise InvalidArgumentError(
            f"--device {name} needs a CUDA device, and torch {torch.__version__} sees none here; nothing was measured"
        )
    return device


def device_bench(
    device: torch.device,
    sizes: Sizes | None = None,
    *,
    rounds: int = _ROUNDS,
    progress: Callable[[str], None] | None = None,
) -> DeviceBench:
    """Measure all cases on random logits.

    Parameters
    ----------
    device
        Where. On a CPU the figures say nothing about the kernels, which then run in Triton's interpreter or not at all.
    sizes
        How much.
    rounds
        Turns that count.
    progress
        Called with what is measured next.
    """
    from logitstore.audit.gpu_cases import CASES, kernels_set_to

    sizes = sizes or Sizes()
    say = progress or (lambda _: None)
    clock = _Clock(device)
    say("copying")
    speed = _copy_speed(sizes, device, clock, rounds)
    figures = []
    with kernels_set_to(os.environ.get(VARIABLE, "auto")):
        for make in CASES:
            case = make(sizes, device)
            say(case.name)
            taking_turns = [*case.contenders, *([] if case.least is None else [Contender("", case.least)])]
            measured = _medians(taking_turns, clock, rounds)
            bound = measured[-1][0] if case.bytes is None else case.bytes / speed
            figures += [
                Figure(case.name, contender.name, seconds, case.bound, bound, peak)
                for contender, (seconds, peak) in zip(case.contenders, measured, strict=False)
            ]
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return DeviceBench(name, speed, asdict(sizes) | {"dtype": str(sizes.dtype).removeprefix("torch.")}, figures)


def _copy_speed(sizes: Sizes, device: torch.device, clock: _Clock, rounds: int) -> float:
    source = torch.zeros(sizes.rows * sizes.vocab_size, dtype=sizes.dtype, device=device)
    target = torch.empty_like(source)
    ((seconds, _),) = _medians([Contender("copy", lambda: target.copy_(source))], clock, rounds)
    return 2 * source.nbytes / seconds


class _Clock:
    """Seconds and peak memory of one call: by CUDA events on a GPU, else by the wall clock."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._cuda = device.type == "cuda"
        self._flush = torch.empty(_FLUSH_BYTES if self._cuda else 0, dtype=torch.uint8, device=device)

    def measure(self, run: Callable[[], object]) -> tuple[float, int | None]:
        if not self._cuda:
            start = time.perf_counter()
            run()
            return time.perf_counter() - start, None
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._flush.zero_()
        torch.cuda.synchronize(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        before = torch.cuda.memory_allocated(self._device)
        begin.record()
        run()
        end.record()
        end.synchronize()
        peak = torch.cuda.max_memory_allocated(self._device) - before
        return float(begin.elapsed_time(end)) / 1000, peak


def _medians(contenders: list[Contender], clock: _Clock, rounds: int) -> list[tuple[float, int | None]]:
    turns: list[list[tuple[float, int | None]]] = [[] for _ in contenders]
    for turn in range(rounds + 1):
        for measured, contender in zip(turns, contenders, strict=True):
            result = clock.measure(contender.run)
            if turn:  # the first one compiles and warms up
                measured.append(result)
    return [(statistics.median(seconds for seconds, _ in measured), measured[0][1]) for measured in turns]
