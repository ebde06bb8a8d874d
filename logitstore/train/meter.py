"""What is worth logging of the steps since the last line of the log."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

__all__ = ["Meter", "Sums"]


class Sums(NamedTuple):
    """What a rank has to say: weighted sums and weights by name, tokens, seconds of steps and of waiting in them."""

    sums: dict[str, float]
    weights: dict[str, float]
    tokens: int
    seconds: float
    waited: float


class Meter:
    """Sums over steps, and the seconds they took. Evaluating and saving between steps is not counted.

    Parameters
    ----------
    clock
        Seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._clear()
        self._started: float | None = None

    def _clear(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._weights: dict[str, Tensor] = {}
        self._steps = 0
        self._tokens: Tensor | int = 0
        self._seconds = self._waited = 0.0

    @contextmanager
    def step_begins(self) -> Iterator[None]:
        """Start the clock; what is done within is waiting for data, whatever a device does meanwhile."""
        start = self._clock()
        if self._started is None:
            self._started = start
        try:
            yield
        finally:
            self._waited += self._clock() - start

    def step_ends(self) -> None:
        """Stop the clock until the next step."""
        self._steps += 1
        self.stop()

    def stop(self) -> None:
        """Stop the clock."""
        if self._started is not None:
            self._seconds += self._clock() - self._started
            self._started = None

    def add_tokens(self, count: Tensor | int) -> None:
        """Count tokens that the student has read, on whatever device they were counted; that is not waited for."""
        self._tokens = self._tokens + count

    def add_means(self, means: dict[str, Tensor], share: Tensor) -> None:
        """Add means over some of a step's rows, which are such a share of the rows of all ranks."""
        for name, mean in means.items():
            self._sums[name] = self._sums.get(name, 0.0) + mean.detach() * share
            self._weights[name] = self._weights.get(name, 0.0) + share

    def take(self, gather: Callable[[Sums], list[Sums]]) -> dict[str, float]:
        """Return what was logged, and begin anew.

        Parameters
        ----------
        gather
            Returns the sums of all ranks, given this one's.

        Returns
        -------
        dict
            By the names they were given, means over steps of means over the rows of all ranks, as the loss is one;
            ``tokens_per_second`` of all ranks together; ``data_wait_seconds`` per step and ``data_wait_share`` of the
            steps' time, means over ranks.
        """
        ranks = gather(
            Sums(
                {name: float(number) for name, number in self._sums.items()},
                {name: float(number) for name, number in self._weights.items()},
                int(self._tokens), self._seconds, self._waited,
            )
        )  # fmt: skip
        found: dict[str, float] = {}
        # A rank whose batches were all blank knows no names.
        for name in dict.fromkeys(name for rank in ranks for name in rank.sums):
            weight = sum(rank.weights.get(name, 0.0) for rank in ranks)
            found[name] = sum(rank.sums.get(name, 0.0) for rank in ranks) / (weight or 1.0)
        if self._steps and (seconds := sum(rank.seconds for rank in ranks)):
            waited = sum(rank.waited for rank in ranks)
            found["tokens_per_second"] = sum(rank.tokens for rank in ranks) / (seconds / len(ranks))
            found["data_wait_seconds"] = waited / len(ranks) / self._steps
            found["data_wait_share"] = waited / seconds
        self._clear()
        return found
