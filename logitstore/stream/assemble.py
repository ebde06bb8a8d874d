"""Batches decoded straight into their tensors: the same, bit for bit, as `Collate` makes of documents."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from logitstore.codec import CutRows
from logitstore.reader import Rows
from logitstore.stream.batch_fields import IGNORED, PADDING, SLOTTED, TORCH_TYPES, bit_names, group_names
from logitstore.stream.piece_reader import PieceReader
from logitstore.stream.tensors import tensor_of
from logitstore.stream.wanted import Wanted

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from torch import Tensor

    from logitstore.reader import Store
    from logitstore.stream.collate import Collate
    from logitstore.stream.plan import Layout
    from logitstore.stream.tensors import Memory

    Arrays = dict[str, NDArray[Any]]

__all__ = ["Assembler"]

_STUDENT_BYTES = 4 * 8 + 2  # of a row: tokens, labels, position_ids, document_ids; mask, attention_mask
_CURSOR_BYTES = 64  # and max_seqlen, skipped
_MOST_TENSORS = 16


class Assembler:
    """Makes batches out of layouts. Safe to use from several threads.

    Parameters
    ----------
    store, collate
        What is read, and how it is laid out.
    memory
        Returns what makes the tensors of the next batch.
    skip_corrupt
        Whether pieces that cannot be read are left blank; else they raise.
    coded
        Whether ids, values and counts stay coded, for `device_batch.decoded`.
    """

    def __init__(
        self,
        store: Store,
        collate: Collate,
        memory: Callable[[], Memory],
        *,
        skip_corrupt: bool = False,
        coded: bool = False,
    ) -> None:
        self._store = store
        self._collate = collate
        self._memory = memory
        self._skip_corrupt = skip_corrupt
        manifest = store.manifest
        self._wanted = wanted = Wanted.of(store, collate)
        self._coded: list[str] = [name for name in SLOTTED if coded and name in wanted.needed]
        # A field is decoded into the batch itself, unless its entries must be sorted, picked or derived first.
        staged = set(SLOTTED) if wanted.sorts or wanted.picks or coded else {"values"} if wanted.derives else set()
        direct = wanted.needed if coded else wanted.fields
        self._direct = [name for name in direct if name not in staged]
        self._staged = [name for name in wanted.needed if name not in (*self._direct, *self._coded)]
        self._widths = dict.fromkeys(SLOTTED, (manifest.slots,)) | {"lse_T": (len(manifest.temperatures),)}
        self._row_bytes = sum(
            TORCH_TYPES[name].itemsize * math.prod(self._widths.get(name, ())) for name in self._direct
        )

    def make(self, layout: Layout, cursor: tuple[int, ...]) -> dict[str, Tensor]:
        """Return the batch of a layout: what `Collate` describes, ``skipped``, ``()`` int64, and ``cursor`` as it is.

        Pieces of document -1 are left blank, as are skipped ones: they keep their place in ``attention_mask``,
        ``position_ids`` and segments, with token 0, no label, no entries and document -1.

        Raises
        ------
        CorruptDataError
            A document cannot be read, unless those are skipped.
        """
        shape = layout.sequences, self._collate.columns(layout.longest)
        memory = self._memory()
        rows = shape[0] * shape[1]
        edges = 4 * (layout.sequences + 1 + len(layout.rows)) if self._collate.pack else 0
        memory.reserve(rows * (_STUDENT_BYTES + self._row_bytes) + edges + _CURSOR_BYTES, tensors=_MOST_TENSORS)
        teacher: dict[str, Tensor] = {}
        cut = {name: CutRows(rows) for name in self._coded}
        pieces = PieceReader(layout, shape[1], self._empty_arrays(shape, teacher, memory), cut)
        pieces.read(self._store, skip_corrupt=self._skip_corrupt)
        batch = {name: tensor_of(array.reshape(shape), memory) for name, array in _student(pieces).items()} | teacher
        # Fields stay coded all together or not at all, so that none is staged beside them.
        arrays = self._entries(pieces.arrays, shape) if self._staged else _coded_arrays(cut)
        if arrays:
            memory.reserve(sum(array.nbytes for array in arrays.values()), tensors=len(arrays))
        if self._collate.pack:
            arrays |= _segments(pieces, shape)
        arrays |= {"skipped": np.array(pieces.skipped), "cursor": np.array(cursor)}
        batch |= {name: tensor_of(array, memory) for name, array in arrays.items()}
        return memory.finished(batch)

    def _empty_arrays(self, shape: tuple[int, int], teacher: dict[str, Tensor], memory: Memory) -> Arrays:
        """Return arrays for all rows of a batch; those of direct fields are the memory of tensors put in `teacher`."""
        rows = shape[0] * shape[1]
        arrays: Arrays = {"tokens": np.empty(rows, np.uint32), "mask": np.empty(rows, np.uint8)}
        for name in self._direct:
            width = self._widths.get(name, ())
            tensor = memory.empty((*shape, *width), TORCH_TYPES[name])
            teacher[self._wanted.values_name if name == "values" else name] = tensor
            arrays[name] = tensor.numpy().view(PADDING[name].dtype).reshape(rows, *width)
        for name in self._staged:
            arrays[name] = np.empty((rows, *self._widths.get(name, ())), PADDING[name].dtype)
        return arrays

    def _entries(self, arrays: Arrays, shape: tuple[int, int]) -> Arrays:
        """Sort, derive and pick the entries of staged fields."""
        stored: dict[str, Any] = {name: arrays.get(name) for name in ("tokens", "mask", *PADDING)}
        rows = Rows(**stored, stores=self._store.manifest.values)
        if self._wanted.sorts:
            rows = rows.by_logit()
        used = rows.ids != PADDING["ids"] if self._wanted.picks else None
        entries: Arrays = {}
        for name in self._wanted.fields:
            if name in self._direct:
                continue
            array = getattr(rows, name)
            if name == "values" and self._wanted.derives:
                # Where the teacher was not asked lse is NaN, and an unused slot would become NaN too.
                array = np.where(np.isneginf(array), np.float32(-np.inf), getattr(rows, self._wanted.values_name))
            if name == "ids":
                array = array.view(np.int32)
            array = array.reshape(*shape, *array.shape[1:]) if used is None else array[used]
            entries[self._wanted.values_name if name == "values" else name] = array
        if used is not None:
            entries["entry_offsets"] = np.concatenate([np.zeros(1, np.int64), np.cumsum(used.sum(axis=1))])
        return entries


def _coded_arrays(cut: dict[str, CutRows]) -> Arrays:
    """Return the parts of each field that stays coded, as `device_batch.decoded` takes them, with signed types."""
    arrays: Arrays = {}
    for name, target in cut.items():
        _, bits, groups = target.joined()
        if bits is not None:
            arrays |= dict(zip(bit_names(name), (array.view(np.int32) for array in bits), strict=True))
        if groups is not None:
            arrays |= dict(zip(group_names(name), groups._replace(words=groups.words.view(np.int16)), strict=True))
    return arrays


def _student(pieces: PieceReader) -> Arrays:
    """Return everything but what the teacher said, of all rows, flattened."""
    starts, rows, tokens = pieces.starts, pieces.layout.rows, pieces.arrays["tokens"]
    ends = starts + rows - 1
    target = pieces.arrays["mask"] != 0
    target[ends] &= pieces.layout.follows
    labels = np.empty(len(tokens), np.int64)
    labels[:-1] = tokens[1:]
    labels[ends] = pieces.following
    labels[~target] = IGNORED
    before = np.cumsum(rows) - rows
    count = np.arange(rows.sum())
    at = count + np.repeat(starts - before, rows)
    attention = np.zeros(len(tokens), np.bool_)
    attention[at] = True
    positions = np.zeros(len(tokens), np.int64)
    positions[at] = count - np.repeat(before, rows)
    documents = np.full(len(tokens), -1, np.int64)
    documents[at] = np.repeat(pieces.documents, rows)
    return {
        "tokens": tokens.astype(np.int64),
        "labels": labels,
        "mask": target,
        "attention_mask": attention,
        "position_ids": positions,
        "document_ids": documents,
    }


def _segments(pieces: PieceReader, shape: tuple[int, int]) -> Arrays:
    """Return where segments of the flattened rows begin, and the length of the longest."""
    ends = np.arange(shape[0] + 1) * shape[1]
    edges = np.unique(np.concatenate([pieces.starts, pieces.starts + pieces.layout.rows, ends])).astype(np.int32)
    return {"cu_seqlens": edges, "max_seqlen": np.array(np.diff(edges).max(), np.int32)}
