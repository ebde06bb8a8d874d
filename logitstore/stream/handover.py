"""Batches on their way from a DataLoader worker to the process that trains, in shared memory that is used again.

PyTorch hands over each tensor in a shared memory file of its own, made for it and thrown away afterwards. For a batch
of many small tensors, making and passing on the files, and touching their fresh memory, took twice as long as decoding.
Here a batch lies in one *segment* of shared memory, and a worker has a `Pool` of them. What travels is the segment's
file and where in it each tensor lies. A segment is free again when nobody has a tensor of it any more: the worker knows
of its own, and the receiver, when the last of its own is gone, clears the segment's first byte.

Whatever goes another way than a DataLoader's queue, such as single tensors of a batch, goes PyTorch's way, and a
segment whose first byte is never cleared is never used again.
"""

from __future__ import annotations

import math
import os
import threading
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakValueDictionary

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray
    from torch import Tensor

__all__ = ["Arena", "Pool", "SharedBatch"]

_ALIGNMENT = 64  # of tensors; in front of the first there is room for the byte that says that the segment is away
_PAGE = 1 << 16
_MOST = 32
"""Segments of a pool: no less than are ever on their way at once, or they are not used again."""


class _Place(NamedTuple):
    segment: int
    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype


class _Hold:
    """The bytes of a segment; calls `release` when no tensor over them is left, in the process that made it."""

    def __init__(self, memory: NDArray[np.uint8], release: Callable[[], None]) -> None:
        # Arrays of this one have this object as their base, tensors have arrays, and views have the tensors' storage.
        self.__array_interface__ = memory.__array_interface__
        self._memory = memory
        self._release = release
        self._process = os.getpid()

    def __del__(self) -> None:
        # A process forked meanwhile has a copy, which says nothing of this process' tensors.
        if os.getpid() == self._process:
            self._release()


class _Segment:
    def __init__(self, slot: int, nbytes: int) -> None:
        self.slot = slot
        self.storage: torch.UntypedStorage = torch.UntypedStorage._new_shared(nbytes)
        self.memory = _bytes_of(self.storage)
        self.memory[0] = 0
        self.taken = False

    @property
    def free(self) -> bool:
        return not self.taken and not self.memory[0]

    def hold(self) -> NDArray[np.uint8]:
        self.taken = True
        return np.asarray(_Hold(self.memory, self._untake))

    def _untake(self) -> None:
        self.taken = False


