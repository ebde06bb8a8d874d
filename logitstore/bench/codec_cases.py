"""The codecs where their entries lie, against the CPU's on one thread."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch

from logitstore import layout
from logitstore.bench.measure import Case, Contender, Goal
from logitstore.bench.random_data import kept_sets, random_labels, random_logits
from logitstore.bench.switch import without_kernels
from logitstore.codec import ChunkDecoder, CutRows, RowFormat
from logitstore.codec.compact import IdCodec, ValueCodec, train_ids, train_values
from logitstore.container.fields import row_fields
from logitstore.device import decode_coded, decode_rows, encode_chunks
from logitstore.device.coded_rows import ends_of_books, launch_groups, moved_groups, tables_on, without_entries
from logitstore.device.decode import launch, moved_rows
from logitstore.kernels import use_kernels
from logitstore.select import select_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from logitstore.bench.measure import Setting
    from logitstore.device import Decoded
    from logitstore.device.coded_rows import IdTables, ValueTables
    from logitstore.select import Selection

__all__ = ["compact_cases", "decode_cases", "encode_cases"]

_TRAINED, _ENCODED = 256, 512
"""Rows that codebooks are trained on, and that are encoded; more than these are the same ones again."""
_MAX_KL = 2.7e-4
"""As in ``benchmarks/compact.py``: what DistillKit loses."""

_STORED = {"ids": "u4", "values": "f2"}


class _Array(NamedTuple):
    """Ids or values of rows: ``(n, K)``, and how a store cuts them into chunks."""

    kind: Literal["ids", "values"]
    entries: torch.Tensor
    vocab_size: int
    chunk_rows: int

    def encoded(self, *, whole: bool = False) -> list[bytes]:
        rows = len(self.entries) if whole else self.chunk_rows
        kernels = use_kernels(self.entries.half())
        return encode_chunks(self.entries, self.kind, rows, vocab_size=self.vocab_size, kernels=kernels)


def encode_cases(setting: Setting) -> Iterator[Case]:
    """Yield the encoding of what each selection keeps, until the chunks are in host memory."""
    for name, selection in kept_sets(setting.sizes):
        yield _encode_case(f"encode, {name}", _kept(setting, selection))


def _encode_case(name: str, arrays: list[_Array]) -> Case:
    def encode() -> list[list[bytes]]:
        return [array.encoded() for array in arrays]

    coded = sum(len(chunk) for chunks in encode() for chunk in chunks)
    return Case(
        name,
        "one read of the entries and one write of the chunks",
        [Contender("logitstore", encode), Contender("logitstore, CPU, one thread", without_kernels(encode))],
        goals=(Goal(2e9, of="entries_per_second"),),
        bytes=coded + sum(array.entries.nbytes for array in arrays),
        entries=arrays[0].entries.numel(),
    )


def decode_cases(setting: Setting) -> Iterator[Case]:
    """Yield the decoding of what each selection keeps, of coded rows that lie on the device."""
    for name, selection in kept_sets(setting.sizes):
        yield _decode_case(f"decode, {name}", _kept(setting, selection), setting.device)


def compact_cases(setting: Setting) -> Iterator[Case]:
    """Yield the same of the compact codec, of rows that are alike, as a teacher's are: a codebook is of use."""
    for name, selection in kept_sets(setting.sizes):
        ids, values = (array.entries.cpu() for array in _kept(setting, selection, alike=True))
        yield _compact_case(f"decode compact, {name}", ids, values.half(), setting)


