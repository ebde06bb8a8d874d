"""Time to the first batch of a store of many shards: from the beginning, and resumed anywhere in an epoch.

    python benchmarks/stream_start.py

Writes a store of 10,000 tiny shards (and one of 100, to compare with) to a temporary folder; --folder says where.
Every time is that of a process of its own that has imported the package and read one store before: open the store, load
the state, start the DataLoader, take one batch.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
from harness import show, write_json
from open_time import write_store

ONE = """
import json, sys, time
from torch.utils.data import DataLoader
from logitstore.stream import BatchStream, Collate
path, warm, mode, share, workers = sys.argv[1], sys.argv[2], sys.argv[3], float(sys.argv[4]), int(sys.argv[5])
collate = Collate() if mode == "padded" else Collate(seq_len=64, pack=True)
next(iter(BatchStream(warm, 4, collate=collate)))
state = None
if share:
    stream = BatchStream(path, 4, collate=collate, prefetch=0)
    for number, batch in enumerate(stream):
        if number == int(share * len(stream)):
            state = stream.state_dict()
            break
start = time.perf_counter()
stream = BatchStream(path, 4, collate=collate)
if state:
    stream.load_state_dict(state)
batch = next(iter(DataLoader(stream, batch_size=None, num_workers=workers)))
print(time.perf_counter() - start)
"""


def seconds(path: Path, warm: Path, mode: str, share: float, workers: int) -> float:
    command = [sys.executable, "-W", "ignore", "-c", ONE, str(path), str(warm), mode, str(share), str(workers)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@click.command(help=__doc__.splitlines()[0])
@click.option("--rounds", default=3, show_default=True)
@click.option(
    "--folder", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Where to write the stores."
)
@click.option("--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Write the numbers here.")
def main(rounds: int, folder: Path | None, json_path: Path | None) -> None:
    table: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=folder) as name:
        small, large, tars = Path(name) / "100.zarr", Path(name) / "10000.zarr", Path(name) / "10000.wds"
        write_store(small, 100)
        write_store(large, 10_000)
        write_store(tars, 10_000, container="webdataset")
        for path, mode, workers in (
            (small, "padded", 0), (large, "padded", 0), (large, "packed", 0), (large, "packed", 2), (tars, "packed", 0),
        ):  # fmt: skip
            row: dict[str, Any] = {
                "store": f"{path.stem} {'tars' if path is tars else 'Zarr shards'}", "batches": mode,
                "workers": str(workers),
            }  # fmt: skip
            for share in (0, 0.1, 0.5, 0.98):
                column = f"resumed at {share:.0%}, s" if share else "from the beginning, s"
                row[column] = statistics.median(seconds(path, small, mode, share, workers) for _ in range(rounds))
            table.append(row)
    show("time to the first batch", table)
    write_json(json_path, {"first batch": table})


if __name__ == "__main__":
    main()
