"""One pass over a share of an epoch, in one process."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from logitstore.stream.plan import Layout, Place
from logitstore.stream.prefetch import prefetched
from logitstore.stream.share import Share

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    from logitstore.stream.assemble import Assembler
    from logitstore.stream.plan import Plan

    Batch = dict[str, Tensor]

__all__ = ["Iteration"]


@dataclass
class Iteration:
    """How far this process is.

    Attributes
    ----------
    share
        Whose batches it yields.
    epoch, start
        The epoch, and where in it all ranks began.
    reached
        What the epoch has left when all ranks have had as many batches as this process' rank by its last one.
    taken
        How many batches it has yielded.
    """

    share: Share
    epoch: int
    start: Place
    reached: Place
    taken: int = 0

    @classmethod
    def resumed(cls, worker: dict[str, Any], epoch: int, reached: Place) -> Iteration:
        """Return the iteration that `worker_state` speaks of."""
        share = Share(worker["replicas"], 0, worker["workers"], worker["worker"])
        return cls(share, epoch, Place(*worker["start"]), reached, worker["taken"])

    def worker_state(self) -> dict[str, Any]:
        """Return what a worker needs besides epoch and place to go on, as plain JSON."""
        return {
            "worker": self.share.worker,
            "workers": self.share.workers,
            "replicas": self.share.replicas,
            "taken": self.taken,
            "start": list(self.start),
        }

    def batches(
        self,
        plan: Plan,
        assembler: Assembler,
        *,
        drop_last: bool,
        prefetch: int,
        threads: int,
        on_skip: Callable[[int], None],
    ) -> Iterator[Batch]:
        """Yield the batches from `reached` on. What is made ahead does not count, neither as reached nor as skipped."""
        tasks = self._tasks(plan, assembler, drop_last)
        with closing(prefetched(tasks, ahead=prefetch, threads=threads)) as made:
            for after, batch in made:
                self.reached = after
                self.taken += 1
                if skipped := int(batch["skipped"]):
                    on_skip(skipped)
                yield batch

    def _tasks(self, plan: Plan, assembler: Assembler, drop_last: bool) -> Iterator[Callable[[], tuple[Place, Batch]]]:
        for place, after in self.share.steps(plan, self.reached, taken=self.taken, drop_last=drop_last):
            layout = Layout.blank() if place is None else plan.layout(place)
            yield partial(self._made, assembler, layout, after)

    def _made(self, assembler: Assembler, layout: Layout, after: Place) -> tuple[Place, Batch]:
        return after, assembler.make(layout, (*after, self.epoch))