class Pool:
    """The segments of one worker. Safe to use from several threads.

    Parameters
    ----------
    stream, worker
        Names of the stream and of the worker in it: the receiver lets go of a segment when one of the same stream,
        worker and slot takes its place.
    """

    def __init__(self, stream: str, worker: int) -> None:
        self.stream = stream
        self.worker = worker
        self._segments: list[_Segment] = []
        self._lock = threading.Lock()
        # A forked worker inherits what the parent had mapped, and would keep it from being freed.
        for mapped in _MAPPED.values():
            mapped.storages.clear()

    def take(self, nbytes: int) -> tuple[_Segment, NDArray[np.uint8]]:
        """Return a segment that nobody uses, and its bytes, at least ``nbytes``. It is free when they are dropped."""
        with self._lock:
            free = [segment for segment in self._segments if segment.free]
            fitting = [segment for segment in free if len(segment.memory) >= nbytes]
            if fitting:
                segment = min(fitting, key=lambda segment: len(segment.memory))
            else:
                segment = self._replace(free[0].slot if free else len(self._segments), nbytes)
            return segment, segment.hold()

    def _replace(self, slot: int, nbytes: int) -> _Segment:
        if slot == _MOST:
            # They are all kept by somebody, who will not give them back soon: forget the oldest.
            slot = self._segments.pop(0).slot
        segment = _Segment(slot, -(-nbytes // _PAGE) * _PAGE)
        self._segments = [other for other in self._segments if other.slot != slot] + [segment]
        return segment


class Arena:
    """Where the tensors of one batch lie: a segment, or several if it was not known how much is needed."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.segments: list[_Segment] = []
        self._memory: NDArray[np.uint8] = np.empty(0, np.uint8)
        self._end = 0
        self._places: dict[int, _Place] = {}

    def reserve(self, nbytes: int, tensors: int) -> None:
        """Make room for so many tensors of so many bytes in all; what is left of earlier room stays unused."""
        segment, self._memory = self.pool.take(_ALIGNMENT * (1 + tensors) + nbytes)
        self.segments.append(segment)
        self._end = _ALIGNMENT

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return an uninitialised tensor."""
        nbytes = math.prod(shape) * dtype.itemsize
        if not nbytes:
            return torch.empty(shape, dtype=dtype)
        if self._end + nbytes > len(self._memory):
            self.reserve(nbytes, 1)
        start, self._end = self._end, -(-(self._end + nbytes) // _ALIGNMENT) * _ALIGNMENT
        place = _Place(len(self.segments) - 1, start, shape, dtype)
        tensor = _tensor_at(self._memory, place)
        self._places[id(tensor)] = place
        return tensor

    def finished(self, batch: Mapping[str, Tensor]) -> SharedBatch:
        """Return the batch of these tensors, made by `empty`."""
        places = {name: (t, self._places[id(t)]) for name, t in batch.items() if t.numel()}
        return SharedBatch(batch, _Origin(self, places))


class _Origin:
    """How a batch was when it was made, and whether it has been handed over."""

    def __init__(self, arena: Arena, tensors: dict[str, tuple[Tensor, _Place]]) -> None:
        self.arena = arena
        self.tensors = tensors
        self.handed_over = False


class SharedBatch(dict[str, Any]):
    """A batch in a worker. On the other side of the queue it is a plain dict."""

    def __init__(self, items: Mapping[str, Any], origin: _Origin) -> None:
        super().__init__(items)
        self._origin = origin

    def __copy__(self) -> SharedBatch:
        return SharedBatch(self, self._origin)

    def __reduce__(self) -> tuple[Any, ...]:
        origin = self._origin
        if origin.handed_over:
            # Two receivers would not know of each other when they clear the byte.
            return dict, (dict(self),)
        origin.handed_over = True
        arena = origin.arena
        for segment in arena.segments:
            segment.memory[0] = 1
        segments = [(segment.slot, segment.storage) for segment in arena.segments]
        items = {name: self._place(name, value) for name, value in self.items()}
        return _received, (arena.pool.stream, arena.pool.worker, segments, items)

    def _place(self, name: str, value: Any) -> Any:
        """Return where a value lies if it is as it was made, else the value, which then goes PyTorch's way."""
        tensor, place = self._origin.tensors.get(name, (None, None))
        return place if value is tensor else value


class _Mapped:
    """Segments of a stream that this process has mapped. It lives as long as some batch of the stream.

    Without it, a segment would be mapped anew each time it comes, and all its pages looked up again.
    """

    def __init__(self) -> None:
        self.storages: dict[tuple[int, int], torch.UntypedStorage] = {}


_MAPPED: WeakValueDictionary[str, _Mapped] = WeakValueDictionary()


def _received(
    stream: str, worker: int, segments: list[tuple[int, torch.UntypedStorage]], items: dict[str, Any]
) -> dict[str, Any]:
    """Return the batch that a worker handed over."""
    mapped = _MAPPED.get(stream)
    if mapped is None:
        mapped = _MAPPED[stream] = _Mapped()
    memories = []
    for slot, storage in segments:
        mapped.storages[worker, slot] = storage
        memory = _bytes_of(storage)
        memories.append(np.asarray(_Hold(memory, partial(_give_back, memory, mapped))))
    return {
        name: _tensor_at(memories[value.segment], value) if isinstance(value, _Place) else value
        for name, value in items.items()
    }


def _give_back(memory: NDArray[np.uint8], mapped: _Mapped) -> None:  # noqa: ARG001 - which is kept until then
    memory[0] = 0


def _bytes_of(storage: torch.UntypedStorage) -> NDArray[np.uint8]:
    return torch.empty(0, dtype=torch.uint8).set_(storage).numpy()


def _tensor_at(memory: NDArray[np.uint8], place: _Place) -> Tensor:
    end = place.offset + math.prod(place.shape) * place.dtype.itemsize
    return torch.from_numpy(memory[place.offset : end]).view(place.dtype).view(place.shape)
