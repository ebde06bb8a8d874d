"""`encode_chunks`: rows of a device's memory to the bytes that the CPU's encoder makes of them."""

from __future__ import annotations

from itertools import pairwise
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
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

__all__ = ["encode_chunk", "encode_chunks"]

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

    def select(self, rows: NDArray[np.int64]) -> _Residuals:
        """Return some of the rows; all of them as they are."""
        if len(rows) == len(self.counts):
            return self
        on_device = torch.from_numpy(rows).to(self.counts.device)
        residuals, counts, bases = (part[on_device] for part in (self.residuals, self.counts, self.bases))
        return _Residuals(residuals, counts, bases, self.shifts[rows])


class _Written(NamedTuple):
    """Coded rows on the host: for a chunk its parameter base and its words, for a row how many bits it has."""

    bases: NDArray[np.int64]
    first_words: NDArray[np.int64]
    words: NDArray[Any]
    lengths: NDArray[np.int64]


def encode_chunk(
    array: Tensor, kind: Literal["ids", "values"], *, vocab_size: int = 0, kernels: bool | None = None
) -> bytes:
    """Encode one chunk of rows; the same bytes as `logitstore.codec.encode`. See `encode_chunks`.

    Examples
    --------
    >>> ids = torch.tensor([[2, 3, 9], [5, -1, -1]], dtype=torch.int32)
    >>> encode_chunk(ids, "ids", vocab_size=10)[:4]
    b'LGX1'
    """
    return encode_chunks(array, kind, max(1, len(array)), vocab_size=vocab_size, kernels=kernels)[0]


def encode_chunks(
    array: Tensor,
    kind: Literal["ids", "values"],
    chunk_rows: int | Sequence[int],
    *,
    vocab_size: int = 0,
    kernels: bool | None = None,
) -> list[bytes]:
    """Encode rows as chunks; the same bytes as `logitstore.codec.encode` makes of each.

    Only coded bytes and row tables go to the host, where headers and checksums are made. All chunks are coded at once:
    those of long rows, or of short documents, have few rows, with which a device would have nothing to do.

    Parameters
    ----------
    array
        ``ids``: ``(R, K)`` int32, ascending in each row, unused slots last and -1. ``values``: ``(R, K)`` float16 or
        uint8; a trailing run of ``-inf`` or 0 counts as unused.
    kind
        Which of the two.
    chunk_rows
        Rows of a chunk, of which the last one has what is left, and no rows make one chunk. Or the rows of each chunk,
        ``R`` together.
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
    >>> ids = torch.tensor([[2, 3, 9], [5, -1, -1], [0, 1, -1]], dtype=torch.int32)
    >>> len(encode_chunks(ids, "ids", 2, vocab_size=10))
    2
    >>> encode_chunks(ids, "ids", [2, 1], vocab_size=10) == encode_chunks(ids, "ids", 2, vocab_size=10)
    True
    """
    types = (torch.int32,) if kind == "ids" else (torch.float16, torch.uint8)
    fits = array.dtype in types and array.ndim == 2 and array.shape[1] > 0
    spans = _spans(len(array), chunk_rows) if fits else []
    if not spans:
        raise InvalidArgumentError(
            f"{kind} are {' or '.join(map(str, types))} of shape (rows, slots) with at least one slot, in chunks of at "
            f"least one row; found {array.dtype} of shape {tuple(array.shape)}, {chunk_rows} rows a chunk"
        )
    if not (runs_on(array.device) if kernels is None else kernels) or not len(array) or array.numel() >= 1 << 31:
        host = array.cpu().contiguous().numpy()
        host = host.view(np.uint32) if kind == "ids" else host
        return [encode(host[start:stop], kind, vocab_size=vocab_size) for start, stop in spans]
    rows = _gaps(array, vocab_size, spans) if kind == "ids" else _keys(array, spans)
    counts, bases = _on_host(rows.counts, rows.bases)
    counts, bases = counts.astype(np.int64), bases.astype(np.uint32)
    log2s = np.array([block_log2_for(kind, int(counts[start:stop].sum()), stop - start) for start, stop in spans])
    chunks: list[bytes] = [b""] * len(spans)
    for log2 in np.unique(log2s).tolist():
        numbers = np.flatnonzero(log2s == log2)
        own = np.concatenate([np.arange(*spans[number]) for number in numbers])
        sizes = np.array([spans[number][1] - spans[number][0] for number in numbers])
        written = _write(rows.select(own), sizes, 1 << log2)
        for place, (number, first) in enumerate(zip(numbers.tolist(), (sizes.cumsum() - sizes).tolist(), strict=True)):
            start, stop = spans[number]
            words = written.words[written.first_words[place] : written.first_words[place + 1]]
            chunks[number] = assemble_chunk(
                kind, _DTYPES[array.dtype], log2, int(written.bases[place]), (stop - start, array.shape[1]),
                vocab_size, rows.shifts[start:stop], counts[start:stop], written.lengths[first : first + stop - start],
                bases[start:stop], words.data.cast("B"),
            )  # fmt: skip
    return chunks


def _spans(rows: int, chunk_rows: int | Sequence[int]) -> list[tuple[int, int]]:
    """Return where chunks begin and end; nothing if they cannot be so."""
    if isinstance(chunk_rows, int):
        if chunk_rows < 1:
            return []
        return [(start, min(start + chunk_rows, rows)) for start in range(0, max(1, rows), chunk_rows)]
    ends = np.cumsum(chunk_rows).tolist()
    return list(pairwise([0, *ends])) if min(chunk_rows, default=0) > 0 and ends[-1] == rows else []


