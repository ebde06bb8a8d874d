"""Batches whose ids, values and counts are still coded, decoded where the training is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from logitstore.codec import BitRows
from logitstore.device import decode_rows
from logitstore.errors import CorruptDataError
from logitstore.stream.batch_fields import SLOTTED, coded_names

if TYPE_CHECKING:
    from torch import Tensor

    from logitstore.device import Decoded
    from logitstore.reader import Store
    from logitstore.stream.wanted import Wanted

    Batch = dict[str, Tensor]

__all__ = ["decoded", "moved"]

_FOR_THE_HOST = ("cursor", "skipped", "max_seqlen")


def moved(batch: Batch, device: torch.device) -> Batch:
    """Return a batch with its tensors on a device, but for those that the host asks for."""
    return {
        name: tensor if name in _FOR_THE_HOST else tensor.to(device, non_blocking=True)
        for name, tensor in batch.items()
    }


def decoded(batch: Batch, device: torch.device, store: Store, wanted: Wanted) -> Batch:
    """Return the batch that `Assembler` would have made, had it decoded, on a device.

    Parameters
    ----------
    batch
        With words and table of ids, values and counts, as far as they are needed.
    device
        Where to. Waits for the decoding there, since a broken row must not be trained on.
    store, wanted
        What the batch is of.

    Raises
    ------
    CorruptDataError
        A row's bits break a rule. File, shard and row are given where the store can tell them.
    """
    coded = {name: _bit_rows(batch, name) for name in SLOTTED if coded_names(name)[0] in batch}
    gone = {part for name in coded for part in coded_names(name)}
    result = moved({name: tensor for name, tensor in batch.items() if name not in gone}, device)
    # Picking is a matter of offsets, unless entries are sorted or derived row by row before.
    whole = wanted.sorts or wanted.derives
    offsets = coded["ids"].offsets if wanted.picks else None
    parts = {
        name: decode_rows(rows, store.row_format(name), device, offsets=None if whole else offsets)
        for name, rows in coded.items()
    }
    if parts:
        _check(parts, batch, store)
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
    return result | {wanted.values_name if name == "values" else name: field for name, field in delivered.items()}


def _bit_rows(batch: Batch, name: str) -> BitRows:
    words, table = (batch[part].numpy().view(np.uint32) for part in coded_names(name))
    return BitRows(words, table)


def _check(parts: dict[str, Decoded], batch: Batch, store: Store) -> None:
    """Raise what is wrong with the first broken row; the one wait for the device."""
    broken = torch.stack([part.status for part in parts.values()]).cpu()
    if not broken.any():
        return
    field, row = (int(number[0]) for number in torch.nonzero(broken, as_tuple=True))
    name = list(parts)[field]
    document = int(batch["document_ids"].view(-1)[row])
    # The plain way names file, shard and row.
    store.document(document, [name])
    raise CorruptDataError(f"{name} of document {document} decode on the CPU, but not on the device", path=store.path)


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
