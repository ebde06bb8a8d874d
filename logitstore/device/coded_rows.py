"""`decode_coded`: coded rows of either codec to tensors, where they lie."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch

from logitstore.codec import group_rows
from logitstore.codec.compact.decode_groups import decode_groups
from logitstore.codec.compact.fast_decode_ids import IdDecoder
from logitstore.codec.header import DTYPE_BITS
from logitstore.codec.transform import bits_from_keys
from logitstore.device.decode import Decoded, decode_rows, elements_of, runs_on

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from logitstore.codec import CodedRows, GroupRows, RowFormat
    from logitstore.codec.compact import IdCodec, ValueCodec
    from logitstore.codec.compact.fast_decode_values import ValueDecoder

    Codec = IdCodec | ValueCodec

__all__ = [
    "IdTables",
    "ValueTables",
    "decode_coded",
    "ends_of_books",
    "launch_groups",
    "moved_groups",
    "tables_on",
    "without_entries",
]

_LONGEST = 1 << 30
"""Slots of a row that the kernels decode: numbers are held there."""
_LANES = 32
"""Groups of a program: as many as a warp has lanes, since groups are few and should lie on many processors."""
_TURNS = 8
"""Symbols that all lanes take before they ask whether one of them has more."""


class IdTables(NamedTuple):
    """A codebook of ids on a device, int32 but for ``bins`` (int64) and ``nibble_tables`` (int16); see `Bank`."""

    entries: Tensor
    bins: Tensor
    gap_tables: Tensor
    nibble_tables: Tensor
    first_nibble: Tensor
    listed: Tensor
    order: Tensor


class ValueTables(NamedTuple):
    """A codebook of values on a device, likewise.

    Attributes
    ----------
    plain
        How many symbols of distances stand for themselves.
    contexts
        The table of each context of a distance.
    parts
        ``(Q + 1,)``: how many bounds are at most a base.
    levels
        ``(Q,)``: bits of the levels' values.
    """

    plain: int
    entries: Tensor
    bins: Tensor
    contexts: Tensor
    parts: Tensor
    levels: Tensor


_TABLES: WeakKeyDictionary[Codec, dict[torch.device, IdTables | ValueTables]] = WeakKeyDictionary()


def decode_coded(
    rows: CodedRows,
    format: RowFormat,  # noqa: A002
    device: torch.device | str,
    *,
    codecs: Sequence[Codec] = (),
    offsets: NDArray[np.int64] | None = None,
    kernels: bool | None = None,
) -> Decoded:
    """Decode rows of a batch on a device, whichever codec each is of.

    Parameters
    ----------
    rows, format
        The rows, and what they hold. They may lie in pinned memory.
    device
        Where they are decoded, on its current stream, and where the result lies.
    codecs
        One for each codebook of ``rows.groups``.
    offsets, kernels
        As for `decode_rows`.

    Returns
    -------
    Decoded
        Not yet checked, so that nothing waits for the device; but a codebook's tables go there when they are first
        needed, and that is waited for.

    Raises
    ------
    CorruptDataError
        A table points outside the words, or a row has more entries than room.

    Examples
    --------
    >>> import numpy as np
    >>> from logitstore.codec import CutRows
    >>> from logitstore.codec.compact import IdCodec, train_ids
    >>> from logitstore.codec.bit_rows import RowFormat
    >>> ids = np.array([[2, 3, 9], [5, 0xFFFFFFFF, 0xFFFFFFFF]], np.uint32)
    >>> codec = IdCodec(train_ids(ids, vocab_size=10), slots=3)
    >>> chunk = memoryview(codec.encode(codec.arrange(ids)))
    >>> target = CutRows(3)
    >>> target[1:3].take(codec.cut(chunk, 2, 0, 2, verify=True))
    >>> format = RowFormat(kind=1, dtype=3, slots=3, bound=10)
    >>> decoded = decode_coded(target.joined(), format, "cpu", codecs=[codec]).check()
    >>> decoded.sort(dim=1).values.tolist()
    [[-1, -1, -1], [2, 3, 9], [-1, -1, 5]]
    """
    device = torch.device(device)
    kernels = (runs_on(device) if kernels is None else kernels) and format.slots < _LONGEST
    where = device if kernels or rows.groups is None else torch.device("cpu")
    if rows.bits is not None:
        decoded = decode_rows(rows.bits, format, where, offsets=offsets, kernels=kernels)
    else:
        decoded = without_entries(rows.rows, format, where, offsets)
    if rows.groups is None:
        return decoded
    if kernels:
        group_rows.check_groups(rows.groups, rows.rows, format.slots, offsets)
        moved_offsets = None if offsets is None else torch.from_numpy(offsets).to(device, non_blocking=True)
        tables = [tables_on(codec, device) for codec in codecs]
        launch_groups(
            moved_groups(rows.groups, device), tables, ends_of_books(rows.groups), decoded, format, moved_offsets
        )
        return decoded
    bits = decoded.entries.numpy().view(format.bits_dtype)
    status = torch.from_numpy(decode_groups(rows.groups, codecs, format.slots, bits, offsets))
    return Decoded(*(part.to(device, non_blocking=True) for part in (decoded.entries, decoded.status | status)))


def without_entries(
    rows: int, format: RowFormat, device: torch.device, offsets: NDArray[np.int64] | None = None  # noqa: A002
) -> Decoded:  # fmt: skip
    """Return sound rows whose slots are all unused; arguments as for `decode_coded`."""
    element, stored, unused = elements_of(format)
    shape = (rows, format.slots) if offsets is None else (int(offsets[-1]),)
    entries = torch.full(shape, unused, dtype=stored, device=device).view(element)
    return Decoded(entries, torch.zeros(rows, dtype=torch.int32, device=device))


def tables_on(codec: Codec, device: torch.device) -> IdTables | ValueTables:
    """Return what kernels need of a codec's codebook, on a device. It lies there as long as the codec is used."""
    tables = _TABLES.setdefault(codec, {})
    if device not in tables:
        decoder = codec.decoder
        tables[device] = (
            _id_tables(decoder, device) if isinstance(decoder, IdDecoder) else _value_tables(decoder, device)
        )
    return tables[device]


