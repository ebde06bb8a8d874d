"""How fast the codec is on a device, beside what its memory allows."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

import torch

from logitstore.device.decode import decode_rows

if TYPE_CHECKING:
    from collections.abc import Callable

    from logitstore.codec import BitRows, RowFormat

__all__ = ["Measured", "bench_decode", "copy_bandwidth", "seconds_of"]

_COPIED_BYTES = 1 << 28


class Measured(NamedTuple):
    """One measurement.

    Attributes
    ----------
    entries_per_second
        Of the median run.
    bound_per_second
        Entries per second if the bytes that must be read and written moved as fast as a copy moves them.
    """

    entries_per_second: float
    bound_per_second: float


def seconds_of(call: Callable[[], object], device: torch.device, runs: int = 7) -> float:
    """Return the median seconds of a call on a device, after two that do not count."""
    times = []
    for run in range(runs + 2):
        _wait(device)
        start = time.perf_counter()
        call()
        _wait(device)
        if run >= 2:
            times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 2]


def copy_bandwidth(device: torch.device, nbytes: int = _COPIED_BYTES) -> float:
    """Return bytes per second that a copy within the device's memory reads and writes, together."""
    source = torch.zeros(nbytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * nbytes / seconds_of(lambda: target.copy_(source), device)


def bench_decode(
    rows: BitRows, format: RowFormat, device: torch.device | str, *, bandwidth: float | None = None  # noqa: A002
) -> Measured:  # fmt: skip
    """Measure `decode_rows` of rows that lie in the host's memory: with their way to the device, without its check.

    Parameters
    ----------
    rows, format
        What is decoded. Enough of them to keep the device busy: a batch of training has 16,384 rows or so.
    device
        Where.
    bandwidth
        Bytes per second; by default that of `copy_bandwidth`.
    """
    device = torch.device(device)
    bandwidth = copy_bandwidth(device) if bandwidth is None else bandwidth
    entries = int(rows.table[3].sum(dtype="u8"))
    written = rows.table.shape[1] * format.slots * format.bits_dtype.itemsize
    seconds = seconds_of(lambda: decode_rows(rows, format, device), device)
    return Measured(entries / seconds, entries * bandwidth / max(1, rows.words.nbytes + rows.table.nbytes + written))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
