"""How fast a store is on this machine, as ratios within one run: to memory, to Zarr, and to a raw memory map.

Seconds depend on the machine and on who else uses it; ratios of things measured in turns do not, much.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from logitstore import layout
from logitstore.audit.bench_peers import RawFiles, ZarrStore, ZstdArrays
from logitstore.container.codebooks import register_codebooks
from logitstore.container.files import LocalFiles
from logitstore.container.row_coder import BookCodecs, RowCoder
from logitstore.errors import InvalidArgumentError
from logitstore.reader import open_store

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from logitstore.reader import Store

__all__ = ["BenchResult", "bench"]

_DECODED_BYTES = 64 << 20
_ROUNDS = 5
_LOOKUPS = 200
_DOCUMENTS = 50
_SEED = 0


@dataclass(frozen=True)
class BenchResult:
    """Speeds and their ratios.

    Attributes
    ----------
    rows, entries, decoded_bytes
        What was decoded and encoded: ids and values, without tokens, lse and labels.
    seconds
        Medians: ``copy``, ``decode``, ``encode``, ``zarr_zstd_decode`` for all of it with one thread; ``row_*`` and
        ``document_*`` for one random row or document, ids and values, the order as stored.
    ratios
        ``decode_speed_to_copy``, ``encode_speed_to_copy``: 0.1 is a tenth of the speed of a memory copy of the decoded
        bytes. ``decode_speed_to_zarr_zstd``: times as fast as Zarr decoding the raw arrays from zstd level 3.
        ``row_speed_to_zarr``, ``document_speed_to_zarr``: times as fast as Zarr on the same files, if they are Zarr's;
        ``row_speed_to_memmap``, ``document_speed_to_memmap``: to a memory map of the raw arrays.
    entries_per_second
        Decoded, with one thread.
    """

    rows: int
    entries: int
    decoded_bytes: int
    seconds: dict[str, float]
    ratios: dict[str, float]
    entries_per_second: float

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON."""
        return asdict(self)