def _id_tables(decoder: IdDecoder, device: torch.device) -> IdTables:
    bank, book = decoder.bank, decoder.book
    first_nibble, gap_tables = book.first_nibble.astype(np.int32), bank.contexts[2]
    lists = decoder.nibble_tables, first_nibble, book.listed_ids, book.order
    return IdTables(*(_moved(array, device) for array in (bank.entries, bank.bins, gap_tables, *lists)))


def _value_tables(decoder: ValueDecoder, device: torch.device) -> ValueTables:
    bank, book = decoder.bank, decoder.book
    parts = np.searchsorted(book.bounds, np.arange(len(book.levels) + 1), "right").astype(np.int32)
    levels = bits_from_keys(book.levels, book.dtype, 0).astype(np.int32)
    arrays = bank.entries, bank.bins, bank.contexts[1], parts, levels
    return ValueTables(book.delta_code.plain, *(_moved(array, device) for array in arrays))


def _moved(array: NDArray[Any], device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array).view(f"i{array.itemsize}")).to(device)


def moved_groups(groups: GroupRows, device: torch.device) -> tuple[Tensor, ...]:
    """Return words, as int16, table and counts on a device."""
    words, table, counts = groups.words.view(np.int16), np.ascontiguousarray(groups.table), groups.counts
    moved = (torch.from_numpy(array).to(device, non_blocking=True) for array in (words, table, counts))
    return tuple(moved)


def ends_of_books(groups: GroupRows) -> list[int]:
    """Return the group behind those of each codebook."""
    ends = np.searchsorted(groups.table[group_rows.BOOK], np.arange(len(groups.books)), "right")
    return [int(end) for end in ends]


def launch_groups(
    groups: tuple[Tensor, ...],
    tables: Sequence[IdTables | ValueTables],
    ends: Sequence[int],
    into: Decoded,
    format: RowFormat,  # noqa: A002
    offsets: Tensor | None = None,
) -> None:
    """Run the kernels on groups on a device that `check_groups` has checked.

    Parameters
    ----------
    groups
        From `moved_groups`.
    tables, ends
        Of each codebook, and the group behind those that are coded with it.
    into
        Gets entries, and statuses of rows that are broken.
    format, offsets
        As for `decode_coded`.
    """
    from logitstore.device.group_kernels import ids_of_groups, values_of_groups

    words, table, counts = groups
    out = into.entries.view(elements_of(format)[1])
    flat = offsets is not None
    data = words, table, counts, offsets if flat else table, out, into.status
    with torch.cuda.device_of(words):
        for book, first, past in zip(tables, [0, *ends], ends, strict=False):
            grid = (-(-(past - first) // _LANES),)
            if first == past:
                continue
            where = table.shape[1], first, past, format.slots
            sizes = {"FLAT": flat, "LANES": _LANES, "TURNS": _TURNS, "num_warps": 1}
            if isinstance(book, IdTables):
                ids_of_groups[grid](*data, *book, *where, len(book.first_nibble) - 1, len(book.order), **sizes)
            else:
                bits = DTYPE_BITS[format.dtype]
                values_of_groups[grid](
                    *data, *book[1:], *where, len(book.levels), book.plain, BITS=bits, IS_FLOAT=format.is_float, **sizes
                )
