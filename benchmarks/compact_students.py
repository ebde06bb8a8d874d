"""Do students learn the same from a compact store: trained from it, and from the exact store it was made from.

    python benchmarks/compact_students.py --store STORE --teacher TEACHER --heldout HELDOUT --out OUT

STORE is one of the exact codec; `logitstore recode` makes the others. All students see the same batches in the same
order; what differs is what is read back. Finished runs are kept in OUT/runs.json.
"""

from __future__ import annotations

import dataclasses
import statistics
from pathlib import Path
from typing import Any

import click
import torch
from harness import show
from make_rows import is_complete
from runs import Runs, make_store
from student import Settings, held_out, load_teacher, new_student, stored_objective, train

import logitstore
from logitstore.container.codec_record import CodecRecord
from logitstore.convert import recode
from logitstore.select import Selection

CODECS = {
    "exact": None,
    "max_kl=3e-4": CodecRecord.compact(max_kl=3e-4),
    "max_error=0.25": CodecRecord.compact(max_error=0.25),
}
LOSSES = {"SLIM": ("slim", {}), "forward KL, tail": ("forward_kl", {"outside": "tail"})}


def stored(source: Path, out: Path, name: str) -> Path:
    """Recode the store, unless it is there."""
    codec, path = CODECS[name], out / f"{name}.zarr"
    if codec is None:
        return source
    if not is_complete(path):
        recode(source, path, codec=codec, resume=True)
    return path


def entry_bytes(path: Path) -> float:
    """Return the bytes of ids and values of a row, codebooks included."""
    with logitstore.open(path) as store:
        manifest = store.manifest
    fields = sum(manifest.bytes_by_field[name] for name in ("ids", f"{manifest.values}s"))
    return (fields + sum(file.bytes for file in manifest.codec.files.values())) / manifest.rows


@click.command(help=__doc__.splitlines()[0])
@click.option("--store", required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--teacher", required=True, help="Folder or Hugging Face id of the store's teacher.")
@click.option("--heldout", required=True, type=click.Path(exists=True), help="Text that students are measured on.")
@click.option("--heldout-documents", default=120, show_default=True)
@click.option("--tokens", default=900_000, show_default=True)
@click.option("--seeds", default=3, show_default=True)
@click.option("--layers", default=3, show_default=True)
@click.option("--hidden", default=48, show_default=True)
@click.option("--seq-len", default=256, show_default=True)
@click.option("--batch", default=4, show_default=True)
@click.option("--lr", default=3e-3, show_default=True)
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path))
def main(
    store: Path, teacher: str, heldout: str, heldout_documents: int, tokens: int, seeds: int, layers: int, hidden: int,
    seq_len: int, batch: int, lr: float, out: Path,
) -> None:  # fmt: skip
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    settings = Settings(layers, hidden, seq_len, batch, lr)
    about = {"store": str(store), "heldout": heldout, "heldout_documents": heldout_documents, "tokens": tokens}
    runs = Runs(out / "runs.json", {**about, **dataclasses.asdict(settings)})
    measured_on = out / "heldout.zarr"
    make_store(measured_on, teacher, heldout, Selection(top_k=1), seq_len=seq_len, limit=heldout_documents)
    live = load_teacher(teacher)
    table = []
    for name in CODECS:
        path = stored(store, out, name)
        for loss, (kind, options) in LOSSES.items():
            fields, objective = stored_objective(kind, **options)
            for seed in range(seeds):
                if runs.get(name, loss, seed) is None:
                    student = new_student(teacher, settings, seed)
                    found = train(student, path, fields, objective, settings, tokens=tokens, seed=seed)
                    runs.add(name, loss, seed, found=found | held_out(student, measured_on, settings, live))
                    print(name, loss, seed, runs.get(name, loss, seed), flush=True)
            table.append(_row(name, loss, entry_bytes(path), [runs.get(name, loss, seed) for seed in range(seeds)]))
    show("students of exact and of compact stores", table)


def _row(name: str, loss: str, size: float, runs: list[Any]) -> dict[str, Any]:
    def of(key: str) -> str:
        values = [run[key] for run in runs]
        return f"{statistics.mean(values):.3f} ± {statistics.stdev(values) if len(values) > 1 else 0.0:.3f}"

    return {
        "loss": loss, "store": name, "B a row, ids and values": size, "perplexity": of("perplexity"),
        "KL to teacher": of("kl"), "by seed": ", ".join(f"{run['perplexity']:.3f}" for run in runs),
    }  # fmt: skip


if __name__ == "__main__":
    main()
