"""``logitstore train``."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from .render import key_values, percent, print_json, stderr, stdout

if TYPE_CHECKING:
    from collections.abc import Iterator

    from logitstore.train import TrainSummary

__all__ = ["command"]


@click.command("train", short_help="Train a student from a store.")
@click.option("--student", metavar="DIR_OR_ID", help="Pretrained student: a folder, or an id on the Hugging Face hub.")
@click.option("--student-config", metavar="FILE_OR_DIR", help="Instead: the configuration of a student to start anew.")
@click.option(
    "--tokenizer",
    metavar="DIR_OR_ID",
    help="Default: the student's; of a student from a configuration, that of the teacher which the store names.",
)
@click.option(
    "--ignore-tokenizer-mismatch",
    is_flag=True,
    help="Take a tokenizer that differs from the teacher's in anything but its vocabulary.",
)
@click.option("--store", required=True, metavar="PATH_OR_URL", help="The teacher's rows.")
@click.option(
    "--out", required=True, type=click.Path(file_okay=False), help="Folder for checkpoints and the trained student."
)
@click.option("--loss", default="slim", show_default=True, help="slim, forward_kl, cross_entropy, …")
@click.option(
    "--loss-option", "loss_options", multiple=True, metavar="KEY=VALUE", help="Option of the loss. May be repeated."
)
@click.option("--temperature", type=float, metavar="T", help="The same as --loss-option temperature=T.")
@click.option("--ce-weight", type=float, metavar="W", help="The same as --loss-option ce_weight=W.")
@click.option("--batch-size", default=8, show_default=True, help="Sequences of a micro-batch, in each process.")
@click.option("--seq-len", default=512, show_default=True, help="Tokens of a sequence; longer documents are cut.")
@click.option("--pack/--no-pack", default=True, show_default=True, help="Several documents in a sequence.")
@click.option("--steps", type=int, help="Steps of the optimizer.")
@click.option("--epochs", type=float, help="Instead: passes over the store.")
@click.option("--lr", default=5e-4, show_default=True, help="Peak learning rate of AdamW.")
@click.option("--lr-scheduler", default="cosine", show_default=True, help="A schedule of transformers.")
@click.option("--warmup-steps", default=0, show_default=True, help="Steps up to the peak.")
@click.option("--weight-decay", default=0.0, show_default=True, help="Decoupled weight decay.")
@click.option("--max-grad-norm", default=1.0, show_default=True, help="Norm that gradients are clipped to; 0: never.")
@click.option("--gradient-accumulation", default=1, show_default=True, help="Micro-batches of a step.")
@click.option("--bf16", is_flag=True, help="Weights in float32, products in bfloat16.")
@click.option("--gradient-checkpointing", is_flag=True, help="Compute activations twice instead of keeping them.")
@click.option(
    "--fused/--no-fused", default=None, help="Fuse the loss with the LM head. Default: where the head allows it."
)
@click.option("--attn-implementation", metavar="NAME", help="sdpa, eager, flash_attention_2, flex_attention, …")
@click.option("--workers", default=0, show_default=True, help="Processes that read; 0 reads in a thread.")
@click.option(
    "--decode",
    type=click.Choice(["auto", "host", "device"]),
    default="auto",
    show_default=True,
    help="Where kept entries are decoded: where they are read, or where the student is; auto: there, if that is a CUDA "
    "device with Triton and LOGITSTORE_KERNELS=auto is set.",
)
@click.option("--seed", default=0, show_default=True, help="Of a new student, dropout and the order of documents.")
@click.option("--log-every", default=10, show_default=True, metavar="STEPS", help="Steps from line to line of the log.")
@click.option("--save-every", type=int, metavar="STEPS", help="Steps between checkpoints. Default: at the end only.")
@click.option("--eval-every", type=int, metavar="STEPS", help="Steps between evaluations. Default: at the end only.")
@click.option("--keep-checkpoints", default=2, show_default=True, help="Older ones are deleted; at least 2.")
@click.option("--eval-store", metavar="PATH_OR_URL", help="Held-out store: perplexity, KL, agreement with the teacher.")
@click.option("--eval-text", metavar="PATH", help="Held-out text, as --data of build: perplexity.")
@click.option("--report-to", multiple=True, metavar="NAME", help="tensorboard, wandb, …; may be repeated.")
@click.option("--device", type=click.Choice(["auto", "cpu"]), default="auto", show_default=True, help="Where to train.")
@click.option("--trust-remote-code", is_flag=True, help="Run Python code that comes with student or tokenizer.")
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint in --out.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: steps, metrics, the last line of the log.")
def command(resume: bool, as_json: bool, **options: Any) -> None:
    """Train a student from a store, with Hugging Face's Trainer, and save it as transformers loads it.

    Ctrl-C, or a crash, loses what came after the last checkpoint: run the same command with --resume. Under torchrun
    (torchrun --nproc-per-node 8 -m logitstore_cli.main train …) all processes train one student.

    \b
    Examples:
      logitstore train --student DIR --store teacher.zarr --steps 1000 --out student
      logitstore train --student-config config.json --store teacher.zarr --loss forward_kl --epochs 2 --out student
      logitstore train --student DIR --store teacher.zarr --epochs 1 --save-every 500 --eval-text held_out.jsonl --out s
    """  # noqa: D301
    from logitstore.train import TrainConfig, train

    shortcuts = {name: options.pop(name) for name in ("temperature", "ce_weight")}
    options["loss_options"] = _pairs(options["loss_options"]) | {
        name: value for name, value in shortcuts.items() if value is not None
    }
    config = TrainConfig(**options)
    try:
        with _progress() as callback:
            summary = train(config, resume=resume, callbacks=[callback])
    except KeyboardInterrupt:
        click.echo("\nInterrupted. Go on from the last checkpoint with the same command and --resume.", err=True)
        raise
    if not summary.trainer.is_world_process_zero():
        return
    lines = [line for line in summary.log if "loss" in line]
    if as_json:
        last = lines[-1] if lines else None
        print_json({"steps": summary.steps, "new_steps": summary.new_steps, "metrics": summary.metrics, "log": last})
    else:
        _render(summary, lines[-1] if lines else {})


def _pairs(texts: tuple[str, ...]) -> dict[str, str]:
    pairs = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not (key and equals):
            raise click.UsageError(f"--loss-option is KEY=VALUE, found {text!r}")
        pairs[key] = value
    return pairs


@contextmanager
def _progress() -> Iterator[Any]:
    """Show a bar on stderr; what is yielded is the callback that moves it."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from transformers import TrainerCallback

    columns = (MofNCompleteColumn(), TextColumn("steps"), BarColumn(), TextColumn("{task.description}"))
    quiet = os.environ.get("RANK", "0") != "0"  # one bar for all processes that torchrun starts
    with Progress(*columns, TimeRemainingColumn(), console=stderr(), disable=quiet) as bar:
        task = bar.add_task("loading the student", total=None)

        class Callback(TrainerCallback):  # type: ignore[misc]
            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
                bar.update(task, completed=state.global_step, total=state.max_steps)

            def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                self.on_step_end(args, state, control)
                bar.update(task, description="training")

            def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:  # noqa: ARG002
                if not state.is_world_process_zero:
                    return
                if "loss" in logs and "tokens_per_second" in logs:
                    bar.update(
                        task,
                        description=f"loss {logs['loss']:.4f}, {logs['tokens_per_second']:,.0f} tokens/s, "
                        f"waited for data {percent(logs['data_wait_share'])}",
                    )
                elif found := _metrics(logs):
                    bar.console.print(f"step {state.global_step}: " + ", ".join(" ".join(pair) for pair in found))

        yield Callback()


def _metrics(metrics: dict[str, float]) -> list[tuple[str, str]]:
    return [
        (name.removeprefix("eval_").replace("_", " ", 1), f"{value:,.4g}")
        for name, value in metrics.items()
        if name.startswith("eval_") and not name.endswith(("_nll", "_rows"))
    ]


def _render(summary: TrainSummary, last: dict[str, float]) -> None:
    left_out = {"epoch", "step", "loss", "learning_rate", "grad_norm", "data_wait_seconds", "data_wait_share"}
    again = "" if summary.new_steps == summary.steps else f" ({summary.new_steps:,} by this run)"
    pairs = [("steps", f"{summary.steps:,}{again} in {summary.seconds:,.0f} s")]
    if last:
        parts = ", ".join(f"{name} {value:,.4g}" for name, value in last.items() if name not in left_out)
        pairs += [("last loss", f"{last['loss']:.4f} ({parts})")]
    if "data_wait_share" in last:
        pairs.append(("waited for data", percent(last["data_wait_share"])))
    stdout().print(key_values(str(summary.out), pairs + _metrics(summary.metrics)))
