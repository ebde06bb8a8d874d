"""Where kept entries are decoded changes nothing of what is learnt or measured."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from logitstore.kernels.choice import VARIABLE
from logitstore.stream import BatchStream
from logitstore.stream.ahead import started_ahead
from logitstore.train import train
from logitstore.train.decoding import where_decoded


@pytest.mark.parametrize("pack", [True, False])
def test_the_same_weights_and_metrics(pack, run, stores, tmp_path, monkeypatch):
    crossing: list[dict[str, Any]] = []

    def ahead(self, batches, device):
        # As on a GPU, where one batch more is asked for than is used.
        return started_ahead(
            batches, lambda batch: crossing.append(batch) or batch, lambda batch: self.to_device(batch, device)
        )

    monkeypatch.setattr(BatchStream, "on_device", ahead)
    common = {"pack": pack, "eval_store": str(stores.tars), "eval_every": 3, "gradient_accumulation": 2, "steps": 6}
    found = [train(run.config(tmp_path / decode, decode=decode, **common)) for decode in ("host", "device")]
    trained = [batch for batch in crossing if "ids" not in batch]
    assert len(trained) > 12, "batches of both stores are still coded when they cross over"
    for name in ("model.safetensors", "checkpoint-6/stream.json"):
        assert (found[0].out / name).read_bytes() == (found[1].out / name).read_bytes()
    assert found[0].metrics == found[1].metrics
    for one, other in zip(found[0].log, found[1].log, strict=True):
        assert one.keys() == other.keys()
        measured = {name for name in one if "wait" in name or "per_second" in name or "runtime" in name}
        assert {name: one[name] for name in one.keys() - measured} == {
            name: other[name] for name in other.keys() - measured
        }
        if "loss" in other:
            assert 0 < other["data_wait_share"] < 1


@pytest.mark.parametrize(
    ("asked", "mode", "runs", "place"),
    [
        ("auto", "auto", True, "device"),
        ("auto", "off", True, "host"),
        ("auto", None, True, "host"),
        ("auto", "auto", False, "host"),
        ("auto", "on", True, "device"),
        ("host", "auto", True, "host"),
        ("device", "off", False, "device"),
    ],
)
def test_where(asked, mode, runs, place, monkeypatch):
    monkeypatch.setattr("logitstore.train.decoding.runs_on", lambda device: runs)
    if mode is None:
        monkeypatch.delenv(VARIABLE, raising=False)
    else:
        monkeypatch.setenv(VARIABLE, mode)
    assert where_decoded(asked, torch.device("cuda")) == place
