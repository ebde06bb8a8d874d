"""A step of training with SLIM from a store, against the same step with cross-entropy from text tokenised before.

    python benchmarks/train_step.py STORES/k64-logprob-float32.zarr STORES/fraction5-logprob-float32.zarr

One `DistillationTrainer` takes a step of each in turns: the same student, optimizer and packing. Text lies in memory as
finished batches; its loss is PyTorch's own over whole logits, as transformers computes it, or ours without a teacher. A
step is all from asking for the batch to the optimizer's update; nothing is read ahead, so that a step pays for its own
data. On a CPU, seconds are the process's own, on one core, so that they do not see what else the machine is doing.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from harness import median_ratio, show, use_one_core, write_json

if TYPE_CHECKING:
    from collections.abc import Iterator

SIZES = {"3m": (64, 2), "7m": (128, 4), "33m": (384, 8), "85m": (768, 8), "300m": (1024, 20)}
"""Hidden size and layers of Llamas with tied embeddings; parameters with a vocabulary of 50,257."""


def student(name: str, vocab_size: int, seq_len: int) -> Any:
    """Make a student by the name of its size, or after the configuration that a folder has."""
    from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

    if name not in SIZES:
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(name))
    hidden, layers = SIZES[name]
    config = LlamaConfig(
        vocab_size=vocab_size, hidden_size=hidden, intermediate_size=hidden * 8 // 3, num_hidden_layers=layers,
        num_attention_heads=hidden // 64, max_position_embeddings=seq_len, tie_word_embeddings=True,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config)


class TextStep:
    """A `LossStep` that needs nothing of a teacher: ``torch.nn.functional.cross_entropy`` over whole logits."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def counted(self, batch: dict[str, Any]) -> Any:
        """See `LossStep`."""
        return (batch["labels"] >= 0).sum()

    def summed(self, batch: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """See `LossStep`."""
        import torch

        from logitstore.train.student import student_inputs

        logits = type(self.model).forward(self.model, use_cache=False, **student_inputs(self.model, batch)).logits
        flat = logits.float().flatten(0, 1)
        return torch.nn.functional.cross_entropy(flat, batch["labels"].flatten(), reduction="sum"), {}


def make_trainer(contenders: dict[str, tuple[Any, Any]], model: Any, arguments: Any, rounds: int) -> Any:
    """Return a trainer that takes a step of each contender, ``(step, batches)``, in turns, and notes the seconds."""
    import torch
    from transformers import TrainerCallback

    from logitstore.train import DistillationTrainer

    order = [list(contenders)[:: 1 if turn % 2 == 0 else -1] for turn in range(rounds + 1)]
    names = [name for turn in order for name in turn]

    class Paired(DistillationTrainer):
        def get_train_dataloader(self) -> Iterator[Any]:
            iterators = {
                name: itertools.chain.from_iterable(itertools.repeat(batches))
                for name, (_, batches) in contenders.items()
            }
            for name in names:
                yield dict(next(iterators[name]))

        def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
            self.step = contenders[names[self.state.global_step]][0]
            self.began = now(device)
            batch = next(epoch_iterator)
            self.waited = now(device) - self.began
            return super().get_batch_samples(iter([batch]), num_batches, device)

    class Note(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
            seconds[names[state.global_step - 1]].append(now(args.device) - trainer.began)
            waits[names[state.global_step - 1]].append(trainer.waited)

    def now(device: Any) -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()

    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    waits: dict[str, list[float]] = {name: [] for name in contenders}
    arguments.max_steps = len(names)
    first = next(step for step, stream in contenders.values() if hasattr(stream, "store"))
    stream = next(stream for _, stream in contenders.values() if hasattr(stream, "store"))
    trainer = Paired(model, arguments, stream=stream, step=first, callbacks=[Note()])
    plain = type(model).forward.__get__(model)

    @wraps(plain)
    def forward(*args: Any, distill: Any = None, **kwargs: Any) -> Any:
        return plain(*args, **kwargs) if distill is None else trainer.step.summed(distill)

    model.forward = forward
    return trainer, seconds, waits


@click.command(help=__doc__.splitlines()[0])
@click.argument("stores", nargs=-1, required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--student", "students", multiple=True, default=("7m", "33m"), show_default=True, help="Size or folder.")
@click.option("--batch-size", default=2, show_default=True)
@click.option("--seq-len", default=512, show_default=True)
@click.option("--rounds", default=8, show_default=True)
@click.option("--loss", default="slim", show_default=True)
@click.option("--prefetch", default=0, show_default=True, help="Batches read ahead, which then cost other steps time.")
@click.option("--bf16", is_flag=True)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Write the numbers here.")
def main(
    stores: tuple[Path, ...],
    students: tuple[str, ...],
    batch_size: int,
    seq_len: int,
    rounds: int,
    loss: str,
    prefetch: int,
    bf16: bool,
    device: str,
    json_path: Path | None,
) -> None:
    if device == "cpu":
        use_one_core()
    import torch
    from transformers import TrainingArguments, logging

    import logitstore
    from logitstore.loss import make_loss
    from logitstore.stream import BatchStream, Collate
    from logitstore.train import LossStep

    torch.set_num_threads(1 if device == "cpu" else torch.get_num_threads())
    logging.set_verbosity_error()
    tables: dict[str, list[dict[str, Any]]] = {}
    for size in students:
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                folder, max_steps=1, per_device_train_batch_size=batch_size, bf16=bf16, use_cpu=device == "cpu",
                learning_rate=1e-4, save_strategy="no", logging_steps=1 << 40, report_to="none", disable_tqdm=True,
                remove_unused_columns=False,
            )  # fmt: skip
            torch.manual_seed(0)
            vocab_size = logitstore.open(stores[0]).vocab_size
            model = student(size, vocab_size, seq_len)
            streams = {}
            for path in stores:
                for name in ("cross_entropy", loss):
                    step = LossStep(model, make_loss(name), vocab_size=vocab_size)
                    collate = Collate(seq_len, pack=True, values="logprob", fields=step.stored_fields)
                    stream = BatchStream(path, batch_size, collate=collate, prefetch=prefetch)
                    streams[f"{name}, {path.stem}"] = (step, stream)
            text = list(itertools.islice(streams[f"cross_entropy, {stores[0].stem}"][1], rounds + 1))
            contenders = {
                "torch cross_entropy, text": (TextStep(model), text),
                "cross_entropy, text": (streams[f"cross_entropy, {stores[0].stem}"][0], text),
                **{name: pair for name, pair in streams.items() if not name.startswith("cross_entropy")},
            }
            trainer, seconds, waits = make_trainer(contenders, model, arguments, rounds)
            trainer.train()
        base = list(contenders)[:2]
        tables[size] = [
            {
                "step": name,
                "median, s": statistics.median(seconds[name][1:]),
                **{
                    f"slower than {other}, %": 100 * (median_ratio(seconds[name][1:], seconds[other][1:]) - 1)
                    for other in base
                },
                "waited for data, % of the step": 100 * median_ratio(waits[name][1:], seconds[name][1:]),
            }
            for name in contenders
        ]
        million = sum(parameter.numel() for parameter in model.parameters()) / 1e6
        title = f"{size}: {million:.1f} M parameters, {batch_size} x {seq_len} tokens, {device}, {rounds} rounds"
        show(title, tables[size])
    write_json(json_path, tables)


if __name__ == "__main__":
    main()
