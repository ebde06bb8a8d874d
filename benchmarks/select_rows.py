"""Selection on the CPU against torch.topk and logsumexp, one thread.

python benchmarks/select_rows.py
"""

from __future__ import annotations

import statistics
from typing import Any

import click
import torch
from harness import in_turns, median_ratio, show, use_one_core

from logitstore.select import Selection, select_rows


@click.command(help=__doc__.splitlines()[0])
@click.option("--rows", default=512, show_default=True)
@click.option("--vocab-size", default=50_257, show_default=True)
@click.option("--rounds", default=7, show_default=True)
def main(rows: int, vocab_size: int, rounds: int) -> None:
    use_one_core()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    logits = torch.randn(rows, vocab_size) * 3
    labels = torch.randint(0, vocab_size, (rows,))
    table: list[dict[str, Any]] = []
    for dtype in (torch.float32, torch.bfloat16):
        given = logits.to(dtype)
        for k in (128, round(0.05 * vocab_size)):
            seconds = in_turns(
                {
                    "ours": lambda given=given, k=k: select_rows(given, Selection(top_k=k), labels),
                    "torch": lambda given=given, k=k: (given.float().topk(k), given.float().logsumexp(1)),
                },
                rounds,
            )
            micro = {name: 1e6 * statistics.median(times) / rows for name, times in seconds.items()}
            table.append(
                {
                    "dtype": str(dtype).removeprefix("torch."),
                    "k": k,
                    "select_rows, µs a row": micro["ours"],
                    "topk + logsumexp, µs a row": micro["torch"],
                    "time, ours / torch": median_ratio(seconds["ours"], seconds["torch"]),
                }
            )
    show(f"{rows} rows of {vocab_size:,} logits", table)


if __name__ == "__main__":
    main()
