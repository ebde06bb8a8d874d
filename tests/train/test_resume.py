"""A run that was stopped anywhere ends with the weights, bit for bit, of one that was not."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from logitstore.errors import InvalidArgumentError
from logitstore.train import train
from logitstore.train.checkpoint import last_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

KILLED = """
import os, signal, sys
import torch
from transformers import TrainerCallback
from logitstore.train import TrainConfig, train

class Kill(TrainerCallback):
    def on_step_end(self, args, state, control, **_):
        if state.global_step == 5:
            os.kill(os.getpid(), signal.SIGKILL)

torch.set_num_threads(1)
train(TrainConfig(**eval(sys.argv[1])), callbacks=[Kill()])
"""

SETTINGS = {"steps": 8, "save_every": 3, "gradient_accumulation": 2, "batch_size": 1}  # an epoch has 11 batches


@pytest.fixture(scope="module")
def whole(run, tmp_path_factory):
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("whole") / "run"
    summary = train(run.config(out, **SETTINGS))
    assert summary.steps == summary.new_steps == 8
    assert summary.log[-2]["epoch"] >= 1
    return out


def assert_same(out, whole):
    weights = [(folder / "model.safetensors").read_bytes() for folder in (out, whole)]
    assert weights[0] == weights[1]
    for name in ("stream.json", "rng_state.pth", "optimizer.pt"):
        found, expected = (folder / "checkpoint-8" / name for folder in (out, whole))
        if name.endswith(".json"):
            assert json.loads(found.read_text()) == json.loads(expected.read_text())
        else:
            assert_equal(torch.load(found, weights_only=False), torch.load(expected, weights_only=False))


def assert_equal(found, expected):
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            assert_equal(found[key], expected[key])
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected)
    elif isinstance(expected, list | tuple):
        for one, other in zip(found, expected, strict=True):
            assert_equal(one, other)


def test_killed(run, whole, tmp_path):
    config = run.config(tmp_path / "run", **SETTINGS)
    done = subprocess.run([sys.executable, "-c", KILLED, repr(vars(config))], check=False)
    assert done.returncode == -signal.SIGKILL
    assert last_checkpoint(tmp_path / "run").name == "checkpoint-3"
    assert not (tmp_path / "run" / "model.safetensors").exists()
    assert train(config, resume=True).new_steps == 5
    assert_same(tmp_path / "run", whole)


@pytest.mark.parametrize(
    ("stop", "workers", "decode", "then"),
    [(2, 0, "host", "host"), (7, 2, "host", "device"), (4, 0, "device", "device"), (7, 2, "device", "device")],
    ids=["before the first checkpoint", "with workers", "decoded by the device", "decoded by the device, with workers"],
)
def test_failed(stop, workers, decode, then, run, whole, tmp_path, at_step):
    def fail():
        raise RuntimeError("stop here")

    config = run.config(tmp_path / "run", workers=workers, decode=decode, **SETTINGS)
    with pytest.raises(RuntimeError, match="stop here"):
        train(config, callbacks=[at_step(stop, fail)])
    train(replace(config, decode=then), resume=True)
    assert_same(tmp_path / "run", whole)


def test_a_checkpoint_cut_short_does_not_count(run, whole, tmp_path, at_step):
    def stop():
        raise KeyboardInterrupt

    config = run.config(tmp_path / "run", **SETTINGS)
    with pytest.raises(KeyboardInterrupt):
        train(config, callbacks=[at_step(7, stop)])
    checkpoint = last_checkpoint(tmp_path / "run")
    assert checkpoint.name == "checkpoint-6"
    (checkpoint / "stream.json").unlink()  # it is written last
    (checkpoint / "model.safetensors").write_bytes(b"half")
    assert train(config, resume=True).new_steps == 5
    assert_same(tmp_path / "run", whole)


def test_what_is_done_is_not_done_again(run, whole):
    before = (whole / "model.safetensors").read_bytes()
    (whole / "model.safetensors").unlink()  # killed between the last checkpoint and the end
    summary = train(run.config(whole, **SETTINGS), resume=True)
    assert (summary.steps, summary.new_steps) == (8, 0)
    assert (whole / "model.safetensors").read_bytes() == before


def test_more_steps(run, whole, tmp_path):
    longer = SETTINGS | {"steps": 6, "lr_scheduler": "constant"}
    train(run.config(tmp_path / "run", **longer))
    summary = train(run.config(tmp_path / "run", **longer | {"steps": 8, "save_every": 1}), resume=True)
    assert (summary.steps, summary.new_steps) == (8, 2)
    assert [path.name for path in sorted((tmp_path / "run").glob("checkpoint-*"))] == ["checkpoint-7", "checkpoint-8"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": 1e-3, "pack": False}, "pack was True and is now False; lr was 0.01 and is now 0.001"),
        ({"loss_options": {"weight": "eq4"}}, "loss_options was {} and is now {'weight': 'eq4'}"),
        ({"store": None}, "started from another store"),
    ],
    ids=["settings", "loss", "store"],
)
def test_of_something_else(changes, message, run, whole, stores):
    if "store" in changes:
        changes = {"store": str(stores.tars)}
    with pytest.raises(InvalidArgumentError) as caught:
        train(run.config(whole, **SETTINGS | changes), resume=True)
    assert message in str(caught.value)


def test_where_it_may_not_be_written(run, whole, tmp_path):
    with pytest.raises(InvalidArgumentError, match="a run already"):
        train(run.config(whole, **SETTINGS))
    Path(tmp_path / "precious").write_text("")
    for resume in (False, True):
        with pytest.raises(InvalidArgumentError, match="no run"):
            train(run.config(tmp_path), resume=resume)
