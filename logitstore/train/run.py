"""`train`: from a configuration to a student on disk."""

from __future__ import annotations

import math
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import logitstore
from logitstore.errors import InvalidArgumentError
from logitstore.loss import make_loss
from logitstore.stream import BatchStream, Collate
from logitstore.teacher.loading import context_length, without_bars
from logitstore.train.arguments import trainer_arguments
from logitstore.train.checkpoint import RUN_FILE, check_out, last_checkpoint, read_stream_state, run_record, write_json
from logitstore.train.decoding import where_decoded
from logitstore.train.fit import check_loss, check_tokenizer, check_vocabulary
from logitstore.train.held_out import held_out_data
from logitstore.train.step import LossStep
from logitstore.train.student import check_paths, load_student, load_tokenizer, require_separate_documents

if TYPE_CHECKING:
    from collections.abc import Sequence

    from logitstore.reader import Store
    from logitstore.train.config import TrainConfig
    from logitstore.train.trainer import DistillationTrainer

__all__ = ["TrainSummary", "train"]


@dataclass(frozen=True)
class TrainSummary:
    """What came of a run.

    Attributes
    ----------
    out
        Where the student is.
    steps, new_steps
        Steps of the optimizer in all, and of this call.
    metrics
        Of the last evaluation, by name.
    log
        Every line of the log, those before resuming included.
    seconds
        Of this call.
    trainer
        What did it; ``trainer.model`` is the student.
    """

    out: Path
    steps: int
    new_steps: int
    metrics: dict[str, float]
    log: list[dict[str, float]]
    seconds: float
    trainer: DistillationTrainer


def train(config: TrainConfig, *, resume: bool = False, callbacks: Sequence[Any] = ()) -> TrainSummary:
    """Train a student from a store, and save it as `AutoModelForCausalLM` loads it.

    Beside the model and its tokenizer lie ``distillation.json`` (store, loss, settings, final metrics) and
    checkpoints. Under torchrun or ``accelerate launch`` all processes train one student together.

    Parameters
    ----------
    config
        What to do.
    resume
        Go on from the last whole checkpoint in ``config.out``; begin if there is none. On a CPU with the same settings
        the weights become, bit for bit, those of a run that was never stopped.
    callbacks
        `transformers.TrainerCallback`; ``transformers.trainer_callback.ProgressCallback`` shows a bar. Without, nothing
        is printed.

    Raises
    ------
    InvalidArgumentError
        If student, tokenizer, loss and store do not fit each other, the student cannot be loaded or cannot be packed
        for, or ``out`` holds something else than a run to resume.
    CorruptDataError
        If the store, or a checkpoint, is damaged.

    Examples
    --------
    >>> from logitstore.train import TrainConfig, train
    >>> config = TrainConfig(store="teacher.zarr", student="student", out="run", steps=1000)  # doctest: +SKIP
    >>> train(config).trainer.model.generate(...)                                             # doctest: +SKIP
    """
    from transformers import set_seed
    from transformers.trainer_callback import PrinterCallback

    from logitstore.train.trainer import DistillationTrainer

    start = time.perf_counter()
    out = Path(config.out)
    check_paths(config)
    loss = make_loss(config.loss, **config.loss_options)
    with without_bars(), ExitStack() as opened:
        store = opened.enter_context(logitstore.open(config.store, order="stored"))
        check_loss(loss, store)
        record = run_record(config, store, loss)
        arguments = trainer_arguments(config)  # sets up the ranks
        check_out(out, record, resume=resume)
        _wait_for_all_ranks()  # before one of them writes there

        tokenizer = load_tokenizer(config, store)
        check_tokenizer(tokenizer, store, ignore_mismatch=config.ignore_tokenizer_mismatch)
        set_seed(config.seed)
        model = load_student(config)
        _check_student(model, config, store)
        step = LossStep(
            model, loss, vocab_size=store.vocab_size, temperatures=store.manifest.temperatures, fused=config.fused
        )
        collate = Collate(config.seq_len, config.pack, values="logprob", fields=step.stored_fields)
        stream = BatchStream(
            store, config.batch_size, collate=collate, seed=config.seed, pin_memory=arguments.device.type == "cuda",
            decode=where_decoded(config.decode, arguments.device),
        )  # fmt: skip
        arguments.max_steps = _steps(config, stream)
        trainer = DistillationTrainer(
            model,
            arguments,
            stream=stream,
            step=step,
            evaluations=held_out_data(config, store, tokenizer, arguments, opened),
            workers=config.workers,
            processing_class=tokenizer,
            callbacks=list(callbacks),
        )
        trainer.remove_callback(PrinterCallback)
        if trainer.is_world_process_zero():
            write_json(out / RUN_FILE, {"complete": False, **record})
        if config.gradient_checkpointing:
            # The name changed with transformers 5.
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable({"use_reentrant": False})
        new_steps = _run(trainer, out if resume else None)
        metrics = _last_evaluation(trainer) or (trainer.evaluate() if trainer.evaluations else {})
        trainer.save_model()
        trainer.save_state()
        if trainer.is_world_process_zero():
            done = {"complete": True, "steps": trainer.state.global_step, "metrics": metrics}
            write_json(out / RUN_FILE, done | record)
    return TrainSummary(
        out, trainer.state.global_step, new_steps, metrics, trainer.state.log_history,
        time.perf_counter() - start, trainer,
    )  # fmt: skip


def _run(trainer: DistillationTrainer, resumed: Path | None) -> int:
    """Train, and return how many steps there were left."""
    from transformers.trainer_callback import TrainerState

    checkpoint = None if resumed is None else last_checkpoint(resumed)
    if checkpoint is None:
        trainer.train()
        return int(trainer.state.global_step)
    before = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    if before.global_step >= trainer.args.max_steps:
        # All steps are done, and the Trainer would take one more.
        trainer._load_from_checkpoint(str(checkpoint))
        trainer.state = before
        return 0
    trainer.stream.load_state_dict(read_stream_state(checkpoint))
    trainer.train(resume_from_checkpoint=str(checkpoint))
    return int(trainer.state.global_step - before.global_step)


def _last_evaluation(trainer: DistillationTrainer) -> dict[str, float]:
    """Return the metrics of the last step, if it has been evaluated."""
    found: dict[str, float] = {}
    for line in trainer.state.log_history:
        if line["step"] == trainer.state.global_step:
            found |= {name: value for name, value in line.items() if name.startswith("eval_")}
    return found


def _wait_for_all_ranks() -> None:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()


def _check_student(model: Any, config: TrainConfig, store: Store) -> None:
    check_vocabulary(model, store)
    longest = context_length(model.config)
    if longest is not None and config.seq_len > longest:
        raise InvalidArgumentError(f"the student reads {longest} tokens at most, seq_len is {config.seq_len}")
    if config.pack:
        require_separate_documents(model)


def _steps(config: TrainConfig, stream: BatchStream) -> int:
    if config.epochs is None:
        assert config.steps is not None
        return config.steps
    whole, batches = int(config.epochs), 0.0
    for epoch in range(math.ceil(config.epochs)):
        stream.set_epoch(epoch)
        batches += len(stream) * (1.0 if epoch < whole else config.epochs - whole)
    stream.set_epoch(0)
    return max(1, math.ceil(batches / config.gradient_accumulation))
