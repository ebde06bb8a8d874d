"""`DistillationTrainer`: Hugging Face's Trainer over a `BatchStream`."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback

from logitstore.stream.device_batch import FOR_THE_HOST
from logitstore.train.checkpoint import STREAM_FILE, write_json
from logitstore.train.evaluate import evaluate
from logitstore.train.meter import Meter

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

    from logitstore.stream import BatchStream
    from logitstore.train.evaluate import Evaluation
    from logitstore.train.step import LossStep

    Batch = dict[str, Tensor]

__all__ = ["DistillationTrainer"]


class DistillationTrainer(Trainer):  # type: ignore[misc]
    """A Trainer that learns from a store.

    The loss of a step is that of all rows that count, of all micro-batches and ranks, divided by their number. Beside
    ``loss``, ``grad_norm`` and ``learning_rate`` the log has the parts of the loss, ``kept_mass`` (the teacher's
    probability of the kept ids, mean over the rows of the step that is logged), ``tokens_per_second`` of all ranks, and
    ``data_wait_seconds`` per step with its share ``data_wait_share``: the time in which this process waited for the
    step's batches, until they were read and decoded or, where the device decodes, decoded there. Of that, what was done
    while the step before ran is not waited for.

    Parameters
    ----------
    model, args, processing_class, callbacks
        As for `transformers.Trainer`. ``args`` has ``max_steps``, ``remove_unused_columns=False``,
        ``ignore_data_skip=True`` and ``ddp_find_unused_parameters=False``, and is made before the stream, which asks
        it for the ranks.
    stream
        What to learn from, with the fields that ``step.stored_fields`` names. Where it was made with
        ``decode="device"``, batches are decoded where the student is, the first of a step while the step before runs.
    step
        Made of the same model.
    evaluations
        What to evaluate on, by name: metrics are called ``eval_NAME_…``.
    workers
        DataLoader workers.

    Examples
    --------
    >>> trainer = DistillationTrainer(model, args, stream=stream, step=step)  # doctest: +SKIP
    >>> trainer.train()                                                       # doctest: +SKIP
    """

    def __init__(
        self,
        model: Any,
        args: Any,
        *,
        stream: BatchStream,
        step: LossStep,
        evaluations: Mapping[str, Evaluation] | None = None,
        workers: int = 0,
        **kwargs: Any,
    ) -> None:
        # A process drives one device: on more, start more processes (torchrun), not torch's DataParallel.
        if args.n_gpu > 1:
            args._n_gpu = 1
        super().__init__(model, args, eval_dataset=evaluations or None, **kwargs)
        self.stream, self.step, self.evaluations, self.workers = stream, step, evaluations or {}, workers
        self.used: Batch | None = None
        self.meter = Meter()
        # The loss is a sum over rows divided by the rows of the whole step: the Trainer has nothing left to divide.
        self.model_accepts_loss_kwargs = self.loss_is_scaled_for_ga = True
        # The Trainer switches off in the student's configuration what is only off in training.
        model.config.use_cache = True
        self.add_callback(_Hooks(self))

    def get_train_dataloader(self) -> Any:
        """Return batches without an end or a length: the Trainer counts steps, and the stream its epochs.

        They do not go through ``accelerator.prepare``, as the stream has dealt them to ranks already.
        """
        return _Endless(self.stream, self.workers, self.args.device)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], Tensor]:
        """Return the micro-batches of a step, and how many rows count in them, on all ranks."""
        with self.meter.step_begins():
            batches = list(itertools.islice(epoch_iterator, num_batches))
        for batch in batches:
            batch["counted"] = self.step.counted(batch)
            self.meter.add_tokens(batch["attention_mask"].sum())
        self.used = {"cursor": batches[-1]["cursor"]}
        counted = torch.stack([batch["counted"] for batch in batches]).sum()
        return batches, self._sum_over_ranks(counted).clamp(min=1).to(device)

    def _prepare_inputs(self, inputs: Batch) -> Batch:
        # What was decoded on the device is there. What is for the host would be waited for on its way.
        return {
            name: tensor.to(self.args.device, non_blocking=True)
            for name, tensor in inputs.items()
            if name not in FOR_THE_HOST
        }

    def compute_loss(
        self, model: Any, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Tensor | None = None
    ) -> Tensor:
        """Return this micro-batch's share of the loss of the step."""
        assert num_items_in_batch is not None
        assert not return_outputs
        summed, parts = model(distill=inputs)
        if (self.state.global_step + 1) % self.state.logging_steps == 0 and "logprobs" in inputs:
            parts |= self._kept_mass(inputs)
        self.meter.add_means(parts, inputs["counted"] / num_items_in_batch)
        loss: Tensor = summed * self.accelerator.num_processes / num_items_in_batch  # gradients are averaged over ranks
        return loss

    def _kept_mass(self, inputs: Batch) -> Batch:
        rows = self.step.rows(inputs).flat()
        where = self.step.loss.counted(rows).nonzero()[:, 0]
        # exp of an unused slot's -inf is 0.
        mass = rows.need("logprobs")[where].float().exp_().sum(-1)
        return {"kept_mass": mass.mean()} if len(mass) else {}

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add what has been measured since the last line."""
        if "loss" in logs:
            self.meter.stop()
            logs.update(self.meter.take(lambda sums: gather_object([sums])))
        super().log(logs, *args, **kwargs)

    def evaluate(self, *_: Any, metric_key_prefix: str = "eval", **__: Any) -> dict[str, float]:
        """Evaluate on everything there is; `logitstore.train.evaluate` says what the metrics are."""
        metrics: dict[str, float] = {}
        for name, evaluation in self.evaluations.items():
            with self.accelerator.autocast():
                found = evaluate(
                    self.model,
                    evaluation,
                    vocab_size=self.step.vocab_size,
                    plain_head=self.step.fused,
                    device=self.args.device,
                    reduce=self._sum_over_ranks,
                )
            metrics |= {f"{metric_key_prefix}_{name}_{metric}": value for metric, value in found.items()}
        self.log(dict(metrics))
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _sum_over_ranks(self, tensor: Tensor) -> Tensor:
        if self.accelerator.num_processes == 1:
            return tensor
        summed: Tensor = self.accelerator.reduce(tensor.to(self.args.device), reduction="sum")
        return summed

    def save_stream(self, checkpoint: Path) -> None:
        """Complete a checkpoint with the place in the data, the same on all ranks."""
        self.accelerator.wait_for_everyone()
        if self.is_world_process_zero():
            write_json(checkpoint / STREAM_FILE, self.stream.state_dict(self.used))


class _Endless:
    """The batches of a stream from where it stands, epoch after epoch.

    On the device, if they are to be decoded there. Else they stay in host memory till they are used, so that only one
    of a step's micro-batches takes the device's.
    """

    def __init__(self, stream: BatchStream, workers: int, device: torch.device) -> None:
        self._stream = stream
        self._device = device
        # Of its own generator: the seeds of workers are drawn anew when a run is resumed, and the dropout that follows
        # must not notice.
        self._loader = DataLoader(
            stream, batch_size=None, num_workers=workers, pin_memory=device.type == "cuda", generator=torch.Generator()
        )

    def __iter__(self) -> Iterator[Batch]:
        for epoch in itertools.count(self._stream.epoch):
            self._stream.set_epoch(epoch)
            if self._stream.decodes_on_device:
                yield from self._stream.on_device(self._loader, self._device)
            else:
                yield from self._loader


class _Hooks(TrainerCallback):  # type: ignore[misc]
    def __init__(self, trainer: DistillationTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        # A resumed state has the intervals of the run that was stopped.
        state.compute_steps(args, state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        self.trainer.meter.step_ends()
        assert self.trainer.used is not None
        # Not the Trainer's own count, which takes all steps for one epoch.
        state.epoch = float(self.trainer.used["cursor"][3])

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        self.trainer.save_stream(Path(args.output_dir, f"checkpoint-{state.global_step}"))
