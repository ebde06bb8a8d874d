"""Held-out perplexity of students against the tokens they have seen: labels alone, stored rows, a live teacher.

    python benchmarks/sample_efficiency.py --teacher TEACHER --text TEXT --heldout HELDOUT --out OUT

Builds the stores, trains random students on growing subsets of the text with each method and seed, and measures their
perplexity on held-out text. All methods take the same batches in the same order, as many steps, and the same learning
rates. Finished runs are kept in OUT/runs.json, so that the same command goes on where it was stopped.

GKD takes its loss from TRL (`pip install 'logitstore[benchmarks]'`); without it, that row is left out and said to be.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import torch
from harness import show
from runs import Runs, make_store
from student import Settings, held_out, load_teacher, new_student, stored_objective, train

import logitstore
from logitstore.select import Selection

if TYPE_CHECKING:
    from student import Objective

STORES = {
    "5 %": Selection(top_fraction=0.05),
    "12": Selection(top_k=12),
    "50 draws": Selection(samples=50),
    "tokens": Selection(top_k=1),
}
# Method: store, loss, its options, and whether the teacher runs along.
METHODS: dict[str, tuple[str, str, dict[str, Any], bool]] = {
    "SFT": ("tokens", "cross_entropy", {}, False),
    "SLIM, 5 %": ("5 %", "slim", {}, False),
    "SLIM, 5 %, eq. 4": ("5 %", "slim", {"weight": "eq4"}, False),
    "forward KL, 5 %, zero": ("5 %", "forward_kl", {"outside": "renorm"}, False),
    "forward KL, 5 %, tail": ("5 %", "forward_kl", {"outside": "tail"}, False),
    "forward KL, top 12, zero": ("12", "forward_kl", {"outside": "renorm"}, False),
    "forward KL, top 12, tail": ("12", "forward_kl", {"outside": "tail"}, False),
    "RS-KD, 50 draws": ("50 draws", "sampled_kl", {}, False),
    "full KD, live teacher": ("tokens", "full_kl", {}, True),
    "GKD (TRL), live teacher": ("tokens", "gkd", {}, True),
}
COLORS = dict(zip(METHODS, ("black", *(f"C{number}" for number in range(9))), strict=True))


def gkd_objective() -> tuple[tuple[str, ...], Objective]:
    """Generalised Jensen-Shannon divergence with beta = 0.5, as TRL computes it, on the given text."""
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    from trl.experimental.gkd import GKDTrainer  # type: ignore[import-not-found]

    def objective(logits: Any, teacher_logits: Any, batch: Any) -> Any:
        return GKDTrainer.generalized_jsd_loss(logits, teacher_logits, labels=batch["labels"], beta=0.5)

    return (), objective


def name_of(kept: str) -> str:
    return f"{kept.replace(' %', 'percent').replace(' ', '-')}.zarr"


def bytes_per_token(path: Path, rows: int, *, tokens_only: bool) -> float:
    """Return what a store costs; of one that is read for its tokens alone, they and where documents begin."""
    files = [file for file in path.rglob("*") if file.is_file()]
    if tokens_only:
        files = [file for file in files if file.relative_to(path).parts[0] in ("tokens", "doc_offsets")]
    return sum(file.stat().st_size for file in files) / rows


def table_of(runs: Runs, tokens: list[int], seeds: int, costs: dict[str, float]) -> list[dict[str, Any]]:
    """Mean and standard deviation of perplexity over seeds, a row per method with a cost, for what is finished."""
    table = []
    for method, cost in costs.items():
        every = {size: [runs.get(method, size, seed) for seed in range(seeds)] for size in tokens}
        if any(run is None for found in every.values() for run in found):
            continue
        row: dict[str, Any] = {"method": method}
        for size, found in every.items():
            values = [run["perplexity"] for run in found if run]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            row[f"{size:,} tokens"] = f"{statistics.mean(values):.2f} ± {spread:.2f}"
        last = [run for run in every[tokens[-1]] if run]
        row["KL to teacher"] = statistics.mean(run["kl"] for run in last)
        row["s per 1,000 tokens"] = statistics.median(1000 * run["seconds"] / run["tokens"] for run in last)
        row["bytes a token"] = cost
        table.append(row)
    return table


def draw(runs: Runs, tokens: list[int], seeds: int, costs: dict[str, float], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5), width_ratios=[3, 2])
    for method, cost in costs.items():
        color = COLORS[method]
        every = [[runs.get(method, size, seed) for seed in range(seeds)] for size in tokens]
        if any(run is None for found in every for run in found):
            continue
        values = [[run["perplexity"] for run in found if run] for found in every]
        means = [statistics.mean(found) for found in values]
        spread = [[mean - min(f) for mean, f in zip(means, values, strict=True)],
                  [max(f) - mean for mean, f in zip(means, values, strict=True)]]  # fmt: skip
        live = METHODS[method][3]
        left.errorbar(tokens, means, spread, color=color, ls="--" if live else "-", marker="o", ms=3, label=method)
        right.plot(max(cost, 0.1), means[-1], color=color, marker="s" if live else "o")
    left.set(xscale="log", yscale="log", xlabel="tokens seen", ylabel="held-out perplexity (range over seeds)")
    right.set(xscale="log", yscale="log", xlabel="stored bytes a token", title=f"{tokens[-1]:,} tokens")
    for axis in (left.xaxis, left.yaxis, right.xaxis, right.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(ScalarFormatter())
        axis.set_minor_formatter(NullFormatter())
    left.ticklabel_format(axis="x", style="plain")
    left.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=150)


@click.command(help=__doc__.splitlines()[0])
@click.option("--teacher", required=True, help="Folder or Hugging Face id of a causal language model.")
@click.option("--text", required=True, type=click.Path(exists=True), help="What students learn from.")
@click.option("--documents", type=int, help="Use so many documents of the text; by default all.")
@click.option("--heldout", required=True, type=click.Path(exists=True), help="What they are measured on.")
@click.option("--heldout-documents", default=120, show_default=True)
@click.option("--tokens", default="150000,450000,1350000", show_default=True, help="Sizes of the subsets.")
@click.option("--seeds", default=3, show_default=True)
@click.option(
    "--methods", default=",".join(str(number) for number in range(len(METHODS))), help="Numbers of methods; 0 is SFT."
)
@click.option("--layers", default=3, show_default=True)
@click.option("--hidden", default=48, show_default=True)
@click.option("--seq-len", default=256, show_default=True)
@click.option("--batch", default=4, show_default=True)
@click.option("--lr", default=3e-3, show_default=True)
@click.option("--threads", default=1, show_default=True)
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path))
def main(
    teacher: str, text: str, documents: int | None, heldout: str, heldout_documents: int, tokens: str, seeds: int,
    methods: str, layers: int, hidden: int, seq_len: int, batch: int, lr: float, threads: int, out: Path,
) -> None:  # fmt: skip
    torch.set_num_threads(threads)
    out.mkdir(parents=True, exist_ok=True)
    settings = Settings(layers, hidden, seq_len, batch, lr)
    runs = Runs(
        out / "runs.json",
        {
            "teacher": teacher, "text": text, "documents": documents, "heldout": heldout,
            "heldout_documents": heldout_documents, **dataclasses.asdict(settings),
        },
    )  # fmt: skip
    sizes = sorted(int(size) for size in tokens.split(","))
    chosen = [list(METHODS)[int(number)] for number in methods.split(",")]
    paths = {
        kept: make_store(out / name_of(kept), teacher, text, STORES[kept], seq_len=seq_len, limit=documents)
        for kept in {METHODS[method][0] for method in chosen}
    }
    measured_on = out / "heldout.zarr"
    make_store(measured_on, teacher, heldout, STORES["tokens"], seq_len=seq_len, limit=heldout_documents)
    live = load_teacher(teacher)
    costs = {}
    for method in chosen:
        kept, loss, options, runs_along = METHODS[method]
        try:
            fields, objective = gkd_objective() if loss == "gkd" else stored_objective(loss, **options)
        except ImportError as error:
            print(f"{method}: left out, {error}")
            continue
        with logitstore.open(paths[kept]) as store:
            costs[method] = bytes_per_token(paths[kept], len(store.rows), tokens_only=kept == "tokens")
        for seed in range(seeds):
            for size in sizes:
                if runs.get(method, size, seed) is not None:
                    continue
                student = new_student(teacher, settings, seed)
                found = train(
                    student, paths[kept], fields, objective, settings, tokens=size, seed=seed,
                    teacher=live if runs_along else None,
                )  # fmt: skip
                found |= held_out(student, measured_on, settings, live)
                runs.add(method, size, seed, found=found)
                print(f"{method}, {size:,} tokens, seed {seed}: {found}", flush=True)
    parameters = sum(parameter.numel() for parameter in new_student(teacher, settings, 0).parameters())
    of_teacher = held_out(live, measured_on, settings, live)["perplexity"]
    show(
        f"held-out perplexity of students of {parameters:,} parameters; the teacher's is {of_teacher:.2f}",
        table_of(runs, sizes, seeds, costs),
    )
    draw(runs, sizes, seeds, costs, out / "sample_efficiency.png")


if __name__ == "__main__":
    main()
