from __future__ import annotations

import sys

import datasets
import pytest

from logitstore.corpus import CorpusConfig, corpus_digest, iter_documents
from logitstore.errors import InvalidArgumentError

ROWS = {"text": ["Once upon", "", "a time"], "source": ["a", "b", "c"]}


@pytest.fixture(autouse=True)
def _no_progress_bars():
    datasets.disable_progress_bars()


@pytest.fixture
def saved(tmp_path):
    datasets.Dataset.from_dict(ROWS).save_to_disk(tmp_path / "my data")
    return str(tmp_path / "my data")


def read(tokenizer, path, **options):
    return [
        (item.source_index, item.document.key, tokenizer.decode(item.document.tokens), item.document.metadata)
        for item in iter_documents(CorpusConfig(data=(path,), **options), tokenizer)
    ]


def test_saved_dataset(tokenizer, saved):
    assert read(tokenizer, saved, metadata_fields=("source",)) == [
        (0, "my_data-00000000", "Once upon", {"source": "a"}),
        (2, "my_data-00000002", "a time", {"source": "c"}),
    ]


def test_saved_dataset_with_splits(tokenizer, tmp_path):
    both = datasets.DatasetDict(
        {"train": datasets.Dataset.from_dict(ROWS), "test": datasets.Dataset.from_dict({"text": ["there"]})}
    )
    both.save_to_disk(tmp_path / "both")
    assert [row[2] for row in read(tokenizer, str(tmp_path / "both"), split="test")] == ["there"]
    with pytest.raises(InvalidArgumentError, match="split must be one of test, train, found 'dev'"):
        read(tokenizer, str(tmp_path / "both"), split="dev")


def test_dataset_by_name_is_streamed(tokenizer, monkeypatch):
    calls = []

    def load_dataset(name, configuration, **options):
        calls.append((name, configuration, options))
        return datasets.Dataset.from_dict(ROWS).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    documents = read(tokenizer, "owner/stories:small", split="validation", metadata_fields=("*",))
    assert calls == [("owner/stories", "small", {"split": "validation", "streaming": True})]
    assert [row[1] for row in documents] == ["stories_small-00000000", "stories_small-00000002"]
    assert documents[0][3] == {"source": "a"}


def test_name_that_cannot_be_loaded(tokenizer, monkeypatch):
    def load_dataset(*_, **__):
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(InvalidArgumentError, match=r"owner/stories: no file or folder .* ConnectionError: no network"):
        read(tokenizer, "owner/stories")


def test_missing_package_says_how_to_get_it(tokenizer, saved, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InvalidArgumentError, match=r"pip install 'logitstore\[datasets\]'"):
        read(tokenizer, saved)


def test_digest_of_a_saved_dataset(saved, tmp_path):
    datasets.Dataset.from_dict({"text": ["other"]}).save_to_disk(tmp_path / "other")
    first, second = (corpus_digest(CorpusConfig(data=(path,))) for path in (saved, str(tmp_path / "other")))
    assert first == corpus_digest(CorpusConfig(data=(saved,)))
    assert first["inputs"][0]["rows"] == 3
    assert first["digest"] != second["digest"]


def test_digest_of_a_dataset_by_name(monkeypatch):
    class Builder:
        hash = "abc"

    monkeypatch.setattr(datasets, "load_dataset_builder", lambda name, configuration: Builder())
    assert corpus_digest(CorpusConfig(data=("owner/stories",)))["inputs"] == [
        {"dataset": "owner/stories", "split": "train", "fingerprint": "abc"}
    ]
