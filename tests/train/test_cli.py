"""``logitstore train``, and its exit codes."""

from __future__ import annotations

import json
import sys

import pytest
from logitstore_cli.main import main
from transformers import AutoModelForCausalLM


@pytest.fixture
def cli(run, monkeypatch):
    def call(*arguments, student=run.student_config):
        common = ("train", "--student-config", student, "--store", run.stores.zarr, "--device", "cpu")
        monkeypatch.setattr(sys, "argv", ["logitstore", *map(str, common + arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        return stopped.value.code

    return call


SMALL = ("--steps", 3, "--batch-size", 2, "--seq-len", 64, "--log-every", 1)


def test_end_to_end(cli, stores, tmp_path, capsys):
    (tmp_path / "held_out.txt").write_text("the old fox never sings")
    out = tmp_path / "run"
    options = ("--out", out, "--eval-store", stores.tars, "--eval-text", tmp_path / "held_out.txt", "--warmup-steps", 1)
    loss = ("--loss", "forward_kl", "--loss-option", "outside=renorm", "--temperature", 2, "--ce-weight", 0.5)
    assert cli(*SMALL, *options, *loss, "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["steps"], printed["new_steps"]) == (3, 3)
    assert {"eval_store_kl", "eval_text_perplexity"} <= set(printed["metrics"])
    assert {"loss", "forward_kl", "cross_entropy", "data_wait_share"} <= set(printed["log"])
    record = json.loads((out / "distillation.json").read_text())
    assert record["loss"]["options"] == {"outside": "renorm", "temperature": 2.0, "ce_weight": 0.5}
    AutoModelForCausalLM.from_pretrained(out)
    assert cli(*SMALL, *options, *loss) == 2
    assert "--resume" in capsys.readouterr().err
    assert cli(*SMALL, *options, *loss, "--resume") == 0
    assert "3 (0 by this run)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", 3, "--loss-option", "beta"], "KEY=VALUE, found 'beta'"),
        (["--steps", 3, "--loss-option", "beta=1"], "slim has no option 'beta'"),
        (["--steps", 3, "--epochs", 1], "either steps or epochs"),
        (["--steps", 3, "--student", "x"], "either a student or a student_config"),
        (["--steps", 3, "--seq-len", 1024], "256 tokens at most"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_wrong_usage(options, message, cli, tmp_path, capsys):
    assert cli(*options, "--out", tmp_path / "run") == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()


def test_a_broken_store(cli, stores, tmp_path, capsys):
    (tmp_path / "store").mkdir()
    assert cli(*SMALL, "--out", tmp_path / "run", "--store", tmp_path / "store") == 1
    assert "manifest.json" in capsys.readouterr().err


def test_interrupted(cli, tmp_path, monkeypatch, capsys):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("logitstore.train.train", interrupt)
    assert cli(*SMALL, "--out", tmp_path / "run") == 130
    assert "--resume" in capsys.readouterr().err
