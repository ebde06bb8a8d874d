"""Which batches of the epoch are whose: those of a rank, and of a worker of it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch.distributed

from logitstore.errors import InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from logitstore.stream.plan import Place, Plan

__all__ = ["Share", "Step", "world"]


class Step(NamedTuple):
    """A batch that a worker makes.

    Attributes
    ----------
    place
        Where it begins; None where the epoch has no batch left for this rank while others have one.
    after
        What the epoch has left when all ranks have had theirs.
    """

    place: Place | None
    after: Place


@dataclass(frozen=True)
class Share:
    """One worker of one rank.

    Batches are dealt to ranks in turn, and those of a rank to its workers in turn, which is the order in which a
    DataLoader collects them.
    """

    replicas: int
    rank: int
    workers: int
    worker: int

    def steps(self, plan: Plan, start: Place, *, taken: int = 0, drop_last: bool = False) -> Iterator[Step]:
        """Yield this worker's batches.

        Parameters
        ----------
        plan
            The epoch.
        start
            Where all ranks begin; or, if this worker has taken some already, `Step.after` of the last of them.
        taken
            How many it has taken.
        drop_last
            Leave out a last batch that is short, and batches at the end that do not suffice for all ranks.
        """
        group, _ = plan.advance(start, (self.workers - 1 if taken else self.worker) * self.replicas)
        while True:
            after, sequences = plan.advance(group, self.replicas)
            if not sequences or (drop_last and not plan.is_full(sequences, self.replicas)):
                return
            own, _ = plan.advance(group, self.rank)
            yield Step(own if own < after else None, after)
            group, _ = plan.advance(after, (self.workers - 1) * self.replicas)

    def batches(self, plan: Plan, *, drop_last: bool) -> int:
        """Return how many batches this rank has in a whole epoch: as many as every other."""
        if drop_last:
            return plan.full_batches // self.replicas
        return -(-plan.batches // self.replicas)


def world(num_replicas: int | None, rank: int | None) -> tuple[int, int]:
    """Return the number of ranks and this one's number.

    What is not given comes from ``torch.distributed`` if it is initialised, else from ``WORLD_SIZE`` and ``RANK`` as
    torchrun sets them, else it is one rank, number 0.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        found = torch.distributed.get_world_size(), torch.distributed.get_rank()
    else:
        found = _from_environment("WORLD_SIZE", 1), _from_environment("RANK", 0)
    replicas, number = found[0] if num_replicas is None else num_replicas, found[1] if rank is None else rank
    if not 0 <= number < replicas:
        raise InvalidArgumentError(f"rank is from 0 to num_replicas - 1, found {number} of {replicas}")
    return replicas, number


def _from_environment(name: str, default: int) -> int:
    try:
        return int(os.environ.get(name, default))
    except ValueError:
        raise InvalidArgumentError(f"{name} is a whole number, found {os.environ[name]!r}") from None
