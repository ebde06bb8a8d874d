"""Memory of a process that streams a store larger than it may use.

    python benchmarks/stream_memory.py STORES/fraction5-logprob-float32.zarr

The process imports everything and takes a few batches; then the kernel holds its address space, mapped files included,
to what it has by then plus the cap (RLIMIT_AS), and it streams the whole store. With no limit on mapped files it fails.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import click
from harness import show, write_json

ONE = """
import resource, sys
import torch
import logitstore
from logitstore.stream import BatchStream
torch.set_num_threads(1)
path, cap, batch, cache = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])

def field(name):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(name))

for _ in zip(range(3), BatchStream(logitstore.open(path, order="stored", cache_bytes=cache), batch, prefetch=1)):
    pass
before = field("VmRSS")
resource.setrlimit(resource.RLIMIT_AS, (field("VmSize") + cap,) * 2)
stream = BatchStream(logitstore.open(path, order="stored", cache_bytes=cache), batch, prefetch=1)
rows = sum(int(batch["attention_mask"].sum()) for batch in stream)
print(rows, field("VmHWM") - before)
"""


@click.command(help=__doc__.splitlines()[0])
@click.argument("store", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--cap", type=int, default=100_000_000, show_default=True, help="Bytes that may be added.")
@click.option("--batch", default=1, show_default=True, help="Documents of a batch.")
@click.option("--cache", type=int, default=40_000_000, show_default=True, help="cache_bytes of the store.")
@click.option("--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Write the numbers here.")
def main(store: Path, cap: int, batch: int, cache: int, json_path: Path | None) -> None:
    size = sum(file.stat().st_size for file in store.rglob("*") if file.is_file())
    if size <= cap:
        raise click.UsageError(f"the store has {size} bytes, which is not more than the cap of {cap}")
    table: list[dict[str, Any]] = []
    for cache_bytes in (cache, 1 << 40):
        command = [sys.executable, "-W", "ignore", "-c", ONE, str(store), str(cap), str(batch), str(cache_bytes)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        rows, added = (int(number) for number in done.stdout.split()) if done.returncode == 0 else (0, 0)
        table.append({
            "cache_bytes": f"{cache_bytes / 1e6:,.0f} MB" if cache_bytes < 1 << 40 else "no limit",
            "store, MB": size / 1e6, "cap, MB": cap / 1e6,
            "streamed": f"{rows:,} rows" if done.returncode == 0 else "failed: " + done.stderr.splitlines()[-1][:60],
            "added at most, MB": added / 1e6,
        })  # fmt: skip
    show(f"streaming {store.name} in batches of {batch} documents", table)
    write_json(json_path, {"memory": table})


if __name__ == "__main__":
    main()
