"""Time to read one random row, and one random document, from files in the page cache.

    python benchmarks/random_access.py STORE

Our reader and plain Zarr read the same store; the others read the same ids and values from files of their own.
Contenders take turns on every row. Checksums of our chunks are verified when they are first touched, which the first,
uncounted pass over the rows does; the last line of the table opens the store anew for every row.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from harness import machine, show, use_one_core, write_json

use_one_core()

import blosc2  # noqa: E402
import numpy as np  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402
import zarr  # noqa: E402
from peers import arrow_table  # noqa: E402

import logitstore  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from logitstore import Store

    Read = Callable[[int, int], object]


def readers(store: Store, folder: Path) -> dict[str, Read]:
    """Return functions that read ids and values of rows ``start:stop``, ours first."""
    arrays = store.read(0, store.manifest.rows, ("ids", "values"))
    columns: dict[str, NDArray[Any]] = {"ids": arrays.ids, "values": arrays.values}
    chunk_rows = next(field.chunk_rows for field in store.manifest.row_fields if field.name == "ids")

    group = zarr.open_group(store.path, mode="r")
    members = [group["ids"], group["logprobs" if store.manifest.values == "logprob" else "logits"]]

    for name, column in columns.items():
        np.save(folder / f"{name}.npy", column)
    maps = [np.load(folder / f"{name}.npy", mmap_mode="r") for name in columns]

    pq.write_table(
        arrow_table(columns),
        folder / "rows.parquet",
        row_group_size=chunk_rows,
        compression="zstd",
        compression_level=3,
    )
    parquet = pq.ParquetFile(folder / "rows.parquet", memory_map=True)

    def from_parquet(start: int, stop: int) -> object:
        first, last = start // chunk_rows, -(-stop // chunk_rows)
        table = parquet.read_row_groups(range(first, last), use_threads=False)
        part = table.slice(start - first * chunk_rows, stop - start).combine_chunks()
        return [column.chunk(0).flatten().to_numpy(zero_copy_only=False) for column in part.columns]

    blosc = [
        blosc2.asarray(
            column,
            urlpath=str(folder / f"{name}.b2nd"),
            chunks=(chunk_rows, column.shape[1]),
            blocks=(16, column.shape[1]),
            cparams=blosc2.CParams(codec=blosc2.Codec.ZSTD, clevel=5, filters=[blosc2.Filter.SHUFFLE], nthreads=1),
            dparams=blosc2.DParams(nthreads=1),
        )
        for name, column in columns.items()
    ]

    def from_new_store(start: int, stop: int) -> object:
        with logitstore.open(store.path, order="stored") as new:
            return new.read(start, stop, ("ids", "values"))

    return {
        "logitstore": lambda start, stop: store.read(start, stop, ("ids", "values")),
        "Zarr, the same files": lambda start, stop: [member[start:stop] for member in members],
        "memory map of raw arrays": lambda start, stop: [np.array(array[start:stop]) for array in maps],
        "Blosc2, zstd 5, blocks of 16 rows": lambda start, stop: [array[start:stop] for array in blosc],
        "Parquet, zstd 3": from_parquet,
        "logitstore, opened for each read": from_new_store,
    }


def microseconds(read: Read, spans: NDArray[np.int64]) -> list[float]:
    taken = []
    for start, stop in spans.tolist():
        begin = time.perf_counter()
        read(start, stop)
        taken.append(1e6 * (time.perf_counter() - begin))
    return taken


def measure(contenders: dict[str, Read], spans: NDArray[np.int64], rounds: int) -> list[dict[str, Any]]:
    """Read the spans with each contender, in turns: a part of the spans in every round."""
    for read in contenders.values():
        microseconds(read, spans)
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for turn, part in enumerate(np.array_split(spans, rounds)):
        for name in list(contenders)[:: 1 if turn % 2 == 0 else -1]:
            taken[name] += microseconds(contenders[name], part)
    ours = taken["logitstore"]
    return [
        {
            "reader": name,
            "median µs": statistics.median(times),
            "95 % below µs": float(np.percentile(times, 95)),
            "× ours": statistics.median(times) / statistics.median(ours),
        }
        for name, times in taken.items()
    ]


@click.command(help=__doc__.splitlines()[0])
@click.argument("store", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--reads", default=300, show_default=True, help="Random rows, and random documents.")
@click.option("--rounds", default=10, show_default=True)
@click.option("--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Write the numbers here.")
def main(store: Path, reads: int, rounds: int, json_path: Path | None) -> None:
    opened = logitstore.open(store, order="stored")
    random = np.random.default_rng(0)
    rows = random.integers(0, opened.manifest.rows, reads)
    documents = random.integers(0, len(opened), reads)
    offsets = opened.offsets(0, len(opened))
    with tempfile.TemporaryDirectory() as folder:
        contenders = readers(opened, Path(folder))
        tables = {
            f"one row of {store.name}": measure(contenders, np.stack([rows, rows + 1], axis=1), rounds),
            f"one document of {store.name}": measure(
                contenders, np.stack([offsets[documents], offsets[documents + 1]], axis=1), rounds
            ),
        }
    print(machine())
    for title, table in tables.items():
        show(title, table)
    write_json(json_path, tables)


if __name__ == "__main__":
    main()
