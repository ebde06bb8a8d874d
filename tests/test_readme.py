"""The README says what is true: its Python runs, its commands and options exist, every command is mentioned."""

from __future__ import annotations

import gc
import re
import shlex
import warnings
from pathlib import Path

import click
import pytest
from logitstore_cli.main import cli

README = (Path(__file__).parent.parent / "README.md").read_text()


def blocks(language: str) -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)
    return [content for found, content in fenced if found == language]


def commands() -> list[list[str]]:
    lines = [line for block in blocks("") for line in block.splitlines()]
    words = [shlex.split(line, comments=True) for line in lines]
    return [word for word in words if word[:1] == ["logitstore"]]


def options(command: click.Command) -> set[str]:
    return {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_python_blocks_run(tmp_path, monkeypatch, stores):
    stores.make(tmp_path / "teacher.zarr", [300] * 4)
    stores.make(tmp_path / "teacher.wds", [300] * 4, container="webdataset", shard_bytes=10_000)
    monkeypatch.chdir(tmp_path)
    found = blocks("python")
    assert len(found) == 6
    names = {}  # later blocks go on where earlier ones ended
    for block in found:
        exec(compile(block, "README.md", "exec"), names)
    # WebDataset leaves closing its files to the garbage collector.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        names.clear()
        gc.collect()


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_commands_exist_with_their_options(words):
    command = cli.get_command(click.Context(cli), words[1])
    assert command is not None
    assert {word for word in words if word.startswith("--")} <= options(command)


def test_options_in_the_text_exist():
    known = {"-c", "-e"}.union(
        *(options(cli.get_command(click.Context(cli), name)) for name in cli.list_commands(None))
    )
    mentioned = set(re.findall(r"`(--[a-z0-9-]+)", README))
    assert mentioned
    assert mentioned <= known


def test_every_command_is_documented():
    for name in cli.list_commands(None):
        assert re.search(rf"logitstore {name}\b", README), name
        command = cli.get_command(click.Context(cli), name)
        assert command.help
        assert all(parameter.help for parameter in command.params if isinstance(parameter, click.Option))


def test_links_lead_somewhere():
    root = Path(__file__).parent.parent
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (root / target).exists(), target
