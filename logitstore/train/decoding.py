"""Where batches are decoded: in the processes that read them, or on the device that trains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from logitstore.device.decode import runs_on
from logitstore.kernels.choice import kernels_are_on

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from torch import Tensor

    from logitstore.stream import BatchStream

__all__ = ["OnDevice", "where_decoded"]


def where_decoded(asked: Literal["auto", "host", "device"], device: torch.device) -> Literal["host", "device"]:
    """Return where batches are decoded for a student on a device, as `BatchStream` calls it.

    Parameters
    ----------
    asked
        "auto": on the device, where kernels run there and are switched on; else where batches are read.

    Raises
    ------
    InvalidArgumentError
        If ``LOGITSTORE_KERNELS`` is none of auto, on, off.
    """
    if asked == "auto":
        return "device" if kernels_are_on() and runs_on(device) else "host"
    return asked


@dataclass(frozen=True)
class OnDevice:
    """The batches of a stream on a device, anew each time they are asked for."""

    stream: BatchStream
    device: torch.device

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Yield them."""
        return self.stream.on_device(self.stream, self.device)
