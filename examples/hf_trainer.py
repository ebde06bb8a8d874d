"""Hugging Face's Trainer over a stream, with checkpoints that know where in the data they were taken.

    python examples/hf_trainer.py teacher.zarr STUDENT --steps 1000 --output run
    torchrun --nproc-per-node 8 examples/hf_trainer.py teacher.zarr STUDENT --steps 1000 --output run

The same command again continues from the last checkpoint, also with another number of processes.
"""

import json
from pathlib import Path

from step import command_line, distillation_loss, endless, load_student
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from logitstore.loss import make_loss
from logitstore.stream import BatchStream, Collate


class DistillationTrainer(Trainer):
    """A Trainer that learns from a stream."""

    def __init__(self, *args, stream, loss, **kwargs):
        super().__init__(*args, **kwargs)
        self.stream, self.loss, self.used = stream, loss, None
        self.add_callback(SaveStream(self))

    def get_train_dataloader(self):
        """Yield batches without an end or a length, so that the Trainer counts steps and leaves epochs to the stream.

        They do not go through ``accelerator.prepare``: the stream has dealt them to ranks already.
        """
        for batch in endless(self.stream, self.args.dataloader_num_workers):
            # The Trainer counts targets. Of "labels" alone it would leave out the first of each sequence, as if they
            # were still to be shifted.
            yield batch | {"shift_labels": batch["labels"]}

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):  # noqa: ARG002
        """Return the loss per target; of all micro-batches of the step and all ranks, if the Trainer has counted."""
        self.used = {"cursor": inputs["cursor"]}
        vocab_size = self.stream.store.vocab_size
        if num_items_in_batch is None:
            return distillation_loss(model, inputs, self.loss, vocab_size)
        summed = distillation_loss(model, inputs, self.loss, vocab_size, reduction="sum")
        # The gradient is then averaged over ranks.
        ranks = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
        return summed * ranks / num_items_in_batch.clamp(min=1)


class SaveStream(TrainerCallback):
    """Puts the stream's state beside model and optimizer. It is the same for all ranks."""

    def __init__(self, trainer):
        self.trainer = trainer

    def on_save(self, args, state, control, **_):  # noqa: ARG002
        """Write it."""
        if state.is_world_process_zero:
            file = Path(args.output_dir, f"checkpoint-{state.global_step}", "stream.json")
            file.write_text(json.dumps(self.trainer.stream.state_dict(self.trainer.used)))


def main(arguments=None):
    """Train, and return the loss of each step."""
    parser = command_line(__doc__)
    parser.add_argument("--output", default="output")
    parser.add_argument("--save-every", type=int, default=100, help="steps from one checkpoint to the next")
    parser.add_argument("--accumulate", type=int, default=1, help="batches of a step")
    args = parser.parse_args(arguments)
    settings = TrainingArguments(
        args.output, max_steps=args.steps, learning_rate=args.lr, per_device_train_batch_size=args.batch_size,
        gradient_accumulation_steps=args.accumulate, dataloader_num_workers=args.workers, save_steps=args.save_every,
        logging_steps=1, report_to="none", remove_unused_columns=False, ignore_data_skip=True,
    )  # fmt: skip
    collate = Collate(seq_len=args.seq_len, pack=True, values="logprob")
    stream = BatchStream(args.store, args.batch_size, collate=collate)  # TrainingArguments have set up the ranks
    student = load_student(args.student, fresh=args.fresh)
    trainer = DistillationTrainer(student, settings, stream=stream, loss=make_loss(args.loss))
    checkpoint = get_last_checkpoint(args.output) if Path(args.output).is_dir() else None
    if checkpoint and checkpoint.endswith(f"-{args.steps}"):
        return []  # it is done, and the Trainer would take one step more
    if checkpoint:
        stream.load_state_dict(json.loads(Path(checkpoint, "stream.json").read_text()))
    trainer.train(resume_from_checkpoint=checkpoint)
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


if __name__ == "__main__":
    main()
