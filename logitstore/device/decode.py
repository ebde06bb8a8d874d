"""`decode_rows`: coded rows to tensors, where they lie."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from logitstore import layout
from logitstore.codec.bit_rows import LENGTH, BitRows, broken_row, check_rows, decode_bits
from logitstore.codec.header import DTYPE_BITS
from logitstore.errors import CorruptDataError, InvalidArgumentError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from logitstore.codec import RowFormat

__all__ = ["Decoded", "decode_rows", "elements_of", "launch", "moved_rows", "runs_on", "tile_of"]

_LONGEST = (1 << 31) - (1 << 12)
"""Bits and slots of a row that the kernels decode: positions in it, and a tile behind its end, are 32 bits."""
_ELEMENTS = {
    layout.DTYPE_UINT8: torch.uint8,
    layout.DTYPE_FLOAT16: torch.float16,
    layout.DTYPE_UINT32: torch.int32,
    layout.DTYPE_FLOAT32: torch.float32,
}
_STORED_AS = {torch.float16: torch.int16, torch.float32: torch.int32}
_HIDDEN_AS_SIGNED = {torch.int16: 1 << 15, torch.int32: 1 << 31}


class Decoded(NamedTuple):
    """Entries of rows, and what is wrong with each row.

    Attributes
    ----------
    entries
        ``(P, K)`` or ``(E,)``, of the field's type; ids are int32, with -1 in unused slots.
    status
        ``(P,)`` int32 on the same device: 0 for a sound row, else see `broken_row`.
    """

    entries: Tensor
    status: Tensor

    def check(self) -> Tensor:
        """Return the entries. Waits for the device.

        Raises
        ------
        CorruptDataError
            A row breaks a rule; ``row`` is its number among these.
        """
        broken = broken_row(self.status.cpu().numpy())
        if broken is not None:
            raise CorruptDataError(f"a row of the batch {broken[1]}", row=broken[0])
        return self.entries


def runs_on(device: torch.device) -> bool:
    """Whether the kernels run there: on a GPU where Triton is installed."""
    return device.type == "cuda" and _has_triton()


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


def decode_rows(
    rows: BitRows,
    format: RowFormat,  # noqa: A002
    device: torch.device | str,
    *,
    offsets: NDArray[np.int64] | None = None,
    kernels: bool | None = None,
) -> Decoded:
    """Decode rows on a device.

    Parameters
    ----------
    rows, format
        The rows, and what they hold. They may lie in pinned memory.
    device
        Where they are decoded, on its current stream, and where the result lies.
    offsets
        ``(P + 1,)``, from 0 on: where the slots of each row begin, if they are to be flat, instead of ``K`` each. With
        ``rows.offsets``, entries of all rows follow each other.
    kernels
        Whether Triton's kernels do it; by default where they run. On a CPU they need Triton's interpreter.

    Returns
    -------
    Decoded
        Not yet checked, so that nothing waits for the device.

    Raises
    ------
    CorruptDataError
        The table of rows points outside the words, or a row has more entries than room.

    Examples
    --------
    >>> import numpy as np
    >>> from logitstore.codec import ChunkDecoder, encode
    >>> ids = np.array([[2, 3, 9], [5, 0xFFFFFFFF, 0xFFFFFFFF]], np.uint32)
    >>> chunk = memoryview(encode(ids, "ids", vocab_size=10))
    >>> decoder = ChunkDecoder("ids", "u4", slots=3, vocab_size=10)
    >>> rows = decoder.cut(chunk, 2, 0, 2, verify=True)
    >>> decode_rows(rows, decoder.format, "cpu").check().tolist()
    [[2, 3, 9], [5, -1, -1]]
    """
    device = torch.device(device)
    kernels = runs_on(device) if kernels is None else kernels
    count = rows.table.shape[1]
    shape = (count, format.slots) if offsets is None else (int(offsets[-1]),)
    if not kernels or max(format.slots, int(rows.table[LENGTH].max(initial=0))) > _LONGEST:
        bits = np.empty(shape, format.bits_dtype)
        status = decode_bits(rows, format, bits, offsets)
        entries = torch.from_numpy(bits.view(f"i{bits.itemsize}") if bits.itemsize > 1 else bits)
        moved = entries.view(elements_of(format)[0]).to(device, non_blocking=True)
        return Decoded(moved, torch.from_numpy(status).to(device, non_blocking=True))
    check_rows(rows, format, offsets)
    moved_offsets = None if offsets is None else torch.from_numpy(offsets).to(device, non_blocking=True)
    return launch(*moved_rows(rows, device), format, shape, rows.most_blocks, moved_offsets)


def elements_of(format: RowFormat) -> tuple[torch.dtype, torch.dtype, int]:  # noqa: A002
    """Return the type of elements, the one that their bits are stored as, and an unused slot's bits as that."""
    element = _ELEMENTS[format.dtype]
    stored = _STORED_AS.get(element, element)
    unused = format.unused
    if unused >= _HIDDEN_AS_SIGNED.get(stored, 1 << 32):
        unused -= 2 * _HIDDEN_AS_SIGNED[stored]
    return element, stored, unused


def tile_of(slots: int) -> tuple[int, int]:
    """Return how many bits of a row of so many slots are looked at at once, and by how many warps.

    A single warp has no need to wait for others in its sums over lanes. Rows as long as a vocabulary are few at a time.
    """
    return (128, 1) if slots <= 64 else (256, 1) if slots <= 8192 else (2048, 8)


def moved_rows(rows: BitRows, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return words and table on a device, as int32."""
    words, table = (torch.from_numpy(array.view(np.int32)).to(device, non_blocking=True) for array in rows)
    return words, table


def launch(
    words: Tensor,
    table: Tensor,
    format: RowFormat,  # noqa: A002
    shape: tuple[int, ...],
    blocks: int,
    offsets: Tensor | None = None,
) -> Decoded:
    """Run the kernels on rows on a device that `check_rows` has checked, of at most so many blocks."""
    from logitstore.device.decode_kernels import block_places, entries_of_rows

    count = table.shape[1]
    if count >= 1 << 31:
        raise InvalidArgumentError(f"less than 2^31 rows are decoded at a time, found {count}")
    device = words.device
    stride = max(1, blocks)
    status = torch.empty(count, dtype=torch.int32, device=device)
    element, stored, unused = elements_of(format)
    out = torch.empty(shape, dtype=element, device=device)
    if not count:
        return Decoded(out, status)
    places = torch.empty((count, stride), dtype=torch.int64, device=device)
    quotients = torch.empty(count, dtype=torch.int32, device=device)
    tile, warps = tile_of(format.slots)
    with torch.cuda.device_of(words):
        block_places[(count,)](words, table, places, quotients, status, count, stride, TILE=min(tile, 256), num_warps=1)
        entries_of_rows[(count,)](
            words, table, places, quotients, status, out.view(stored), table if offsets is None else offsets, count,
            stride, format.slots, format.bound, IS_IDS=format.kind == layout.KIND_IDS, IS_FLOAT=format.is_float,
            BITS=DTYPE_BITS[format.dtype], UNUSED=unused, FLAT=offsets is not None, TILE=tile, num_warps=warps,
        )  # fmt: skip
    return Decoded(out, status)