def _gaps(ids: Tensor, bound: int, spans: list[tuple[int, int]]) -> _Residuals:
    if not 1 <= bound <= layout.MAX_VOCAB_SIZE:
        raise InvalidArgumentError(f"ids need a vocabulary size of 1 to 2^31, found {bound}")
    used = ids != _UNUSED_ID
    counts = used.sum(dim=1, dtype=torch.int32)
    slots = torch.arange(ids.shape[1], device=ids.device, dtype=torch.int32)
    before = torch.cat([torch.full_like(ids[:, :1], -1), ids[:, :-1]], dim=1)
    bad = (used != (slots < counts[:, None])) | used & ((ids <= before) | (ids > bound - 1))
    broken = bad.any(dim=1)
    if broken.any():
        row = int(torch.nonzero(broken)[0])
        raise InvalidArgumentError(
            f"ids of a row are ascending, unique, below the vocabulary size {bound}, with unused slots last; "
            f"row {row - max(start for start, _ in spans if start <= row)} of the chunk is {ids[row, :8].tolist()}…"
        )
    gaps = torch.where(used, ids - before - 1, 0)
    return _Residuals(gaps, counts, torch.zeros_like(counts), np.zeros(len(ids), np.int64))


def _keys(values: Tensor, spans: list[tuple[int, int]]) -> _Residuals:
    is_float = values.dtype == torch.float16
    bits = values.contiguous().view(torch.int16).int() & 0xFFFF if is_float else values.int()
    slots = torch.arange(1, bits.shape[1] + 1, device=bits.device, dtype=torch.int32)
    counts = torch.where(bits != UNUSED[_DTYPES[values.dtype]], slots, 0).amax(dim=1)
    shifts = np.zeros(len(bits), np.int64)
    keys = bits
    if is_float:
        union = bits | 1 << 10
        lowest = (union & -union).amin(dim=1).cpu().numpy()
        zeros = np.log2(lowest).astype(np.int64)
        shifts = np.concatenate([shifts_of_zeros(zeros[start:stop], bits.shape[1]) for start, stop in spans])
        left = torch.from_numpy(shifts.astype(np.int32)).to(bits.device)[:, None]
        half = torch.ones_like(left) << (15 - left)
        keys = bits >> left
        keys = torch.where(keys & half != 0, 2 * half - 1 - keys, keys | half)
    used = slots <= counts[:, None]
    bases = torch.where(used, keys, 1 << 16).amin(dim=1)
    bases = torch.where(counts > 0, bases, 0)
    return _Residuals(torch.where(used, keys - bases[:, None], 0), counts, bases, shifts)


def _write(rows: _Residuals, sizes: NDArray[np.int64], block: int) -> _Written:
    """Code chunks of so many rows, each beginning with a word of its own."""
    from logitstore.device.encode_kernels import best_parameters, row_lengths, write_rows

    residuals, counts = rows.residuals.contiguous(), rows.counts.contiguous()
    count, slots = residuals.shape
    stride = -(-slots // block)
    device = residuals.device
    chunks = len(sizes)
    chunk = torch.from_numpy(np.repeat(np.arange(chunks), sizes)).to(device)
    first_rows = torch.from_numpy(sizes.cumsum() - sizes).to(device)
    parameters = torch.zeros((count, stride), dtype=torch.int32, device=device)
    places = torch.empty((count, stride), dtype=torch.int64, device=device)
    quotients, lengths = (torch.empty(count, dtype=torch.int64, device=device) for _ in range(2))
    tiles = {"BLOCK": block, "TILE": _TILE_BLOCKS, "num_warps": 1}
    with torch.cuda.device_of(residuals):
        best_parameters[(count,)](residuals, counts, parameters, slots, stride, **tiles)
        largest = torch.zeros(chunks, dtype=torch.int32, device=device)
        largest.scatter_reduce_(0, chunk, parameters.amax(1), "amax")
        bases = (largest - ((1 << layout.PARAMETER_BITS) - 1)).clamp(min=0)
        own = bases[chunk]
        row_lengths[(count,)](residuals, counts, parameters, own, places, quotients, lengths, slots, stride, **tiles)
        before = lengths.cumsum(0) - lengths
        bits = torch.zeros(chunks, dtype=torch.int64, device=device).scatter_add_(0, chunk, lengths)
        ends = ((bits + 31) // 32 + layout.GUARD_WORDS).cumsum(0)
        first_words = np.concatenate([[0], ends.cpu().numpy()])
        longest = int(np.diff(first_words).max())
        if longest > layout.MAX_PAYLOAD_WORDS:
            raise InvalidArgumentError(f"a chunk has fewer words, found {longest}: use fewer rows per chunk")
        first = torch.cat([ends.new_zeros(1), ends[:-1]])
        starts = 32 * first[chunk] + before - before[first_rows][chunk]
        words = torch.zeros(int(first_words[-1]), dtype=torch.int32, device=device)
        write_rows[(count,)](
            residuals, counts, own, places, quotients, lengths, starts, words, slots, stride, BLOCK=block,
            TILE=_TILE_SLOTS, num_warps=1,
        )  # fmt: skip
    on_host = _on_host(bases, words, lengths)
    return _Written(on_host[0], first_words, *on_host[1:])


def _on_host(*tensors: Tensor) -> list[NDArray[Any]]:
    """Return arrays, through pinned memory if they come from CUDA. Waits once, for the current stream alone."""
    device = tensors[0].device
    if device.type != "cuda":
        return [tensor.cpu().numpy() for tensor in tensors]
    pinned = [
        torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
        for tensor in tensors
    ]
    torch.cuda.current_stream(device).synchronize()
    return [tensor.numpy() for tensor in pinned]
