"""Encoding and decoding speed on one core, in memory, as ratios to a memory copy of the decoded bytes.

    python benchmarks/speed.py STORE

Everybody gets the same ids and values; a row is a set, and our codec has its own order, ascending ids. Before and
after each call the same arrays are copied in memory; a ratio is the mean time of the two copies by the time of the
call, and the median over the rounds is given. Checksums of our chunks are verified.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from harness import machine, median_ratio, show, use_one_core, write_json

use_one_core()

import blosc2  # noqa: E402
import numpy as np  # noqa: E402
from peers import Blosc2, Ours, Parquet, Pcodec, Zarr, Zstd  # noqa: E402
from zarr.codecs import BloscCodec, ZstdCodec  # noqa: E402

import logitstore  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable

    from peers import Columns, Peer

    from logitstore import Store


class Copy:
    """A copy of the arrays to memory that has been touched before: what the machine can do at best."""

    def __init__(self, columns: Columns) -> None:
        self._pairs = [(np.zeros_like(array), array) for array in columns.values()]
        self.bytes = sum(array.nbytes for array in columns.values())

    def seconds(self) -> float:
        """Copy once."""
        start = time.perf_counter()
        for target, source in self._pairs:
            np.copyto(target, source)
        return time.perf_counter() - start


def measure(peers: list[Peer], ours: Columns, columns: Columns, rounds: int) -> list[dict[str, Any]]:
    copy = Copy(columns)
    entries = columns["ids"].size
    inputs = [ours if peer is peers[0] else columns for peer in peers]
    encoded = [peer.encode(given) for peer, given in zip(peers, inputs, strict=True)]
    seconds: dict[tuple[int, str], list[tuple[float, float]]] = {}

    def timed(key: tuple[int, str], call: Callable[[Any], Any], argument: Any) -> None:
        before, start = copy.seconds(), time.perf_counter()
        call(argument)
        elapsed = time.perf_counter() - start
        seconds.setdefault(key, []).append((elapsed, (before + copy.seconds()) / 2))

    for peer, data in zip(peers, encoded, strict=True):
        peer.decode(data)
    copy.seconds()
    for turn in range(rounds):
        for number in list(range(len(peers)))[:: 1 if turn % 2 == 0 else -1]:
            timed((number, "decode"), peers[number].decode, encoded[number])
            timed((number, "encode"), peers[number].encode, inputs[number])

    table = []
    for number, peer in enumerate(peers):
        row: dict[str, Any] = {"format": peer.name, "bits/entry": 8 * peer.size(encoded[number]) / entries}
        for what in ("decode", "encode"):
            pairs = seconds[number, what]
            row[f"{what} M entries/s"] = entries / statistics.median(taken for taken, _ in pairs) / 1e6
            row[f"{what} / copy"] = statistics.median(copied / taken for taken, copied in pairs)
            row[f"{what}, ours ×"] = median_ratio([s for s, _ in pairs], [s for s, _ in seconds[0, what]])
        table.append(row)
    copied = statistics.median(copied for pairs in seconds.values() for _, copied in pairs)
    print(f"A memory copy runs at {copy.bytes / copied / 1e9:.1f} GB/s, or {entries / copied / 1e6:.0f} M entries/s.")
    return table


def _layout(store: Store) -> tuple[int, int]:
    wide = next(field for field in store.manifest.row_fields if field.name == "ids")
    return wide.chunk_rows, min(store.manifest.rows_per_shard, 1 << 16)


@click.command(help=__doc__.splitlines()[0])
@click.argument("store", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--rows", default=65536, show_default=True, help="Use the first so many rows.")
@click.option(
    "--order",
    type=click.Choice(["logit", "id"]),
    default="logit",
    show_default=True,
    help="Order of a row's entries for all but ours, which has one of its own.",
)
@click.option("--rounds", default=7, show_default=True)
@click.option("--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Write the numbers here.")
def main(store: Path, rows: int, order: str, rounds: int, json_path: Path | None) -> None:
    opened = logitstore.open(store, order="stored")
    read = opened.read(0, min(rows, opened.manifest.rows), ("ids", "values"))
    ours = {"ids": read.ids, "values": read.values}
    other = read.by_logit() if order == "logit" else read
    columns = {"ids": other.ids, "values": other.values}
    peers: list[Peer] = [
        Ours(opened.manifest.row_fields),
        Zarr("Zarr, zstd 3, chunks and shards as ours", ZstdCodec(level=3), _layout(opened)),
        Zarr("Zarr, zstd 3, chunks of 2 MiB", ZstdCodec(level=3)),
        Zstd(3),
        Zarr("Zarr, Blosc: zstd 5, shuffle", BloscCodec(cname="zstd", clevel=5, shuffle="shuffle")),
        Parquet("Parquet, zstd 3"),
        Blosc2("Blosc2, zstd 5, shuffle", (blosc2.Filter.SHUFFLE,)),
        Pcodec(),
        *([Pcodec(gaps=True)] if order == "id" else []),
    ]
    tables = {
        f"{columns['ids'].shape} ids and values of {store.name}, peers' rows by {order}": measure(
            peers, ours, columns, rounds
        )
    }
    print(machine())
    for title, table in tables.items():
        show(title, table)
    write_json(json_path, tables)


if __name__ == "__main__":
    main()
