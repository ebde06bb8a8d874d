"""What a loader saves that leaves the decoding to a device: decoding on one core, beside cutting rows out.

    python benchmarks/device_codec.py

How fast a device decodes and encodes, ``logitstore bench --device cuda --only decode --only encode`` says.
"""

from __future__ import annotations

import statistics
from typing import Any

import click
import numpy as np
from harness import in_turns, median_ratio, show, use_one_core

from logitstore.codec import ChunkDecoder, encode


@click.command(help=__doc__.splitlines()[0])
@click.option("--rows", default=4096, show_default=True)
@click.option("--vocab-size", default=50_257, show_default=True)
@click.option("--rounds", default=7, show_default=True)
def main(rows: int, vocab_size: int, rounds: int) -> None:
    use_one_core()
    generator = np.random.default_rng(0)
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
    show("a loader's work on one core: decode, or cut for a device", host)


if __name__ == "__main__":
    main()
