"""Training students from stores: `train` does it all, `DistillationTrainer` is its Trainer for runs of one's own.

>>> from logitstore.train import TrainConfig, train
>>> summary = train(TrainConfig(store="teacher.zarr", student="student", out="run", steps=1000))  # doctest: +SKIP
>>> summary.metrics                                                                               # doctest: +SKIP
{}
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from logitstore.train.config import TrainConfig
from logitstore.train.evaluate import Evaluation
from logitstore.train.run import TrainSummary, train
from logitstore.train.step import LossStep

if TYPE_CHECKING:
    from logitstore.train.trainer import DistillationTrainer

__all__ = ["DistillationTrainer", "Evaluation", "LossStep", "TrainConfig", "TrainSummary", "train"]


def __getattr__(name: str) -> Any:
    # transformers' Trainer takes seconds to import.
    if name == "DistillationTrainer":
        from logitstore.train.trainer import DistillationTrainer

        return DistillationTrainer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
