"""Time to open a store, and files it keeps open, by number of shards.

    python benchmarks/open_time.py

Writes small stores of 10 and of 10,000 shards, with random rows, to a temporary folder; --folder says where.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
from harness import show, use_one_core, write_json

import logitstore
from logitstore.container.manifest import Manifest
from logitstore.container.writer import StoreWriter, prepare_directory
from logitstore.records import RowBatch, TokenDocument

VOCAB_SIZE = 50257
SLOTS = 8
ROWS_PER_SHARD = 16


def write_store(path: Path, shards: int, container: str = "zarr") -> None:
    """Write a store in which every shard is one document."""
    prepare_directory(path)
    manifest = Manifest(
        store_id=f"{shards:032x}", complete=False, vocab_size=VOCAB_SIZE, padded_vocab_size=VOCAB_SIZE, slots=SLOTS,
        values="logprob", rows_per_shard=ROWS_PER_SHARD, selection={}, teacher={}, tokenizer={}, corpus={}, build={},
        versions={}, container=container, shard_bytes=int(container == "webdataset"),
    )  # fmt: skip
    random = np.random.default_rng(shards)
    with StoreWriter(path, manifest, holds_maximum=False) as writer:
        for number in range(shards):
            tokens = random.integers(0, VOCAB_SIZE, ROWS_PER_SHARD, np.uint32)
            mask = np.ones(ROWS_PER_SHARD, np.uint8)
            mask[-1] = 0
            steps = random.integers(1, VOCAB_SIZE // SLOTS, (ROWS_PER_SHARD, SLOTS), np.uint32)
            labels = np.full(ROWS_PER_SHARD, -11, np.float32)
            labels[-1] = np.nan
            rows = RowBatch(
                tokens=tokens,
                ids=np.cumsum(steps, axis=1, dtype=np.uint32),
                values=random.uniform(-12, -8, steps.shape).astype(np.float16),
                lse=np.full(ROWS_PER_SHARD, 12, np.float32),
                label_logprob=labels,
                mask=mask,
            )
            writer.append(TokenDocument(f"document-{number}", tokens, mask), rows)
        writer.finish()


def open_files() -> int:
    """Return the file descriptors of this process."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def measure(paths: dict[int, Path], rounds: int) -> list[dict[str, Any]]:
    """Open the stores in turns, then read 1,000 random rows of each."""
    seconds: dict[int, list[float]] = {shards: [] for shards in paths}
    for turn in range(rounds + 1):
        for shards in list(paths)[:: 1 if turn % 2 == 0 else -1]:
            start = time.perf_counter()
            store = logitstore.open(paths[shards])
            store.rows[0]
            if turn:  # the first one compiles
                seconds[shards].append(time.perf_counter() - start)
            store.close()
    table = []
    for shards, path in paths.items():
        before = open_files()
        with logitstore.open(path) as store:
            for row in np.random.default_rng(0).integers(0, len(store.rows), 1000).tolist():
                store.rows[row]
            held = open_files() - before
        milliseconds = 1000 * statistics.median(seconds[shards])
        table.append({"shards": shards, "open and read a row, ms": milliseconds, "files open after 1,000 rows": held})
    return table


@click.command(help=__doc__.splitlines()[0])
@click.option("--shards", default=(10, 10_000), show_default=True, multiple=True)
@click.option("--rounds", default=50, show_default=True)
@click.option("--folder", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Where to write them.")
@click.option("--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Write the numbers here.")
def main(shards: tuple[int, ...], rounds: int, folder: Path | None, json_path: Path | None) -> None:
    use_one_core()
    with tempfile.TemporaryDirectory(dir=folder) as name:
        paths = {number: Path(name) / f"{number}.zarr" for number in shards}
        for number, path in paths.items():
            write_store(path, number)
        tables = {"opening": measure(paths, rounds)}
    for title, table in tables.items():
        show(title, table)
    write_json(json_path, tables)


if __name__ == "__main__":
    main()
