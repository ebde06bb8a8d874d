"""How fast the codec is on a device, beside what its memory allows."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch

from logitstore.codec.bit_rows import COUNT, check_rows
from logitstore.codec.header import read_header
from logitstore.device.decode import decode_rows, launch, moved_rows, runs_on
from logitstore.device.encode import encode_chunk

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from logitstore.codec import BitRows, RowFormat

__all__ = ["Measured", "bench_decode", "bench_encode", "copy_bandwidth", "seconds_of"]

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
    rows: BitRows,
    format: RowFormat,  # noqa: A002
    device: torch.device | str,
    *,
    bandwidth: float | None = None,
) -> Measured:
    """Measure decoding rows to ``(P, K)`` from where they lie on a device: by kernels where those run.

    Their way to the device is not measured, nor is the check of their status.

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
    shape = rows.table.shape[1], format.slots
    if runs_on(device):
        check_rows(rows, format, None)
        words, table = moved_rows(rows, device)
        seconds = seconds_of(lambda: launch(words, table, format, shape, rows.most_blocks), device)
    else:
        seconds = seconds_of(lambda: decode_rows(rows, format, device), device)
    entries = int(rows.table[COUNT].sum(dtype="u8"))
    decoded = shape[0] * shape[1] * format.bits_dtype.itemsize
    return _measured(entries, seconds, rows.words.nbytes + rows.table.nbytes + decoded, device, bandwidth)


def bench_encode(
    array: Tensor, kind: Literal["ids", "values"], *, vocab_size: int = 0, bandwidth: float | None = None
) -> Measured:
    """Measure `encode_chunk` of rows that lie on a device, until the chunk's bytes are on the host.

    Parameters
    ----------
    array, kind, vocab_size
        As for `encode_chunk`.
    bandwidth
        Bytes per second; by default that of `copy_bandwidth`.
    """
    chunk = encode_chunk(array, kind, vocab_size=vocab_size)
    seconds = seconds_of(lambda: encode_chunk(array, kind, vocab_size=vocab_size), array.device)
    nbytes = array.numel() * array.element_size() + len(chunk)
    return _measured(read_header(chunk).entries, seconds, nbytes, array.device, bandwidth)


def _measured(entries: int, seconds: float, nbytes: int, device: torch.device, bandwidth: float | None) -> Measured:
    bandwidth = copy_bandwidth(device) if bandwidth is None else bandwidth
    return Measured(entries / seconds, entries * bandwidth / nbytes)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
