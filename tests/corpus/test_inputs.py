from __future__ import annotations

import os

import fsspec
import pytest

from logitstore.corpus import CorpusConfig
from logitstore.corpus.inputs import resolve_inputs
from logitstore.errors import InvalidArgumentError


@pytest.fixture
def folder(tmp_path):
    for name in ("b.txt", "a.jsonl", "sub/c.JSONL.gz", "sub/d.parquet", "notes.md", "sub/picture.png"):
        path = tmp_path / "corpus" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return str(tmp_path / "corpus")


def resolve(*data, **options):
    return resolve_inputs(CorpusConfig(data=data, **options))


def names(*data, **options):
    return [one.name for one in resolve(*data, **options).inputs]


def test_folder_is_read_recursively_in_order(folder):
    resolved = resolve(folder)
    assert [one.relative for one in resolved.inputs] == ["a.jsonl", "b.txt", "sub/c.JSONL.gz", "sub/d.parquet"]
    assert [one.name for one in resolved.inputs] == ["a", "b", "c", "d"]
    assert resolved.files_ignored == 2


def test_glob_takes_known_files(folder):
    resolved = resolve(f"{folder}/**/[a-d].*")
    assert [one.relative for one in resolved.inputs] == ["a.jsonl", "b.txt", "sub/c.JSONL.gz", "sub/d.parquet"]
    assert resolve(f"{folder}/*").files_ignored == 1


def test_entries_keep_the_users_order(folder):
    assert names(f"{folder}/b.txt", f"{folder}/a.jsonl") == ["b", "a"]


def test_relative_paths_and_home_folder(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", folder)
    assert [one.url for one in resolve("b.txt", "~/a.jsonl").inputs] == [f"{folder}/b.txt", f"{folder}/a.jsonl"]


def test_file_whose_name_looks_like_a_glob(tmp_path):
    (tmp_path / "a[1].txt").write_text("x")
    assert names(str(tmp_path / "a[1].txt")) == ["a_1_"]


def test_urls(folder):
    memory = fsspec.filesystem("memory")
    memory.pipe("/corpus_urls/x.jsonl", b"{}")
    memory.pipe("/corpus_urls/deep/y.txt", b"hello")
    try:
        assert [one.url for one in resolve("memory://corpus_urls").inputs] == [
            "memory:///corpus_urls/deep/y.txt",
            "memory:///corpus_urls/x.jsonl",
        ]
        assert names("memory://corpus_urls/*.jsonl") == ["x"]
        assert names(f"file://{folder}/b.txt") == ["b"]
        with pytest.raises(InvalidArgumentError, match="no such file or folder: memory://corpus_urls/z"):
            resolve("memory://corpus_urls/z")
    finally:
        memory.rm("/corpus_urls", recursive=True)


def test_same_stem_in_several_folders(tmp_path):
    for name in ("x/train.jsonl", "y/train.jsonl", "y/train.txt", "y/other.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    assert names(str(tmp_path)) == ["x_train_jsonl", "other", "y_train_jsonl", "y_train_txt"]


def test_document_named_like_a_record_of_another_file(tmp_path):
    (tmp_path / "a.jsonl").write_text("")
    (tmp_path / "a-00000000.txt").write_text("x")
    assert names(str(tmp_path)) == ["a-00000000_txt", "a"]


def test_names_that_become_equal_are_refused(tmp_path):
    (tmp_path / "x y.txt").write_text("")
    (tmp_path / "x.y.txt").write_text("")
    with pytest.raises(InvalidArgumentError, match=r"x y\.txt and .*x\.y\.txt both become 'x_y_txt'"):
        resolve(str(tmp_path))


@pytest.mark.parametrize("name", ["notes.md", "sub/picture.png"])
def test_single_file_of_unknown_kind_is_refused(folder, name):
    with pytest.raises(InvalidArgumentError, match=r"one of \.jsonl, \.jsonl\.gz, \.parquet, \.txt, found .*" + name):
        resolve(f"{folder}/{name}")


def test_folder_without_known_files_is_refused(tmp_path):
    (tmp_path / "notes.md").write_text("")
    with pytest.raises(InvalidArgumentError, match=r"must hold a file of .*found 1 files and none of these"):
        resolve(str(tmp_path))


@pytest.mark.parametrize("entry", ["missing.jsonl", "./missing", "a/b/missing", "unknownprotocol://x/y.txt"])
def test_what_does_not_exist_is_refused(entry):
    with pytest.raises(InvalidArgumentError, match=r"no such file or folder|cannot open"):
        resolve(entry)


def test_a_file_named_twice_is_refused(folder):
    with pytest.raises(InvalidArgumentError, match=r"b\.txt is named by"):
        resolve(folder, os.path.join(folder, "b.txt"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": ()}, "data must name"),
        ({"data": ("",)}, "data must name"),
        ({"data": "corpus"}, "sequence of strings"),
        ({"data": ("a",), "metadata_fields": "source"}, "sequence of strings"),
        ({"data": ("a",), "seq_len": 0}, "seq_len must be at least 1, found 0"),
        ({"data": ("a",), "limit": 0}, "limit must be at least 1"),
        ({"data": ("a",), "doc_separator": ""}, "doc_separator"),
        ({"data": ("a",), "chat_template": "chatml"}, "'auto' or 'plain', found 'chatml'"),
    ],
)
def test_bad_configurations_are_refused(options, message):
    with pytest.raises(InvalidArgumentError, match=message):
        CorpusConfig(**options)
