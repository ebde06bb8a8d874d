"""`encode_chunk`: rows of a device's memory to the bytes that the CPU's encoder makes of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch

from logitstore import layout
from logitstore.codec import encode
from logitstore.codec.exact import assemble_chunk, block_log2_for
from logitstore.codec.transform import UNUSED, shifts_of_zeros
from logitstore.device.decode import runs_on
from logitstore.errors import InvalidArgumentError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

__all__ = ["encode_chunk"]

_UNUSED_ID = -1
_DTYPES = {
    torch.int32: layout.DTYPE_UINT32,
    torch.float16: layout.DTYPE_FLOAT16,
    torch.uint8: layout.DTYPE_UINT8,
}
_TILE_BLOCKS = 8
_TILE_SLOTS = 256


class _Residuals(NamedTuple):
    """Rows on the device: residuals ``(R, K)`` int32 as unsigned, counts and bases ``(R,)``; shifts on the host."""

    residuals: Tensor
    counts: Tensor
    bases: Tensor
    shifts: NDArray[np.int64]


def encode_chunk(
    array: Tensor, kind: Literal["ids", "values"], *, vocab_size: int = 0, kernels: bool | None = None
) -> bytes:
    """Encode one chunk of rows; the same bytes as `logitstore.codec.encode`.

    Only coded bytes and the row table go to the host, where header and checksum are made.

    Parameters
    ----------
    array
        ``ids``: ``(R, K)`` int32, ascending in each row, unused slots last and -1. ``values``: ``(R, K)`` float16 or
        uint8; a trailing run of ``-inf`` or 0 counts as unused.
    kind
        Which of the two.
    vocab_size
        For ``ids``: the bound they are checked against, 1 to 2^31.
    kernels
        Whether Triton's kernels do it; by default where they run. Otherwise the CPU does.

    Raises
    ------
    InvalidArgumentError
        As `logitstore.codec.encode`.

    Examples
    --------
    >>> ids = torch.tensor([[2, 3, 9], [5, -1, -1]], dtype=torch.int32)
    >>> encode_chunk(ids, "ids", vocab_size=10)[:4]
    b'LGX1'
    """
    types = (torch.int32,) if kind == "ids" else (torch.float16, torch.uint8)
    if array.dtype not in types or array.ndim != 2 or not array.shape[1]:
        raise InvalidArgumentError(
            f"{kind} are {' or '.join(map(str, types))} of shape (rows, slots) with at least one slot, found "
            f"{array.dtype} of shape {tuple(array.shape)}"
        )
    if not (runs_on(array.device) if kernels is None else kernels) or not len(array) or array.numel() >= 1 << 31:
        host = array.cpu().contiguous().numpy()
        return encode(host.view(np.uint32) if kind == "ids" else host, kind, vocab_size=vocab_size)
    rows = _gaps(array, vocab_size) if kind == "ids" else _keys(array)
    counts = rows.counts.cpu().numpy().astype(np.int64)
    log2 = block_log2_for(kind, int(counts.sum()), len(counts))
    base, lengths, words = _write(rows.residuals, rows.counts, 1 << log2)
    return assemble_chunk(
        kind, _DTYPES[array.dtype], log2, base, tuple(array.shape), vocab_size, rows.shifts, counts, lengths,
        rows.bases.cpu().numpy().astype(np.uint32), words.data.cast("B"),
    )  # fmt: skip


def _gaps(ids: Tensor, bound: int) -> _Residuals:
    if not 1 <= bound <= layout.MAX_VOCAB_SIZE:
        raise InvalidArgumentError(f"ids need a vocabulary size of 1 to 2^31, found {bound}")
    used = ids != _UNUSED_ID
    counts = used.sum(dim=1, dtype=torch.int32)
    slots = torch.arange(ids.shape[1], device=ids.device, dtype=torch.int32)
    before = torch.cat([torch.full_like(ids[:, :1], -1), ids[:, :-1]], dim=1)
    bad = (used != (slots < counts[:, None])) | used & ((ids <= before) | (ids.long() >= bound))
    broken = bad.any(dim=1)
    if broken.any():
        row = int(torch.nonzero(broken)[0])
        raise InvalidArgumentError(
            f"ids of a row are ascending, unique, below the vocabulary size {bound}, with unused slots last; "
            f"row {row} of the chunk is {ids[row, :8].tolist()}…"
        )
    gaps = torch.where(used, ids - before - 1, 0)
    return _Residuals(gaps, counts, torch.zeros_like(counts), np.zeros(len(ids), np.int64))


def _keys(values: Tensor) -> _Residuals:
    is_float = values.dtype == torch.float16
    bits = values.contiguous().view(torch.int16).int() & 0xFFFF if is_float else values.int()
    slots = torch.arange(1, bits.shape[1] + 1, device=bits.device, dtype=torch.int32)
    counts = torch.where(bits != UNUSED[_DTYPES[values.dtype]], slots, 0).amax(dim=1)
    shifts = np.zeros(len(bits), np.int64)
    keys = bits
    if is_float:
        union = bits | 1 << 10
        lowest = (union & -union).amin(dim=1).cpu().numpy()
        shifts = shifts_of_zeros(np.log2(lowest).astype(np.int64), bits.shape[1])
        left = torch.from_numpy(shifts.astype(np.int32)).to(bits.device)[:, None]
        half = torch.ones_like(left) << (15 - left)
        keys = bits >> left
        keys = torch.where(keys & half != 0, 2 * half - 1 - keys, keys | half)
    used = slots <= counts[:, None]
    bases = torch.where(used, keys, 1 << 16).amin(dim=1)
    bases = torch.where(counts > 0, bases, 0)
    return _Residuals(torch.where(used, keys - bases[:, None], 0), counts, bases, shifts)


def _write(residuals: Tensor, counts: Tensor, block: int) -> tuple[int, NDArray[np.int64], NDArray[Any]]:
    """Return the parameter base, the bits of each row, and the payload's words."""
    from logitstore.device.encode_kernels import best_parameters, row_lengths, write_rows

    residuals = residuals.contiguous()
    rows, slots = residuals.shape
    stride = -(-slots // block)
    device = residuals.device
    parameters = torch.zeros((rows, stride), dtype=torch.int32, device=device)
    places = torch.empty((rows, stride), dtype=torch.int64, device=device)
    quotients, lengths = (torch.empty(rows, dtype=torch.int64, device=device) for _ in range(2))
    tiles = {"BLOCK": block, "TILE": _TILE_BLOCKS, "num_warps": 1}
    with torch.cuda.device_of(residuals):
        best_parameters[(rows,)](residuals, counts, parameters, slots, stride, **tiles)
        base = (parameters.amax() - ((1 << layout.PARAMETER_BITS) - 1)).clamp(min=0)
        row_lengths[(rows,)](residuals, counts, parameters, base, places, quotients, lengths, slots, stride, **tiles)
        ends = lengths.cumsum(0)
        bits = int(ends[-1])
        if -(-bits // 32) + layout.GUARD_WORDS > layout.MAX_PAYLOAD_WORDS:
            raise InvalidArgumentError(f"a chunk has fewer bits, found {bits}: use fewer rows per chunk")
        words = torch.zeros(-(-bits // 32) + layout.GUARD_WORDS, dtype=torch.int32, device=device)
        write_rows[(rows,)](
            residuals, counts, base, places, quotients, lengths, ends - lengths, words, slots, stride, BLOCK=block,
            TILE=_TILE_SLOTS, num_warps=1,
        )  # fmt: skip
    return int(base), lengths.cpu().numpy(), words.cpu().numpy()
