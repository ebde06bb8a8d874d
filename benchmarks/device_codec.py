"""The exact codec on a device, beside a copy of the same bytes; and what a loader saves that leaves the decoding to it.

python benchmarks/device_codec.py --device cuda
"""

from __future__ import annotations

import statistics
from typing import Any

import click
import numpy as np
import torch
from harness import in_turns, median_ratio, show, use_one_core

from logitstore.codec import ChunkDecoder, encode
from logitstore.device.bench import bench_decode, bench_encode, copy_bandwidth


@click.command(help=__doc__.splitlines()[0])
@click.option("--device", default="cuda" if torch.cuda.is_available() else "cpu", show_default=True)
@click.option("--rows", default=4096, show_default=True)
@click.option("--vocab-size", default=50_257, show_default=True)
@click.option("--rounds", default=7, show_default=True)
def main(device: str, rows: int, vocab_size: int, rounds: int) -> None:
    use_one_core()
    generator = np.random.default_rng(0)
    bandwidth = copy_bandwidth(torch.device(device))
    table: list[dict[str, Any]] = []
    host: list[dict[str, Any]] = []
    for k in (64, round(0.05 * vocab_size)):
        # Logits of one profile for all rows, and noise of each row's own, so that the same ids are often kept.
        profile = generator.normal(0, 2, vocab_size).astype(np.float32)
        ids, values = np.empty((rows, k), np.uint32), np.empty((rows, k), np.float16)
        for row in range(rows):
            logits = profile + generator.normal(0, 2, vocab_size).astype(np.float32)
            ids[row] = np.sort(np.argpartition(logits, -k)[-k:])
            values[row] = logits[ids[row]] - 15
        for kind, array, bound in (("ids", ids, vocab_size), ("values", values, 0)):
            chunk = memoryview(encode(array, kind, vocab_size=bound))
            decoder = ChunkDecoder(kind, array.dtype, k, bound)
            coded = decoder.cut(chunk, rows, 0, rows, verify=True)
            tensor = torch.from_numpy(array.view(np.int32) if kind == "ids" else array).to(device)
            for what, found in (
                ("decode", bench_decode(coded, decoder.format, device, bandwidth=bandwidth)),
                ("encode", bench_encode(tensor, kind, vocab_size=bound, bandwidth=bandwidth)),
            ):
                speed, most = (1e-9 * figure for figure in found)
                table.append({"k": k, "what": f"{what} {kind}", "G entries/s": speed, "bound": most})
            out = np.empty_like(array)
            seconds = in_turns(
                {
                    "decode": lambda c=chunk, d=decoder, o=out: d.decode_into(c, rows, 0, o, verify=True),
                    "cut": lambda c=chunk, d=decoder: d.cut(c, rows, 0, rows, verify=True),
                },
                rounds,
            )
            micro = {name: 1e6 * statistics.median(times) / rows for name, times in seconds.items()}
            ratio = median_ratio(seconds["decode"], seconds["cut"])
            host.append({"k": k, "what": kind, "decode µs/row": micro["decode"], "cut": micro["cut"], "ratio": ratio})
    show(f"exact codec on {device}", table)
    show("a loader's work on one core: decode, or cut for a device", host)


if __name__ == "__main__":
    main()
