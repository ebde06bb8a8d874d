"""Batches whose ids, values and counts are still coded, decoded where the training is."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from logitstore.codec import BitRows, CodedRows, GroupRows
from logitstore.device import decode_coded
from logitstore.errors import CorruptDataError
from logitstore.stream.batch_fields import SLOTTED, bit_names, group_names

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from logitstore.device import Decoded
    from logitstore.reader import Store
    from logitstore.stream.wanted import Wanted

    Batch = dict[str, Tensor]

__all__ = ["FOR_THE_HOST", "OnDevice", "decoded", "moved"]

FOR_THE_HOST = ("cursor", "skipped", "max_seqlen")
"""What the host asks a batch for."""


class OnDevice(NamedTuple):
    """A batch on its way to a device, or there.

    Attributes
    ----------
    batch
        Its tensors, to be used behind the work that is queued for them.
    check
        Raises `CorruptDataError` if a row's bits break a rule. Waits for the device.
    """

    batch: Batch
    check: Callable[[], None]


def moved(batch: Batch, device: torch.device) -> Batch:
    """Return a batch with its tensors on a device, but for those that the host asks for."""
    return {
        name: tensor if name in FOR_THE_HOST else tensor.to(device, non_blocking=True) for name, tensor in batch.items()
    }


def decoded(batch: Batch, device: torch.device, store: Store, wanted: Wanted) -> OnDevice:
    """Return the batch that `Assembler` would have made, had it decoded, on a device, and a check to make before use.

    Parameters
    ----------
    batch
        With the coded parts of ids, values and counts, as far as they are needed.
    device
        Where to. A broken row must not be trained on: the check says which, with file and shard where the store can
        tell them.
    store, wanted
        What the batch is of.
    """
    coded = {name: rows for name in SLOTTED if (rows := _coded_rows(batch, name)) is not None}
    gone = {part for name in coded for part in (*bit_names(name), *group_names(name))}
    result = moved({name: tensor for name, tensor in batch.items() if name not in gone}, device)
    # Picking is a matter of offsets, unless entries are sorted or derived row by row before.
    whole = wanted.sorts or wanted.derives
    offsets = coded["ids"].offsets if wanted.picks else None
    parts = {}
    for name, rows in coded.items():
        digests = [] if rows.groups is None else [book.tobytes() for book in rows.groups.books]
        codecs = [store.codec_of(name, digest) for digest in digests]
        parts[name] = decode_coded(
            rows, store.row_format(name), device, codecs=codecs, offsets=None if whole else offsets
        )
    check = _status_check(parts, batch, store)
    fields = {name: part.entries for name, part in parts.items()}
    shape = batch["tokens"].shape
    if wanted.sorts:
        fields = _by_logit(fields)
    if wanted.derives:
        lse = result["lse"].reshape(-1, 1)
        stored = fields["values"]
        values = stored.float() + lse if wanted.values_name == "logits" else stored.float() - lse
        # Where the teacher was not asked lse is NaN, and an unused slot would become NaN too.
        fields["values"] = torch.where(torch.isneginf(stored), -torch.inf, values)
    if offsets is not None:
        if whole:
            used = fields["ids"] != -1
            fields = {name: field[used] for name, field in fields.items()}
        result["entry_offsets"] = torch.from_numpy(offsets).to(device)
    else:
        fields = {name: field.view(*shape, -1) for name, field in fields.items()}
    if "lse" not in wanted.fields:
        result.pop("lse", None)
    delivered = {name: field for name, field in fields.items() if name in wanted.fields}
    result |= {wanted.values_name if name == "values" else name: field for name, field in delivered.items()}
    return OnDevice(result, check)


def _coded_rows(batch: Batch, name: str) -> CodedRows | None:
    """Return a field that is still coded."""
    bits, groups = (
        [batch[part].numpy() for part in names(name) if part in batch] for names in (bit_names, group_names)
    )
    if not bits and not groups:
        return None
    if groups:
        groups[0] = groups[0].view(np.uint16)
    return CodedRows(
        batch["tokens"].numel(),
        BitRows(*(part.view(np.uint32) for part in bits)) if bits else None,
        GroupRows(*groups) if groups else None,
    )


def _status_check(parts: dict[str, Decoded], batch: Batch, store: Store) -> Callable[[], None]:
    """Return what raises what is wrong with the first broken row, once the statuses have arrived on the host."""
    if not parts:
        return lambda: None
    found = torch.stack([part.status for part in parts.values()])
    arrived = None
    if found.is_cuda:
        found = torch.empty(found.shape, dtype=found.dtype, pin_memory=True).copy_(found, non_blocking=True)
        arrived = torch.cuda.current_stream(parts[next(iter(parts))].status.device).record_event()

    def check() -> None:
        if arrived is not None:
            arrived.synchronize()
        if not found.any():
            return
        field, row = (int(number[0]) for number in torch.nonzero(found, as_tuple=True))
        name = list(parts)[field]
        document = int(batch["document_ids"].view(-1)[row])
        # The plain way names file, shard and row.
        store.document(document, [name])
        raise CorruptDataError(
            f"{name} of document {document} decode on the CPU, but not on the device", path=store.path
        )

    return check


def _by_logit(fields: dict[str, Tensor]) -> dict[str, Tensor]:
    """Sort the entries of each row as `Rows.by_logit` does, by the same keys."""
    bits = fields["values"].view(torch.int16).long() & 0xFFFF
    keys = torch.where(bits & 0x8000 != 0, bits, 0x7FFF - bits) << 40 | (fields["ids"].long() & 0xFFFFFFFF) << 8
    if "counts" in fields:
        keys = keys | fields["counts"].long()
    keys = keys.sort(dim=-1).values
    bits = keys >> 40
    bits = torch.where(bits & 0x8000 != 0, bits, 0x7FFF - bits)
    ids = keys >> 8 & 0xFFFFFFFF
    ordered = {"values": bits.to(torch.int16).view(torch.float16), "ids": ids.to(torch.int32)}
    return ordered | ({"counts": (keys & 0xFF).to(torch.uint8)} if "counts" in fields else {})
