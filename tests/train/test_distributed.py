"""Two real processes learn what one does from batches twice as large."""

from __future__ import annotations

import json
import os
import socket
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.multiprocessing as mp
import transformers
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from logitstore.train import train
from tests.train.conftest import small_llama

if TYPE_CHECKING:
    from pathlib import Path

    from logitstore.train import TrainConfig

pytestmark = [
    pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="no gloo"),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]


def _train(rank: int, port: int, config: TrainConfig) -> None:
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    # Forked, which saves importing everything twice more; but Accelerate remembers that it was alone.
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        train(config)
    finally:
        torch.distributed.destroy_process_group()


def _log(out: Path) -> list[dict[str, float]]:
    return json.loads((out / "trainer_state.json").read_text())["log_history"]


@pytest.mark.parametrize("decode", ["host", "device"])
def test_two_processes(decode: str, run: Any, stores: Any, tmp_path: Path) -> None:
    (tmp_path / "held_out.txt").write_text("the old fox never sings and the bell runs")
    common = {
        "steps": 4, "student_config": None, "student": str(tmp_path / "student"), "eval_store": str(stores.tars),
        "eval_text": str(tmp_path / "held_out.txt"),
    }  # fmt: skip
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(small_llama()).save_pretrained(tmp_path / "student")
    tokenizer = transformers.AutoTokenizer.from_pretrained(stores.teacher)
    tokenizer.save_pretrained(tmp_path / "student")
    # An epoch has 11 sequences: in its third step one process has a short batch, of two one has a blank one.
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = run.config(tmp_path / "two", batch_size=1, gradient_accumulation=2, decode=decode, **common)
    mp.start_processes(_train, (port, config), nprocs=2, start_method="fork")
    train(run.config(tmp_path / "one", batch_size=4, **common))
    two, one = _log(tmp_path / "two"), _log(tmp_path / "one")
    assert len(two) == len(one)
    for found, expected in zip(two, one, strict=True):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            if "per_second" not in name and "wait" not in name and "runtime" not in name:
                assert found[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("two", "one")]
    for name, tensor in weights[1].items():
        torch.testing.assert_close(weights[0][name], tensor, rtol=1e-3, atol=1e-4)
