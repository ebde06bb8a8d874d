"""Time to the first batch of a store of many shards: from the beginning, and resumed anywhere in an epoch.

    python benchmarks/stream_start.py

Writes stores of 10,000 tiny shards (and one of 100, to compare with) to a temporary folder, or keeps them in --folder.
Every time is that of a process of its own that has imported the package and read one store before: open the store, load
the state, start the DataLoader, take one batch.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
from harness import show, write_json
from make_rows import is_complete
from open_time import write_store

SHARES = (0, 0.1, 0.5, 0.9)
ONE = """
import json, sys, time
from torch.utils.data import DataLoader
from logitstore.stream import BatchStream, Collate
path, warm, mode, state, workers = sys.argv[1], sys.argv[2], sys.argv[3], json.loads(sys.argv[4]), int(sys.argv[5])
collate = Collate() if mode == "padded" else Collate(seq_len=64, pack=True)
next(iter(BatchStream(warm, 4, collate=collate)))
start = time.perf_counter()
stream = BatchStream(path, 4, collate=collate)
if state:
    stream.load_state_dict(state)
batch = next(iter(DataLoader(stream, batch_size=None, num_workers=workers)))
print(time.perf_counter() - start)
"""


def states_at(path: Path, mode: str) -> list[Any]:
    """Go through an epoch once and return the states at the shares; None for the beginning."""
    from logitstore.stream import BatchStream, Collate

    stream = BatchStream(path, 4, collate=Collate() if mode == "padded" else Collate(seq_len=64, pack=True))
    wanted = [max(1, int(share * len(stream))) for share in SHARES[1:]]
    found = {number: stream.state_dict(batch) for number, batch in enumerate(stream, 1) if number in wanted}
    return [None, *(found[number] for number in wanted)]


def seconds(path: Path, warm: Path, mode: str, state: Any, workers: int) -> float:
    command = [sys.executable, "-W", "ignore", "-c", ONE, str(path), str(warm), mode, json.dumps(state), str(workers)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@click.command(help=__doc__.splitlines()[0])
@click.option("--rounds", default=1, show_default=True)
@click.option(
    "--folder", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Where stores are kept, or found."
)
@click.option("--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Write the numbers here.")
def main(rounds: int, folder: Path | None, json_path: Path | None) -> None:
    table: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        name = folder or scratch
        small, large, tars = Path(name) / "100.zarr", Path(name) / "10000.zarr", Path(name) / "10000.wds"
        for path, shards in ((small, 100), (large, 10_000), (tars, 10_000)):
            if not is_complete(path):
                write_store(path, shards, container="webdataset" if path is tars else "zarr")
        for path, mode, workers in (
            (small, "packed", 0), (large, "padded", 0), (large, "packed", 0), (large, "packed", 2), (tars, "packed", 0),
        ):  # fmt: skip
            row: dict[str, Any] = {
                "store": f"{path.stem} {'tars' if path is tars else 'Zarr shards'}", "batches": mode,
                "workers": str(workers),
            }  # fmt: skip
            for share, state in zip(SHARES, states_at(path, mode), strict=True):
                column = f"resumed at {share:.0%}, s" if share else "from the beginning, s"
                row[column] = statistics.median(seconds(path, small, mode, state, workers) for _ in range(rounds))
            table.append(row)
    show("time to the first batch", table)
    write_json(json_path, {"first batch": table})


if __name__ == "__main__":
    main()