def _compact_case(name: str, ids: torch.Tensor, values: torch.Tensor, setting: Setting) -> Case:
    sizes, device, _ = setting
    kernels = use_kernels(torch.empty(1, dtype=torch.float16, device=device))
    some = ids[:_ENCODED].numpy().view(np.uint32)
    K = some.shape[1]
    id_codec = IdCodec(train_ids(some[:_TRAINED], vocab_size=sizes.vocab_size), K)
    arranged = id_codec.arrange(some)
    ordered = arranged.take(values[:_ENCODED].numpy())
    value_codec = ValueCodec(train_values(ordered[:_TRAINED], max_kl=_MAX_KL), K)
    on_device: list[Callable[[], object]] = []
    on_host: list[Callable[[], object]] = []
    moved = 0
    for codec, chunk, row_format in (
        (id_codec, id_codec.encode(arranged), RowFormat(layout.KIND_IDS, layout.DTYPE_UINT32, K, sizes.vocab_size)),
        (value_codec, value_codec.encode(ordered), RowFormat(layout.KIND_VALUES, layout.DTYPE_FLOAT16, K, 0)),
    ):
        rows = CutRows(len(ids))
        for first in range(0, len(ids), len(some)):
            part = min(len(some), len(ids) - first)
            rows[first : first + part].take(codec.cut(memoryview(chunk), len(some), 0, part, verify=True))
        coded = rows.joined()
        assert coded.groups is not None
        on_host.append(partial(decode_coded, coded, row_format, "cpu", codecs=[codec], kernels=False))
        moved += sum(array.nbytes for array in coded.groups) + ids.numel() * row_format.bits_dtype.itemsize
        if kernels:
            groups, tables = moved_groups(coded.groups, device), [tables_on(codec, device)]
            on_device.append(partial(_launch, groups, tables, ends_of_books(coded.groups), len(ids), row_format))
        else:
            on_device.append(partial(decode_coded, coded, row_format, device, codecs=[codec], kernels=False))
    return Case(
        name,
        "one read of the coded rows and one write of the entries",
        [Contender("logitstore", _all(on_device)), Contender("logitstore, CPU, one thread", _all(on_host))],
        bytes=moved,
        entries=ids.numel(),
    )


def _launch(
    groups: tuple[torch.Tensor, ...], tables: list[IdTables | ValueTables], ends: list[int], rows: int,
    row_format: RowFormat,
) -> Decoded:  # fmt: skip
    into = without_entries(rows, row_format, groups[0].device)
    launch_groups(groups, tables, ends, into, row_format)
    return into


def _decode_case(name: str, arrays: list[_Array], device: torch.device) -> Case:
    kernels = use_kernels(arrays[0].entries.half())
    on_device: list[Callable[[], object]] = []
    on_host: list[Callable[[], object]] = []
    moved = 0
    for array in arrays:
        (chunk,) = array.encoded(whole=True)
        n, K = array.entries.shape
        decoder = ChunkDecoder(array.kind, _STORED[array.kind], K, array.vocab_size)
        rows = decoder.cut(memoryview(chunk), n, 0, n, verify=True)
        moved += rows.words.nbytes + rows.table.nbytes + array.entries.nbytes
        on_host.append(partial(decode_rows, rows, decoder.format, "cpu", kernels=False))
        if kernels:
            words, table = moved_rows(rows, device)
            on_device.append(partial(launch, words, table, decoder.format, (n, K), rows.most_blocks))
        else:
            on_device.append(partial(decode_rows, rows, decoder.format, device, kernels=False))
    return Case(
        name,
        "one read of the coded rows and one write of the entries",
        [Contender("logitstore", _all(on_device)), Contender("logitstore, CPU, one thread", _all(on_host))],
        goals=(Goal(1e10, of="entries_per_second"),),
        bytes=moved,
        entries=arrays[0].entries.numel(),
    )


def _kept(setting: Setting, selection: Selection, *, alike: bool = False) -> list[_Array]:
    """Return what is kept of random logits, to which the same are added in all rows if they are to be alike."""
    sizes, device, _ = setting
    logits = random_logits(sizes, device)
    if alike:
        logits += random_logits(sizes, device, rows=1, seed=1)
    kept = select_rows(logits, selection, random_labels(sizes, device))
    K = kept.ids.shape[1]
    fields = row_fields(
        slots=K, vocab_size=sizes.vocab_size, values="logprob", counts=False, temperatures=0, rows_per_shard=1 << 20
    )
    chunk_rows = next(field.chunk_rows for field in fields if field.kind == "ids")
    return [_Array("ids", kept.ids, sizes.vocab_size, chunk_rows), _Array("values", kept.values, 0, chunk_rows)]


def _all(calls: list[Callable[[], object]]) -> Callable[[], object]:
    return lambda: [call() for call in calls]
