"""The map-style dataset."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from torch.utils.data import DataLoader

import logitstore
from logitstore.stream import Collate, DocumentDataset
from tests.stream.conftest import LENGTHS
from tests.stream.epochs import fingerprint

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@pytest.fixture
def dataset(path: Any) -> DocumentDataset:
    return DocumentDataset(path)


def test_documents_by_number(dataset: DocumentDataset, path: Any) -> None:
    assert len(dataset) == len(LENGTHS)
    assert [len(dataset[number]) for number in range(len(dataset))] == LENGTHS
    assert dataset[-1].index == dataset[np.int64(len(LENGTHS) - 1)].index == len(LENGTHS) - 1
    for number in (len(LENGTHS), -len(LENGTHS) - 1):
        with pytest.raises(IndexError):
            dataset[number]
        with pytest.raises(IndexError):
            dataset.__getitems__([0, number])
    ids = dataset[5].ids.astype(np.int64)
    assert (np.diff(np.where(ids == 0xFFFFFFFF, 10**10, ids)) >= 0).all()
    assert (DocumentDataset(path, order="logit")[5].ids == logitstore.open(path)[5].ids).all()


def test_several_are_read_in_the_order_of_the_store(dataset: DocumentDataset, monkeypatch: Any) -> None:
    read: list[int] = []
    document = type(dataset.store).document
    monkeypatch.setattr(type(dataset.store), "document", lambda s, n, *a: (read.append(n), document(s, n, *a))[1])
    assert [found.index for found in dataset.__getitems__([9, 2, 9, -1])] == [9, 2, 9, 22]
    assert read == [2, 9, 22]


@pytest.mark.parametrize("workers", [0, 2])
def test_in_a_loader(dataset: DocumentDataset, workers: int) -> None:
    collate = Collate(multiple_of=4)
    batches = list(DataLoader(dataset, batch_size=4, collate_fn=collate, num_workers=workers))
    expected = [collate(dataset.__getitems__(list(range(n, min(n + 4, 23))))) for n in range(0, 23, 4)]
    assert [fingerprint(batch) for batch in batches] == [fingerprint(batch) for batch in expected]


def test_it_is_picklable_and_takes_a_store(dataset: DocumentDataset, path: Any) -> None:
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy[3].key == dataset[3].key
    store = logitstore.open(path)
    assert DocumentDataset(store).store is store


def test_storage_options_are_passed_only_if_there_are_some(path: Any, monkeypatch: Any) -> None:
    import logitstore.stream.documents as module

    calls: list[Any] = []
    monkeypatch.setattr(module.logitstore, "open", lambda path, **settings: calls.append(settings), raising=False)
    DocumentDataset(path)
    DocumentDataset(path, verify="full", storage_options={"anon": True})
    assert calls == [
        {"verify": "lazy", "order": "stored"},
        {"verify": "full", "order": "stored", "storage_options": {"anon": True}},
    ]
