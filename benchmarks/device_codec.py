"""What a loader saves that leaves the decoding to a device: decoding on one core, beside cutting rows out.

    python benchmarks/device_codec.py

How fast a device decodes and encodes, ``logitstore bench --device cuda --only decode --only encode`` says.
"""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from harness import in_turns, median_ratio, show, use_one_core

from logitstore.codec import ChunkDecoder, encode
from logitstore.codec.compact import IdCodec, ValueCodec, train_ids, train_values

if TYPE_CHECKING:
    from numpy.typing import NDArray

_TRAINED = 512


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
        for codec, kind, chunk, decoder in (*_exact(ids, values, vocab_size), *_compact(ids, values, vocab_size)):
            out = np.empty_like(ids if kind == "ids" else values)
            seconds = in_turns(
                {
                    "decode": lambda c=chunk, d=decoder, o=out: d.decode_into(c, rows, 0, o, verify=True),
                    "cut": lambda c=chunk, d=decoder: d.cut(c, rows, 0, rows, verify=True),
                },
                rounds,
            )
            micro = {name: 1e6 * statistics.median(times) / rows for name, times in seconds.items()}
            ratio = median_ratio(seconds["decode"], seconds["cut"])
            host.append(
                {
                    "codec": codec,
                    "k": k,
                    "what": kind,
                    "decode µs/row": micro["decode"],
                    "cut": micro["cut"],
                    "ratio": ratio,
                }
            )
    show("a loader's work on one core: decode, or cut for a device", host)


Coded = tuple[str, str, memoryview, Any]


def _exact(ids: NDArray[np.uint32], values: NDArray[np.float16], vocab_size: int) -> list[Coded]:
    """Return name, kind, chunk and decoder of both arrays."""
    return [
        (
            "exact", kind, memoryview(encode(array, kind, vocab_size=bound)),
            ChunkDecoder(kind, array.dtype, array.shape[1], bound),
        )
        for kind, array, bound in (("ids", ids, vocab_size), ("values", values, 0))
    ]  # fmt: skip


def _compact(ids: NDArray[np.uint32], values: NDArray[np.float16], vocab_size: int) -> list[Coded]:
    """Return the same, with codebooks that were trained on some of the rows."""
    K = ids.shape[1]
    id_codec = IdCodec(train_ids(ids[:_TRAINED], vocab_size=vocab_size), K)
    arranged = id_codec.arrange(ids)
    ordered = arranged.take(values)
    value_codec = ValueCodec(train_values(ordered[:_TRAINED], max_kl=2.7e-4), K)
    return [
        ("compact", "ids", memoryview(id_codec.encode(arranged)), id_codec),
        ("compact", "values", memoryview(value_codec.encode(ordered)), value_codec),
    ]


if __name__ == "__main__":
    main()
