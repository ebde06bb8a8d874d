"""Settings of a run in the words of `transformers.Trainer`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from logitstore.errors import InvalidArgumentError

if TYPE_CHECKING:
    from logitstore.train.config import TrainConfig

__all__ = ["trainer_arguments"]


def trainer_arguments(config: TrainConfig) -> Any:
    """Return ``transformers.TrainingArguments``, except for the number of steps. Making them sets up the ranks.

    Raises
    ------
    InvalidArgumentError
        If transformers refuses a setting, or lacks the package that it is to report to.
    """
    from transformers import TrainingArguments
    from transformers.integrations import get_reporting_integration_callbacks

    every = {"eval_strategy": "steps", "eval_steps": config.eval_every} if config.eval_every else {}
    evaluates = config.eval_store is not None or config.eval_text is not None
    try:
        for reporting in get_reporting_integration_callbacks(list(config.report_to)):
            reporting()
        return TrainingArguments(
            config.out,
            max_steps=1,  # until the stream is there to count
            per_device_train_batch_size=config.batch_size,
            gradient_accumulation_steps=config.gradient_accumulation,
            learning_rate=config.lr,
            lr_scheduler_type=config.lr_scheduler,
            warmup_steps=config.warmup_steps,
            weight_decay=config.weight_decay,
            max_grad_norm=config.max_grad_norm,
            bf16=config.bf16,
            seed=config.seed,
            use_cpu=config.device == "cpu",
            logging_steps=config.log_every,
            logging_nan_inf_filter=False,  # a loss that is no number is news
            save_steps=config.save_every or 1 << 40,
            save_total_limit=config.keep_checkpoints,
            report_to=list(config.report_to) or "none",
            ddp_find_unused_parameters=False,
            remove_unused_columns=False,
            ignore_data_skip=True,
            disable_tqdm=True,
            **(every if evaluates else {}),
        )
    except (ImportError, RuntimeError, ValueError) as error:
        raise InvalidArgumentError(f"the Trainer does not take these settings: {error}") from error
