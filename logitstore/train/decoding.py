"""Where batches are decoded: in the processes that read them, or on the device that trains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from logitstore.device.decode import runs_on
from logitstore.errors import InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from torch import Tensor

    from logitstore.reader import Store
    from logitstore.stream import BatchStream

__all__ = ["OnDevice", "where_decoded"]


def where_decoded(
    asked: Literal["auto", "host", "device"], store: Store, device: torch.device
) -> Literal["host", "device"]:
    """Return where a store's batches are decoded for a student on a device, as `BatchStream` calls it.

    Parameters
    ----------
    asked
        "auto": on the device, where kernels run there and decode the store's codec; else where batches are read.

    Raises
    ------
    InvalidArgumentError
        If the device is asked for, and does not decode the store's codec.
    """
    if asked == "device" and not _device_decodes(store):
        raise InvalidArgumentError(
            f"rows of the {store.manifest.codec.name} codec are not decoded on a device; let the host decode"
            " (decode='host', --decode host)",
            path=store.path,
        )
    if asked == "auto":
        return "device" if runs_on(device) and _device_decodes(store) else "host"
    return asked


def _device_decodes(store: Store) -> bool:
    """Whether `logitstore.device` decodes the store's codec."""
    return store.manifest.codec.name == "exact"


@dataclass(frozen=True)
class OnDevice:
    """The batches of a stream on a device, anew each time they are asked for."""

    stream: BatchStream
    device: torch.device

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Yield them."""
        return self.stream.on_device(self.stream, self.device)
