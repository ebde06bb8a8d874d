"""The command line, from a teacher to a checked store, and its exit codes."""

from __future__ import annotations

import json
import sys

import pytest
from logitstore_cli.main import cli, main

from logitstore.teacher.tiny import train_tiny_teacher

TEXT = "the bell rang and the fox ran away from the round shiny bell. "


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    train_tiny_teacher([TEXT * 20], folder / "teacher", vocab_size=300, max_steps=2)
    lines = [json.dumps({"text": TEXT * count, "name": f"story {count}"}) for count in (1, 3, 9)] + ['{"text": " "}']
    (folder / "corpus.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def run(monkeypatch, *arguments):
    """Run a command as the console script does; return its exit status."""
    monkeypatch.setattr(sys, "argv", ["logitstore", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    return stopped.value.code


def test_build_inspect_verify(teacher, tmp_path, monkeypatch, capsys):
    store = tmp_path / "t.zarr"
    build = (
        "build",
        "--teacher",
        teacher / "teacher",
        "--data",
        teacher / "corpus.jsonl",
        "--top-k",
        8,
        "--out",
        store,
    )
    assert run(monkeypatch, *build, "--metadata-field", "name", "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["documents"] == 3
    assert summary["empty_documents"] == 1
    assert summary["entries"] == 8 * summary["rows"] == 8 * summary["new_rows"]
    assert 0 < summary["kept_mass"] < 1 < summary["perplexity"]
    assert {"forward", "selection", "encode", "check", "write", "wait"} <= set(summary["stage_seconds"])
    assert json.loads((store / "build.json").read_text())["runs"][0]["command"].startswith("logitstore build --teacher")

    assert run(monkeypatch, "inspect", store, "--json") == 0
    assert json.loads(capsys.readouterr().out)["rows"] == summary["rows"]
    assert run(monkeypatch, "verify", store, "--teacher", teacher / "teacher", "--sample-rows", 20) == 0
    assert run(monkeypatch, *build) == 2  # it exists
    assert "resume" in capsys.readouterr().err
    assert run(monkeypatch, *build, "--resume", "--metadata-field", "name") == 0
    assert "documents" in capsys.readouterr().out

    shard = store / "lse" / "c.0"
    shard.write_bytes(shard.read_bytes()[:-1])
    assert run(monkeypatch, "verify", store) == 1


def test_generate(teacher, tmp_path, monkeypatch, capsys):
    store = tmp_path / "t.zarr"
    build = ("build", "--teacher", teacher / "teacher", "--generate", "--top-k", 8, "--out", store)
    sampling = ("--sampling-temperature", 0.5, "--sampling-top-p", 0.9, "--seed", 3, "--max-new-tokens", 6)
    prompts = ("--prompts", teacher / "corpus.jsonl", "--samples-per-prompt", 2)
    assert run(monkeypatch, *build, *prompts, *sampling, "--end-token", "a", "--end-token", "b", "--json") == 0
    assert json.loads(capsys.readouterr().out)["documents"] == 6
    settings = json.loads((store / "manifest.json").read_text())["build"]["generation"]
    end_tokens = settings.pop("end_tokens")
    assert len(end_tokens) == 2
    assert settings == {
        "temperature": 0.5, "top_p": 0.9, "seed": 3, "max_new_tokens": 6, "samples_per_prompt": 2, "documents": None,
        "start_token": None,
    }  # fmt: skip
    assert run(monkeypatch, "verify", store, "--teacher", teacher / "teacher", "--sample-rows", 20) == 0
    assert run(monkeypatch, "inspect", store) == 0
    assert "temperature 0.5" in capsys.readouterr().out

    assert run(monkeypatch, *build, "--documents", 3, "--max-new-tokens", 6, "--overwrite") == 0
    settings = json.loads((store / "manifest.json").read_text())["build"]["generation"]
    assert (settings["temperature"], settings["top_p"], settings["seed"]) == (1.0, 1.0, 0)
    assert run(monkeypatch, "verify", store) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--data; or have it write: --generate"),
        (["--data", "y", "--documents", "3", "--end-token", "a"], "--documents, --end-token: only with --generate"),
        (["--data", "y", "--sampling-temperature", "0"], "--sampling-temperature: only with --generate"),
        (["--generate", "--data", "y"], "--prompts; --data is what it reads"),
        (["--generate"], "either --prompts, or --documents"),
        (["--generate", "--prompts", "y", "--documents", "3"], "either --prompts, or --documents"),
        (["--generate", "--documents", "3", "--samples-per-prompt", "2"], "--samples-per-prompt goes with --prompts"),
        (["--generate", "--documents", "3", "--sampling-top-p", "2"], "top_p of sampling"),
        (["--generate", "--prompts", "y", "--append-eos"], "append_eos"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_generate_is_told_apart(options, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, "build", "--teacher", "x", "--out", "z", "--top-k", "4", *options) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "z").exists()


def test_interrupted(teacher, tmp_path, monkeypatch, capsys):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("logitstore.build.build", interrupt)
    arguments = ("--teacher", teacher / "teacher", "--data", teacher / "corpus.jsonl", "--top-k", 8)
    assert run(monkeypatch, "build", *arguments, "--out", tmp_path / "t.zarr") == 130
    assert "--resume" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["no-such-command"],
        ["build", "--teacher", "x", "--data", "y", "--out", "z"],
        ["build", "--teacher", "x", "--data", "y", "--out", "z", "--top-p", "0.9"],
        ["build", "--teacher", "./no-such-folder", "--data", "y", "--out", "z", "--top-k", "4"],
    ],
    ids=" ".join,
)
def test_wrong_usage(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, *arguments) == 2
    assert capsys.readouterr().err
    assert not (tmp_path / "z").exists()


def test_help_and_version(monkeypatch, capsys):
    assert run(monkeypatch, "--help") == 0
    assert "Commands" in capsys.readouterr().out
    assert run(monkeypatch, "--version") == 0


@pytest.mark.parametrize("name", cli.list_commands(None))
def test_help_of_each_command(monkeypatch, capsys, name):
    assert run(monkeypatch, name, "--help") == 0
    shown = capsys.readouterr().out
    assert f"logitstore {name} " in shown
    assert "\\b" not in shown
