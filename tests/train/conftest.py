from __future__ import annotations

import gc
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import transformers

from logitstore.train import TrainConfig
from tests.tiny_stores import TinyStores, make_stores

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def _one_thread_of_the_cpu(one_thread: None) -> Iterator[None]:
    yield
    gc.collect()


@pytest.fixture(scope="package", autouse=True)
def _without_what_the_trainer_says() -> Iterator[None]:
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(level)


@pytest.fixture(scope="package")
def stores(tmp_path_factory: pytest.TempPathFactory) -> TinyStores:
    return make_stores(tmp_path_factory.mktemp("train"))


@dataclass(frozen=True)
class Run:
    """Settings of short runs over one store."""

    stores: TinyStores
    student_config: str

    def config(self, out: Path | str, **changes: Any) -> TrainConfig:
        settings: dict[str, Any] = {
            "store": str(self.stores.zarr), "student_config": self.student_config, "out": str(out), "steps": 4,
            "batch_size": 2, "seq_len": 64, "lr": 1e-2, "log_every": 1, "device": "cpu",
        }  # fmt: skip
        return TrainConfig(**(settings | changes))


def small_llama(**changes: Any) -> Any:
    """A configuration whose vocabulary is padded beyond the tokenizer's."""
    settings = {
        "vocab_size": 320, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "max_position_embeddings": 256, "bos_token_id": 0, "eos_token_id": 0,
    }  # fmt: skip
    return transformers.LlamaConfig(**(settings | changes))


@pytest.fixture(scope="package")
def run(stores: TinyStores, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """With dropout, so that random numbers must be resumed as well."""
    folder = tmp_path_factory.mktemp("student")
    small_llama(attention_dropout=0.2).save_pretrained(folder)
    return Run(stores, str(folder))


@pytest.fixture
def at_step() -> Callable[[int, Callable[[], None]], transformers.TrainerCallback]:
    """Make a callback that does something at a step."""

    class AtStep(transformers.TrainerCallback):
        def __init__(self, step: int, action: Callable[[], None]) -> None:
            self.step, self.action = step, action

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == self.step:
                self.action()

    return AtStep
