"""What the processes of one stream share: the epoch, where it begins, and counts.

It lies in shared memory, so that ``set_epoch`` reaches workers that persist, and survives being pickled, as a copy.
"""

from __future__ import annotations

from typing import Any

import torch

from logitstore.stream.plan import Place

__all__ = ["Shared"]

_EPOCH, _WORKERS, _PLACE = 0, 1, slice(2, 5)
_SLOTS = 1024


class Shared:
    """Numbers that forked and spawned workers see change.

    Attributes
    ----------
    epoch
        Number of the epoch.
    start
        Where in it the next iteration begins.
    in_workers
        Whether its batches are being made in DataLoader workers.
    """

    def __init__(self) -> None:
        self._numbers = torch.zeros(5, dtype=torch.int64).share_memory_()
        # A slot for each worker, since adding is not atomic; slot 0 is the main process's.
        self._skipped = torch.zeros(_SLOTS, dtype=torch.int64).share_memory_()

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Tensors sent to a worker are shared already; those of a plain pickle are not.
        self.__dict__.update({name: tensor.share_memory_() for name, tensor in state.items()})

    @property
    def epoch(self) -> int:  # noqa: D102 - among the attributes
        return int(self._numbers[_EPOCH])

    @property
    def start(self) -> Place:  # noqa: D102
        return Place(*self._numbers[_PLACE].tolist())

    @property
    def in_workers(self) -> bool:  # noqa: D102
        return bool(self._numbers[_WORKERS])

    @in_workers.setter
    def in_workers(self, value: bool) -> None:
        self._numbers[_WORKERS] = int(value)

    @property
    def skipped(self) -> int:
        """Documents skipped by all workers."""
        return int(self._skipped.sum())

    def begin(self, epoch: int, place: Place) -> None:
        """Set where the next iteration begins."""
        self._numbers[_EPOCH] = epoch
        self._numbers[_PLACE] = torch.tensor(place)

    def skip(self, documents: int, worker: int | None) -> None:
        """Count documents that a worker skipped."""
        self._skipped[0 if worker is None else 1 + worker % (_SLOTS - 1)] += documents
