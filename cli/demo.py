"""``logitstore demo``: the whole way, with the public commands, on text that every Python carries."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import click

__all__ = ["command"]

_STUDENT_STEPS = 90


@click.command(short_help="Train a small teacher, store its logits, check them, and train a student from them.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder to work in; must be empty or new. Default: a temporary one that stays.",
)
@click.option("--seconds", type=click.FloatRange(1), default=60.0, show_default=True, help="Time to train the teacher.")
def command(out: Path | None, seconds: float) -> None:
    """Show what logitstore does, in about three minutes: no network, no GPU.

    Trains a small Llama on the documentation inside Python's own help system, stores its logits over the same text,
    inspects, verifies, pictures and reads them, and trains a smaller student from them. Everything is done with the
    commands you would use yourself.
    """
    from logitstore.errors import InvalidArgumentError

    folder = out or Path(tempfile.mkdtemp(prefix="logitstore-demo-"))
    if folder.exists() and any(folder.iterdir()):
        raise InvalidArgumentError("the folder is not empty", path=folder)
    folder.mkdir(parents=True, exist_ok=True)
    texts = _python_help()
    held_out_topics = list(texts)[::10]
    corpus, held_out = folder / "corpus.jsonl", folder / "held_out.jsonl"
    _write(corpus, {topic: text for topic, text in texts.items() if topic not in held_out_topics})
    _write(held_out, {topic: texts[topic] for topic in held_out_topics})
    click.secho(f"\n1. A teacher, trained for {seconds:.0f} s on {len(texts)} topics of Python's help", bold=True)
    _train(list(texts.values()), folder / "teacher", seconds)

    store = folder / "teacher.zarr"
    click.secho("\n2. Its logits on disk", bold=True)
    _run(
        "build",
        "--teacher",
        folder / "teacher",
        "--data",
        corpus,
        "--key-field",
        "topic",
        "--top-k",
        "64",
        "--out",
        store,
    )
    click.secho("\n3. What is in it", bold=True)
    _run("inspect", store)
    _run("inspect", store, "--document", "3", "--rows", "0:8")
    click.secho("\n4. Is it sound? Does the teacher still say the same?", bold=True)
    _run("verify", store, "--teacher", folder / "teacher", "--sample-rows", "2000")
    click.secho("\n5. What was kept", bold=True)
    _run("stats", store, "--plot", folder / "stats.png")
    click.secho("\n6. Reading it", bold=True)
    _read(store)
    click.secho("\n7. Learning from it: a student of half the width, from random weights", bold=True)
    _configure_student(folder / "teacher", folder / "student.json")
    _run(
        "train", "--student-config", folder / "student.json", "--store", store, "--steps", _STUDENT_STEPS,
        "--seq-len", 128, "--lr", 3e-3, "--eval-every", _STUDENT_STEPS // 3, "--eval-text", held_out,
        "--out", folder / "student",
    )  # fmt: skip
    click.secho("\nGo on with", bold=True)
    for line in (
        f"logitstore bench {store}",
        f"logitstore stats {store} --json",
        "logitstore build --teacher DIR_OR_HF_ID --data corpus.jsonl --top-k 64 --out teacher.zarr",
        "logitstore train --student DIR_OR_HF_ID --store teacher.zarr --epochs 1 --out student",
        "logitstore --help",
    ):
        click.echo(f"  {line}")
    click.echo(f"\nEverything is in {folder}; the figure is {folder / 'stats.png'}.")


def _write(path: Path, texts: dict[str, str]) -> None:
    path.write_text("".join(json.dumps({"topic": topic, "text": text}) + "\n" for topic, text in texts.items()))


def _configure_student(teacher: Path, path: Path) -> None:
    config = json.loads((teacher / "config.json").read_text())
    for name in ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"):
        config[name] //= 2
    path.write_text(json.dumps(config, indent=1) + "\n")


def _python_help() -> dict[str, str]:
    from pydoc_data.topics import topics

    return {name: text for name, text in sorted(topics.items()) if len(text) > 200}


def _train(texts: list[str], folder: Path, seconds: float) -> None:
    from rich.console import Console
    from rich.progress import Progress

    from logitstore.teacher.tiny import train_tiny_teacher

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("training", total=1.0)

        def report(step: int, loss: float, share: float) -> None:
            bar.update(task, completed=share, description=f"step {step}, loss {loss:.2f}")

        loss = train_tiny_teacher(texts, folder, seconds=seconds, on_step=report)
        bar.update(task, completed=1.0)
    click.echo(f"loss {loss:.2f} nats a token; saved to {folder}")


def _run(*arguments: object) -> None:
    words = [str(word) for word in arguments]
    click.secho(f"\n$ {shlex.join(['logitstore', *words])}", fg="green")
    sys.stdout.flush()
    done = subprocess.run([sys.executable, "-m", "logitstore_cli.main", *words], check=False)
    if done.returncode:
        raise click.ClickException(f"the command above ended with status {done.returncode}")


def _read(store: Path) -> None:
    import numpy as np
    import zarr

    import logitstore

    click.secho(
        "\n>>> store = logitstore.open(path); store[3]; store.rows[1000:1002]; zarr.open(path)['ids']", fg="green"
    )
    opened = logitstore.open(store)
    document = opened[3]
    click.echo(f"{opened!r}")
    click.echo(
        f"{document.key!r}: tokens {document.tokens.shape}, ids {document.ids.shape}, mask {int(document.mask.sum())}"
    )
    for row, token in enumerate(document.tokens[:3]):
        best = ", ".join(
            f"{candidate} ({float(logprob):.2f})"
            for candidate, logprob in zip(document.ids[row, :4], document.logprobs[row, :4], strict=True)
        )
        click.echo(f"  after token {token}: {best} …; log p of the next one {document.label_logprob[row]:.2f}")
    rows = opened.rows[1000:1002]
    click.echo(f"rows 1000:1002: logits {rows.logits.shape} {rows.logits.dtype}, lse {rows.lse}")
    array = zarr.open_group(str(store), mode="r")["ids"]
    assert isinstance(array, zarr.Array)
    same = set(np.asarray(array[1000]).tolist()) == set(rows.ids[0].tolist())
    click.echo(f"plain zarr: {array.shape} {array.dtype}, the same ids: {same}")
