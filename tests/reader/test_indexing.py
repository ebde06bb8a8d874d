from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import logitstore
from logitstore import InvalidArgumentError

LENGTHS = [20, 1, 45, 9]


@pytest.fixture(scope="module", params=["logprob", "logit"])
def case(request: pytest.FixtureRequest, stores: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    manifest = stores.manifest(values=request.param, has_counts=True, temperatures=(2.0,))
    documents = stores.documents(LENGTHS, manifest, ragged=True)
    return stores.write(tmp_path_factory.mktemp("stores") / "s", documents, manifest), documents


def test_documents_by_number(case: Any) -> None:
    store = logitstore.open(case[0])
    assert len(store) == 4
    assert [len(document) for document in store] == LENGTHS
    assert store[-1].key == store[3].key == store[np.int64(3)].key == "document 3"
    assert [document.index for document in store[1:]] == [1, 2, 3]
    assert [document.index for document in store[::-2]] == [3, 1]
    assert [document.index for document in store.__getitems__([2, 0, 2])] == [2, 0, 2]
    for number in (4, -5):
        with pytest.raises(IndexError):
            store[number]
    with pytest.raises(InvalidArgumentError):
        store["document 3"]
    with pytest.raises(InvalidArgumentError):
        store[1.0]


def test_rows_by_number_slice_and_list(case: Any, stores: Any) -> None:
    store = logitstore.open(case[0], order="stored")
    ids = stores.joined(case[1], "ids")
    n = len(ids)
    assert len(store.rows) == n == sum(LENGTHS)
    one = store.rows[30]
    assert one.ids.shape == (5,)
    assert one.tokens.shape == one.lse.shape == ()
    np.testing.assert_array_equal(one.ids, ids[30])
    np.testing.assert_array_equal(store.rows[-1].ids, ids[-1])
    for span in (
        slice(3, 60),
        slice(None),
        slice(-10, None),
        slice(5, 5),
        slice(9, 3),
        slice(60, 3, -7),
        slice(0, 999),
    ):
        np.testing.assert_array_equal(store.rows[span].ids, ids[span])
    for index in ([5, 2, 70, 2, -1], np.array([31, 32, 33, 0]), (4, 4), np.array([8], np.uint8)):
        np.testing.assert_array_equal(store.rows[index].ids, ids[np.asarray(index, int)])
        np.testing.assert_array_equal(store.rows[index].lse, stores.joined(case[1], "lse")[np.asarray(index, int)])
    assert store.rows[[]].ids.shape == (0, 5)
    for number in (n, -n - 1):
        with pytest.raises(IndexError):
            store.rows[number]
        with pytest.raises(IndexError):
            store.rows[[0, number]]
    for wrong in ("3", 1.5, [0.5], np.ones(n, bool), np.zeros((2, 2), int)):
        with pytest.raises(InvalidArgumentError):
            store.rows[wrong]


def test_spans_that_are_not_there_are_refused(case: Any) -> None:
    store = logitstore.open(case[0])
    for start, stop in ((-1, 3), (3, 2), (0, 76)):
        with pytest.raises(InvalidArgumentError):
            store.read(start, stop)
    with pytest.raises(InvalidArgumentError, match="field"):
        store.read(0, 3, ["ids", "logits?"])
    with pytest.raises(InvalidArgumentError, match="arrays"):
        store.read_field("nothing", 0, 1)
    for option in ({"verify": "always"}, {"order": "random"}):
        with pytest.raises(InvalidArgumentError):
            logitstore.open(case[0], **option)


def test_logit_order_falls_and_keeps_every_entry(case: Any) -> None:
    stored, sorted_ = (logitstore.open(case[0], order=order).rows[:] for order in ("stored", "logit"))
    values = sorted_.values.astype(np.float32)
    ids = sorted_.ids.astype(np.int64)
    with np.errstate(invalid="ignore"):
        step = np.diff(values, axis=1)
    assert not (step > 0).any()
    ties = values[:, 1:] == values[:, :-1]
    assert (np.diff(ids, axis=1)[ties] >= 0).all()
    for row in range(len(ids)):
        assert entries(stored, row) == entries(sorted_, row)
    np.testing.assert_array_equal(stored.lse, sorted_.lse)


def entries(rows: Any, row: int) -> list[tuple[int, int, int]]:
    columns = (rows.ids[row].tolist(), rows.values[row].view(np.uint16).tolist(), rows.counts[row].tolist())
    return sorted(zip(*columns, strict=True))


def test_single_fields_have_the_same_order_as_all_together(case: Any) -> None:
    store = logitstore.open(case[0])
    everything = store.rows[:]
    for fields in (["ids"], ["values"], ["counts"], ["ids", "counts"], ["lse", "values"], ["tokens"], ["lse_T"]):
        part = store.read(0, len(store.rows), fields)
        assert len(part) == len(store.rows)
        for name in ("tokens", "ids", "values", "lse", "label_logprob", "mask", "counts", "lse_T"):
            if name in fields:
                np.testing.assert_array_equal(getattr(part, name), getattr(everything, name))
            else:
                assert getattr(part, name) is None
    assert store.document(2, ["ids"]).lse is None


def test_logits_and_logprobs_are_right_for_both_kinds_of_store(case: Any, stores: Any) -> None:
    for order in ("stored", "logit"):
        rows = logitstore.open(case[0], order=order).rows[:]
        used = rows.ids != 0xFFFFFFFF
        assert np.isneginf(rows.logits[~used]).all()
        assert np.isneginf(rows.logprobs[~used]).all()
        difference = rows.logits[used].astype(np.float64) - rows.logprobs[used]
        lse = np.broadcast_to(rows.lse[:, None], used.shape)[used]
        np.testing.assert_allclose(difference, lse, atol=1e-5, rtol=0)
        kept = rows.logprobs if rows.stores == "logprob" else rows.logits
        assert kept.dtype == np.float16
        assert (rows.logits if rows.stores == "logprob" else rows.logprobs).dtype == np.float32
    row = logitstore.open(case[0]).rows[3]
    np.testing.assert_array_equal(row.logits, logitstore.open(case[0]).rows[:].logits[3])


def test_labels_are_the_next_tokens(case: Any) -> None:
    document = logitstore.open(case[0])[0]
    assert document.labels.tolist() == [*document.tokens[1:].tolist(), -100]
    assert np.isnan(document.label_logprob[-1])


def test_arrays_outlive_the_store(case: Any, stores: Any) -> None:
    with logitstore.open(case[0], order="stored") as store:
        rows = store.rows[:]
        offsets = store.read_field("doc_offsets", 0, 5)
    np.testing.assert_array_equal(rows.ids, stores.joined(case[1], "ids"))
    assert offsets.tolist() == np.cumsum([0, *LENGTHS]).tolist()
