"""Batches decoded in place are those that `Collate` makes of documents, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import logitstore
from logitstore.stream import BatchStream, Collate
from logitstore.stream.batch_fields import PADDING
from logitstore.stream.collate import Piece
from logitstore.stream.handover import SharedBatch
from tests.stream.conftest import LENGTHS
from tests.stream.epochs import dealt, fingerprint, in_worker, is_blank

EXTRA = {
    "everything": {"ragged": True, "has_counts": True, "temperatures": (2.0, 4.0)},
    "logits": {"values": "logit", "ragged": True, "build": {"rows": "masked"}},
    "plain": {"slots": 3, "rows_per_shard": 8},
}


@pytest.fixture(scope="module", params=sorted(EXTRA))
def store(request: Any, stores: Any, tmp_path_factory: Any) -> Any:
    path = stores.make(tmp_path_factory.mktemp("fast") / "s", LENGTHS, **EXTRA[request.param])
    return logitstore.open(path, order="stored")


@st.composite
def collates(draw: st.DrawFn) -> Collate:
    seq_len = draw(st.sampled_from([None, 4, 8, 48]))
    return Collate(
        seq_len=seq_len,
        pack=seq_len is not None and draw(st.booleans()),
        entries=draw(st.sampled_from(["padded", "flat"])),
        values=draw(st.sampled_from(["stored", "logprob", "logit"])),
        order=draw(st.sampled_from(["stored", "logit"])),
        multiple_of=draw(st.sampled_from([1, 4])),
        fields=draw(st.none() | st.sets(st.sampled_from(["ids", "values", "lse", "label_logprob"])).map(sorted)),
    )


def reference(stream: BatchStream, store: Any) -> list[Any]:
    """The batches of the epoch, made of documents, from the same plan."""
    plan, batches = stream._plan_of(stream.epoch), []
    place = plan.advance(type(plan.advance(stream._shared.start, 0)[0])(), 0)[0]
    for _ in range(plan.batches):
        layout = plan.layout(place)
        sequences: list[list[Piece]] = [[] for _ in range(layout.sequences)]
        for number, index, first, rows in zip(
            layout.sequence, layout.documents, layout.first_rows, layout.rows, strict=True
        ):
            document = store.document(int(index))
            start = int(first) - document.first_row
            sequences[number].append(Piece(document, start, start + int(rows)))
        batches.append(fingerprint(stream.collate.lay_out(sequences)))
        place = plan.advance(place, 1)[0]
    return batches


@given(collates(), st.integers(1, 9), st.booleans(), st.integers(1, 30), st.integers(0, 3))
@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_fast_equals_plain(store: Any, collate: Collate, size: int, shuffle: bool, window: int, epoch: int) -> None:
    stream = BatchStream(store, size, collate=collate, shuffle=shuffle, window=window, prefetch=0)
    stream.set_epoch(epoch)
    found = list(stream)
    assert [fingerprint(batch, without=("cursor", "skipped")) for batch in found] == reference(stream, store)
    assert [int(batch["skipped"]) for batch in found] == [0] * len(found)


def test_whole_documents_are_what_collate_makes_of_them(store: Any) -> None:
    collate = Collate(multiple_of=4)
    for batch in BatchStream(store, 4, collate=collate):
        documents = [store.document(int(index)) for index in batch["document_ids"][:, 0]]
        assert fingerprint(batch, without=("cursor", "skipped")) == fingerprint(collate(documents))


def test_a_last_row_is_no_target_whatever_its_mask_says(store: Any, monkeypatch: Any) -> None:
    read_into = type(store).read_into

    def all_masked(s: Any, start: int, stop: int, out: Any) -> None:
        read_into(s, start, stop, out)
        if "mask" in out:
            out["mask"][:] = 255

    monkeypatch.setattr(type(store), "read_into", all_masked)
    for collate in (Collate(), Collate(seq_len=4), Collate(seq_len=4, pack=True)):
        batches = list(BatchStream(store, 3, collate=collate))
        targets = sum(int(batch["mask"].sum()) for batch in batches)
        assert targets == sum(int((batch["labels"] >= 0).sum()) for batch in batches) == sum(LENGTHS) - len(LENGTHS)
        assert all(set(batch["mask"].view(torch.uint8).unique().tolist()) <= {0, 1} for batch in batches)


def test_consecutive_pieces_are_read_at_once(store: Any, monkeypatch: Any) -> None:
    reads: list[tuple[int, int]] = []
    read_into = type(store).read_into
    monkeypatch.setattr(type(store), "read_into", lambda s, a, b, o: (reads.append((a, b)), read_into(s, a, b, o))[1])
    stream = BatchStream(store, 100, collate=Collate(seq_len=1), shuffle=False, prefetch=0)
    (found,) = list(BatchStream(store, 1000, collate=Collate(seq_len=1), shuffle=False, prefetch=0))
    assert reads == [(0, sum(LENGTHS))]
    assert len(found["tokens"]) == sum(LENGTHS)
    assert len(list(stream)) == 2
    assert reads[1:] == [(0, 100), (100, 101), (100, sum(LENGTHS))]


@pytest.mark.parametrize(
    "collate",
    [Collate(), Collate(seq_len=8), Collate(seq_len=8, pack=True), Collate(entries="flat", values="logit")],
    ids=["whole", "cut", "packed", "flat"],
)
def test_a_blank_batch_is_like_any_other(store: Any, collate: Collate) -> None:
    ranks = dealt(lambda **world: BatchStream(store, 10, collate=collate, **world), 7)
    blank, other = ranks[6][-1], ranks[0][0]
    assert is_blank(blank)
    assert not is_blank(other)
    assert list(blank) == list(other)
    assert {name: tensor.dtype for name, tensor in blank.items()} == {n: t.dtype for n, t in other.items()}
    assert [tensor.ndim for tensor in blank.values()] == [tensor.ndim for tensor in other.values()]
    assert blank["attention_mask"].sum() == 1
    assert blank["tokens"].sum() == 0
    assert int(blank["skipped"]) == 0
    for name in set(PADDING) & set(blank) - {"counts"}:
        gone = blank[name] == -1 if name == "ids" else ~torch.isfinite(blank[name])
        assert gone.all()
    loss = torch.nn.functional.cross_entropy(torch.zeros(blank["labels"].numel(), 97), blank["labels"].reshape(-1))
    assert torch.isnan(loss)  # which is why a loss divides by mask.sum().clamp(min=1)


def test_in_a_worker_batches_are_ready_to_be_handed_over(store: Any) -> None:
    collate = Collate(seq_len=8, pack=True, entries="flat")
    with in_worker(0, 1):
        shared = list(BatchStream(store, 4, collate=collate))
    plain = list(BatchStream(store, 4, collate=collate))
    assert all(type(batch) is SharedBatch for batch in shared)
    assert not any(isinstance(batch, SharedBatch) for batch in plain)
    assert [fingerprint(batch) for batch in shared] == [fingerprint(batch) for batch in plain]
    # Entries are picked after the rows are read, and only then it is known how many they are.
    assert len(shared[0]._origin.arena.segments) == 2