def bench(
    path: str | os.PathLike[str], *, rows: int | None = None, progress: Callable[[str], None] | None = None
) -> BenchResult:
    """Measure a store.

    Parameters
    ----------
    path
        Directory of the store.
    rows
        Rows to use, from the first; as many as decode to 64 MiB by default. Random rows and documents are drawn from
        these.
    progress
        Called with what is measured next.

    Raises
    ------
    InvalidArgumentError
        ``rows`` is not positive, or the store has no rows.
    LogitStoreError
        The store cannot be read.
    """
    if rows is not None and rows < 1:
        raise InvalidArgumentError(f"rows is at least 1, found {rows}")
    say = progress or (lambda _: None)
    with open_store(path, order="stored") as store, tempfile.TemporaryDirectory(prefix="logitstore-bench-") as scratch:
        if not len(store.rows):
            raise InvalidArgumentError("the store has no rows to measure", path=path)
        used = min(len(store.rows), rows or max(1, _DECODED_BYTES // (6 * store.k_max)))
        names = [field.name for field in store.fields if field.kind in ("ids", "values")]
        say("reading")
        arrays = {name: store.read_field(name, 0, used) for name in names}
        order = np.argsort(arrays["ids"], axis=1, kind="stable")  # which is what an encoder gets
        arrays = {name: np.take_along_axis(array, order, axis=1) for name, array in arrays.items()}
        seconds = _throughput(store, arrays, say)
        seconds |= _latency(store, arrays, Path(scratch), say)
        entries = int(np.count_nonzero(arrays["ids"] != layout.UNUSED_ID))
    return BenchResult(
        rows=used,
        entries=entries,
        decoded_bytes=sum(array.nbytes for array in arrays.values()),
        seconds=seconds,
        ratios={
            "decode_speed_to_copy": seconds["copy"] / seconds["decode"],
            "decode_speed_to_zarr_zstd": seconds["zarr_zstd_decode"] / seconds["decode"],
            "encode_speed_to_copy": seconds["copy"] / seconds["encode"],
            **{
                f"{what}_speed_to_{peer}": seconds[f"{what}_{peer}"] / seconds[what]
                for what in ("row", "document")
                for peer in ("zarr", "memmap")
                if f"{what}_{peer}" in seconds
            },
        },
        entries_per_second=entries / seconds["decode"],
    )


def _throughput(store: Store, arrays: dict[str, Any], say: Callable[[str], None]) -> dict[str, float]:
    """Decode, encode and copy the same rows in turns, with one thread."""
    coder = RowCoder(store.fields)
    for books, parsed in store.codebooks():
        coder.use(books.first_row, BookCodecs(parsed, store.k_max) if parsed else None)
    say("compressing with zstd for comparison")
    zstd = ZstdArrays(arrays)
    targets = {name: np.empty_like(array) for name, array in arrays.items()}
    size, rows = coder.fields[0].chunk_rows, len(arrays["ids"])
    parts = [
        (start, {name: array[start : start + size] for name, array in arrays.items()}) for start in range(0, rows, size)
    ]
    coded = [(start, coder.encode(start, part).chunks) for start, part in parts]

    def copy_all() -> None:
        for name, array in arrays.items():
            np.copyto(targets[name], array)

    def decode_all() -> None:
        for start, chunks in coded:
            for field in coder.fields:
                out = targets[field.name][start : start + size]
                field.decode_chunk(memoryview(chunks[field.name]), 0, out, rows=len(out), verify=True)

    def encode_all() -> None:
        for start, part in parts:
            coder.encode(start, part)

    say("decoding, encoding and copying")
    return _medians(
        {"copy": copy_all, "decode": decode_all, "zarr_zstd_decode": zstd.decode, "encode": encode_all}, _ROUNDS
    )


def _latency(store: Store, arrays: dict[str, Any], scratch: Path, say: Callable[[str], None]) -> dict[str, float]:
    """Look up random rows and documents in turns: here, through Zarr, and in a memory map of the raw arrays."""
    names = list(arrays)
    rows = len(arrays["ids"])
    readers: dict[str, Callable[[int, int], object]] = {
        "": lambda start, stop: [store.read_field(name, start, stop) for name in names],
        "_memmap": RawFiles(scratch, arrays).read,
    }
    if store.manifest.container == "zarr":
        register_codebooks(LocalFiles(Path(store.path)))
        readers["_zarr"] = ZarrStore(Path(store.path), names).read
    generator = np.random.default_rng(_SEED)
    say("looking up random rows")
    numbers = generator.integers(0, rows, _LOOKUPS)
    seconds = _lookups("row", readers, [(int(row), int(row) + 1) for row in numbers])
    say("looking up random documents")
    documents = max(1, int(np.searchsorted(store.offsets(0, len(store)), rows, "right")) - 1)
    offsets = store.offsets(0, documents)
    numbers = generator.integers(0, documents, _DOCUMENTS)
    spans = [(int(offsets[number]), min(int(offsets[number + 1]), rows)) for number in numbers]
    return seconds | _lookups("document", readers, spans)


def _lookups(
    what: str, readers: dict[str, Callable[[int, int], object]], spans: list[tuple[int, int]]
) -> dict[str, float]:
    times: dict[str, list[float]] = {f"{what}{name}": [] for name in readers}
    for read in readers.values():
        read(*spans[0])  # opens files
    for span in spans:
        for name, read in readers.items():
            times[f"{what}{name}"].append(_seconds(read, *span))
    return {name: statistics.median(values) for name, values in times.items()}


def _medians(work: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(rounds + 1):
        for name, function in work.items():
            seconds = _seconds(function)
            if turn:  # the first one compiles and warms up
                times[name].append(seconds)
    return {name: statistics.median(values) for name, values in times.items()}


def _seconds(function: Callable[..., object], *arguments: Any) -> float:
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start
