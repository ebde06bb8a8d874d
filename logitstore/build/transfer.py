"""From the device to host memory without making the device wait."""

from __future__ import annotations

import time
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from logitstore.select import SelectedRows
    from logitstore.stopwatch import Stopwatch

__all__ = ["DeviceClock", "HostCopy", "ToHost", "columns_of"]

_NAMES = ("ids", "values", "lse", "label_logprob", "counts", "lse_T", "refused")


@dataclass(frozen=True)
class HostCopy:
    """Rows on their way to host memory."""

    tensors: dict[str, torch.Tensor]
    arrived: torch.cuda.Event | None

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the arrays, once they have arrived."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return {name: tensor.numpy() for name, tensor in self.tensors.items()}


class ToHost:
    """Copies rows from a device; from CUDA on a stream of its own, into pinned memory, while the teacher goes on.

    PyTorch hands pinned memory out again once its rows are stored, so a build goes round in a few buffers.
    """

    def __init__(self) -> None:
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    def copy(self, tensors: dict[str, torch.Tensor]) -> HostCopy:
        """Start copying tensors of one device, behind the work that is queued on its current stream."""
        device = next(iter(tensors.values())).device
        if device.type != "cuda":
            return HostCopy(tensors, None)
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)
        stream = self._streams[device]
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            host = {
                name: torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
                for name, tensor in tensors.items()
            }
            arrived = stream.record_event()
        for tensor in tensors.values():
            # Its memory is not for the teacher before it has been read.
            tensor.record_stream(stream)
        return HostCopy(host, arrived)


def columns_of(rows: SelectedRows) -> dict[str, torch.Tensor]:
    """Return the tensors of rows by name."""
    return {name: tensor for name in _NAMES if (tensor := getattr(rows, name)) is not None}


class DeviceClock:
    """Measure stages that run on a device: with CUDA events, which cost the device nothing, else by the wall clock."""

    def __init__(self, device: torch.device, watch: Stopwatch) -> None:
        self._events = device.type == "cuda"
        self._watch = watch
        self._open: deque[tuple[str, Any, Any]] = deque()

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Add the time the block takes on the device to a stage."""
        if not self._events:
            start = time.perf_counter()
            try:
                yield
            finally:
                self._watch.add(stage, time.perf_counter() - start)
            return
        begin = torch.cuda.Event(enable_timing=True)
        end = torch.cuda.Event(enable_timing=True)
        begin.record()
        yield
        end.record()
        self._open.append((stage, begin, end))
        while self._open and self._open[0][2].query():
            self._close_oldest()

    def _close_oldest(self) -> None:
        stage, begin, end = self._open.popleft()
        self._watch.add(stage, begin.elapsed_time(end) / 1000)

    def finish(self) -> None:
        """Wait for the device and add what is still open."""
        while self._open:
            self._open[0][2].synchronize()
            self._close_oldest()
