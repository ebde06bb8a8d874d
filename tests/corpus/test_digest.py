from __future__ import annotations

import json
import shutil

import pytest

from logitstore.corpus import CorpusConfig, corpus_digest


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "one"
    folder.mkdir()
    (folder / "a.txt").write_bytes(b"x" * 200_000)
    (folder / "b.txt").write_bytes(b"y" * 10)
    return folder


def digest(path):
    return corpus_digest(CorpusConfig(data=(str(path),)))


def test_a_copy_is_the_same_corpus(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "two")
    assert digest(tmp_path / "two") == digest(folder)


def test_digest_is_json_and_lists_the_files(folder):
    identity = digest(folder)
    assert json.loads(json.dumps(identity)) == identity
    assert [(one["file"], one["bytes"]) for one in identity["inputs"]] == [("a.txt", 200_000), ("b.txt", 10)]


@pytest.mark.parametrize("at", [0, 65_535, 200_000 - 65_536, 199_999])
def test_changes_at_either_end_are_noticed(folder, at):
    before = digest(folder)
    data = bytearray((folder / "a.txt").read_bytes())
    data[at] = 0
    (folder / "a.txt").write_bytes(data)
    assert digest(folder)["digest"] != before["digest"]


def test_more_bytes_and_more_files_are_noticed(folder):
    first = digest(folder)["digest"]
    with open(folder / "b.txt", "ab") as stream:
        stream.write(b"y")
    second = digest(folder)["digest"]
    (folder / "c.txt").write_bytes(b"")
    assert len({first, second, digest(folder)["digest"]}) == 3
