"""Batches on a device, each on its way while the one before is used."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, TypeVar

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from torch import Tensor

    from logitstore.stream.device_batch import OnDevice

    Batch = dict[str, Tensor]

__all__ = ["SideStream", "started_ahead"]

Given = TypeVar("Given")
Started = TypeVar("Started")
Result = TypeVar("Result")


def started_ahead(
    given: Iterable[Given], start: Callable[[Given], Started], finish: Callable[[Started], Result]
) -> Iterator[Result]:
    """Yield what is finished of each that is given, in order; the next one is started before.

    Examples
    --------
    >>> list(started_ahead([1, 2], lambda n: print("start", n) or n, lambda n: -n))
    start 1
    start 2
    [-1, -2]
    """
    items = iter(given)
    waiting = [start(item) for item in islice(items, 1)]
    for item in items:
        following = start(item)
        yield finish(waiting.pop())
        waiting.append(following)
    for last in waiting:
        yield finish(last)


class SideStream:
    """Moves batches on a CUDA stream of its own, so that neither their copies nor their decoding wait for the training.

    Parameters
    ----------
    device
        A CUDA device.
    move
        Queues what brings a batch there on the current stream.
    """

    def __init__(self, device: torch.device, move: Callable[[Batch], OnDevice]) -> None:
        self._device = device
        self._move = move
        self._stream = torch.cuda.Stream(device)

    def start(self, batch: Batch) -> tuple[Batch, OnDevice, torch.cuda.Event]:
        """Queue a batch. What it was is kept, as it may lie in memory that is used again when it is dropped."""
        pinned = {name: tensor if tensor.is_pinned() else tensor.pin_memory() for name, tensor in batch.items()}
        with torch.cuda.stream(self._stream):
            queued = self._move(pinned)
            return pinned, queued, self._stream.record_event()

    def finish(self, started: tuple[Batch, OnDevice, torch.cuda.Event]) -> Batch:
        """Return the batch for use on the current stream, behind its own. Waits till it has left the host's memory."""
        _, queued, ready = started
        ready.synchronize()
        queued.check()
        current = torch.cuda.current_stream(self._device)
        current.wait_event(ready)
        for tensor in queued.batch.values():
            if tensor.is_cuda:
                # The allocator of the side stream must not hand its memory out while the training reads it.
                tensor.record_stream(current)
        return queued.batch
