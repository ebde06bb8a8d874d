"""Batches of documents, as they are described."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

import logitstore
from logitstore import InvalidArgumentError
from logitstore.stream import Collate
from logitstore.stream.collate import Piece


@pytest.fixture(scope="module")
def store(path: Any) -> Any:
    return logitstore.open(path, order="stored")


def test_rows_stand_where_their_tokens_stand(store: Any) -> None:
    documents = [store[2], store[3], store[5]]
    batch = Collate(multiple_of=8)(documents)
    assert batch["tokens"].shape == (3, 24)
    for b, document in enumerate(documents):
        n = len(document)
        assert batch["tokens"][b, :n].tolist() == document.tokens.tolist()
        assert batch["attention_mask"][b].tolist() == [True] * n + [False] * (24 - n)
        assert batch["document_ids"][b].tolist() == [document.index] * n + [-1] * (24 - n)
        assert batch["position_ids"][b].tolist() == [*range(n)] + [0] * (24 - n)
        assert (batch["ids"][b, :n].numpy().view(np.uint32) == document.ids).all()
        assert (batch["ids"][b, n:] == -1).all()
        np.testing.assert_array_equal(batch["logprobs"][b, :n], document.values)
        assert torch.isneginf(batch["logprobs"][b, n:]).all()
        for name in ("lse", "label_logprob", "lse_T"):
            np.testing.assert_array_equal(batch[name][b, :n], getattr(document, name))
            assert torch.isnan(batch[name][b, n:]).all()
        assert (batch["counts"][b, n:] == 0).all()


@pytest.mark.parametrize("settings", [{}, {"seq_len": 7}, {"seq_len": 7, "pack": True}])
def test_labels_are_the_next_token_of_the_document(store: Any, settings: Any) -> None:
    # Packing leaves open where the pieces of a longer document go; the plan's tests follow those.
    documents = [document for document in store[:] if len(document) <= 7 or "pack" not in settings]
    batch = Collate(**settings)(documents)
    labels = {
        (document.index, t): int(document.tokens[t + 1]) for document in documents for t in range(len(document) - 1)
    }
    masks = {document.index: document.mask for document in documents}
    seen = dict.fromkeys(masks, 0)
    found = 0
    for b in range(len(batch["tokens"])):
        for t in range(batch["tokens"].shape[1]):
            index = int(batch["document_ids"][b, t])
            if index < 0:
                assert batch["labels"][b, t] == -100
                assert not batch["mask"][b, t]
                continue
            row = seen[index]
            seen[index] += 1
            wanted = bool(masks[index][row])
            assert bool(batch["mask"][b, t]) == wanted
            assert int(batch["labels"][b, t]) == (labels[index, row] if wanted else -100)
            found += wanted
    assert seen == {document.index: len(document) for document in documents}
    assert found == sum(int(document.mask.sum()) for document in documents) > 0


def test_the_last_row_has_no_label_whatever_the_mask_says(store: Any) -> None:
    import dataclasses

    document = store[5]
    document = dataclasses.replace(document, mask=np.ones_like(document.mask))
    batch = Collate()([document])
    assert batch["mask"][0].tolist() == [True] * (len(document) - 1) + [False]
    assert batch["labels"][0, -1] == -100


def test_labels_are_what_the_teacher_was_asked_about(stores: Any, tmp_path: Any) -> None:
    store = logitstore.open(stores.make(tmp_path / "s", [20, 3, 9], slots=stores.VOCAB_SIZE))
    batch = Collate(seq_len=7, order="logit")(store[:])
    label = batch["labels"][..., None]
    at = (batch["ids"] == label) & batch["mask"][..., None]
    picked = batch["logprobs"][at].float()
    said = batch["label_logprob"][at.any(-1)]
    assert len(said) == batch["mask"].sum() > 5
    torch.testing.assert_close(picked, said, atol=1e-2, rtol=1e-2)


def test_packed_sequences_name_their_segments(store: Any) -> None:
    batch = Collate(seq_len=16, pack=True)(store[:])
    edges = batch["cu_seqlens"].tolist()
    assert edges[0] == 0
    assert edges[-1] == batch["tokens"].numel()
    assert int(batch["max_seqlen"]) == max(np.diff(edges)) <= 16
    assert set(range(0, edges[-1] + 1, 16)) <= set(edges)
    flat = {name: batch[name].reshape(-1) for name in ("document_ids", "position_ids", "attention_mask")}
    for first, last in pairwise(edges):
        inside = slice(first, last)
        assert len(set(flat["document_ids"][inside].tolist())) == 1
        real = bool(flat["attention_mask"][first])
        assert flat["position_ids"][inside].tolist() == ([*range(last - first)] if real else [0] * (last - first))
    assert flat["attention_mask"].float().mean() > 0.85


@pytest.mark.parametrize("order", ["stored", "logit"])
def test_flat_entries_are_the_used_slots(store: Any, order: Any) -> None:
    padded, flat = (Collate(seq_len=8, entries=entries, order=order)(store[:9]) for entries in ("padded", "flat"))
    used = (padded["ids"] != -1).reshape(-1, padded["ids"].shape[-1])
    assert flat["entry_offsets"].tolist() == [0, *used.sum(1).cumsum(0).tolist()]
    for name in ("ids", "logprobs", "counts"):
        assert flat[name].tolist() == padded[name].reshape(used.shape)[used].tolist()
        assert flat[name].dtype == padded[name].dtype
    assert set(flat) == {*padded, "entry_offsets"}


def test_entries_by_falling_logit(store: Any) -> None:
    batch = Collate(order="logit")([store[5]])
    assert (batch["logprobs"].float().diff(dim=-1).nan_to_num(-1) <= 0).all()
    expected = store[5].by_logit()
    assert (batch["ids"][0].numpy().view(np.uint32) == expected.ids).all()
    assert (batch["counts"][0].numpy() == expected.counts).all()


@pytest.mark.parametrize("values", ["logprob", "logit"])
def test_values_are_derived_when_the_store_has_the_others(stores: Any, tmp_path: Any, values: Any) -> None:
    store = logitstore.open(stores.make(tmp_path / "s", [6, 4], values=values, ragged=True, build={"rows": "masked"}))
    other = "logit" if values == "logprob" else "logprob"
    stored, same, derived = (Collate(values=name)(store[:]) for name in ("stored", values, other))
    assert stored[f"{values}s"].dtype == same[f"{values}s"].dtype == torch.float16
    assert derived[f"{other}s"].dtype == torch.float32
    assert f"{values}s" not in derived
    unused = derived["ids"] == -1
    assert unused.all(-1).any()
    assert (derived[f"{other}s"][unused] == -torch.inf).all()
    sign = 1 if other == "logit" else -1
    expected = stored[f"{values}s"].float() + sign * stored["lse"][..., None]
    assert torch.equal(derived[f"{other}s"][~unused], expected[~unused])


def test_fields_that_are_not_wanted_are_left_out(store: Any) -> None:
    always = {"tokens", "labels", "mask", "attention_mask", "position_ids", "document_ids"}
    assert set(Collate(fields=("lse",))(store[:2])) == {*always, "lse"}
    assert set(Collate(fields=("ids", "values"))(store[:2])) == {*always, "ids", "logprobs"}
    assert set(Collate(fields=("ids",), entries="flat")(store[:2])) == {*always, "ids", "entry_offsets"}
    with pytest.raises(InvalidArgumentError, match="not counts"):
        Collate(fields=("counts",)).delivered(["ids", "values"])


def test_pieces_may_be_laid_out_by_hand(store: Any) -> None:
    batch = Collate(seq_len=8, pack=True).lay_out([[Piece(store[5], 3, 6), Piece(store[2], 0, 2)]])
    assert batch["document_ids"][0].tolist() == [5, 5, 5, 2, 2, -1, -1, -1]
    assert batch["cu_seqlens"].tolist() == [0, 3, 5, 8]
    assert batch["position_ids"][0].tolist() == [0, 1, 2, 0, 1, 0, 0, 0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pack": True}, "pack needs a seq_len"),
        ({"seq_len": 0}, "seq_len is a whole number from 1 on, found 0"),
        ({"seq_len": True}, "seq_len is a whole number"),
        ({"seq_len": 10, "multiple_of": 4}, "multiple of multiple_of, found 10 and 4"),
        ({"multiple_of": 0}, "multiple_of is a whole number"),
        ({"entries": "sparse"}, "entries is one of padded, flat, found 'sparse'"),
        ({"values": "p"}, "values is one of"),
        ({"order": "id"}, "order is one of"),
        ({"fields": ("logprobs",)}, "fields are among"),
    ],
)
def test_settings_that_make_no_sense(settings: Any, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        Collate(**settings)


def test_a_batch_of_nothing(store: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="at least one document"):
        Collate()([])
