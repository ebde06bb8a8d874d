"""The exact codec where its entries lie, against the CPU's on one thread."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple

from logitstore.bench.measure import Case, Contender, Goal
from logitstore.bench.random_data import kept_sets, random_labels, random_logits
from logitstore.bench.switch import without_kernels
from logitstore.codec import ChunkDecoder
from logitstore.container.fields import row_fields
from logitstore.device import decode_rows, encode_chunks
from logitstore.device.decode import launch, moved_rows
from logitstore.kernels import use_kernels
from logitstore.select import select_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import torch

    from logitstore.bench.measure import Setting
    from logitstore.select import Selection

__all__ = ["decode_cases", "encode_cases"]


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


def _kept(setting: Setting, selection: Selection) -> list[_Array]:
    sizes, device, _ = setting
    kept = select_rows(random_logits(sizes, device), selection, random_labels(sizes, device))
    K = kept.ids.shape[1]
    fields = row_fields(
        slots=K, vocab_size=sizes.vocab_size, values="logprob", counts=False, temperatures=0, rows_per_shard=1 << 20
    )
    chunk_rows = next(field.chunk_rows for field in fields if field.kind == "ids")
    return [_Array("ids", kept.ids, sizes.vocab_size, chunk_rows), _Array("values", kept.values, 0, chunk_rows)]


def _all(calls: list[Callable[[], object]]) -> Callable[[], object]:
    return lambda: [call() for call in calls]
