"""Shared memory is used again, and never while somebody still has a tensor of it."""

from __future__ import annotations

import copy
import gc
import pickle
from multiprocessing.reduction import ForkingPickler
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule
from torch.utils.data import DataLoader, IterableDataset

from logitstore.stream import BatchStream
from logitstore.stream import handover as module
from logitstore.stream.handover import Arena, Pool
from tests.stream.epochs import fingerprint, fingerprints

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def made(pool: Pool, number: int, length: int) -> Any:
    arena = Arena(pool)
    if number % 2:
        arena.reserve(length, tensors=1)
    tensors = {"a": arena.empty((length,), torch.uint8), "b": arena.empty((length, 3), torch.int64)}
    for tensor in tensors.values():
        tensor.fill_(number)
    return arena.finished(tensors)


def sent(batch: Any) -> bytes:
    return bytes(ForkingPickler.dumps(batch))


class Handover(RuleBasedStateMachine):
    """Both ends of the queue in one process: batches are made, sent, received and dropped in any order."""

    in_worker = Bundle("in_worker")
    queue = Bundle("queue")
    received = Bundle("received")

    def __init__(self) -> None:
        super().__init__()
        self.pool = Pool("stream", 0)
        self.live: list[tuple[int, Any]] = []
        self.number = 0

    def keep(self, number: int, tensors: dict[str, Any]) -> tuple[int, Any]:
        self.live.append((number, tensors))
        return self.live[-1]

    @rule(target=in_worker, length=st.sampled_from([0, 1, 100, 3000]))
    def make(self, length: int) -> Any:
        self.number = self.number % 126 + 1
        return self.keep(self.number, made(self.pool, self.number, length))

    @rule(target=queue, batch=in_worker)
    def send(self, batch: Any) -> Any:
        return batch[0], sent(batch[1])

    @rule(target=received, message=consumes(queue))
    def receive(self, message: Any) -> Any:
        return self.keep(message[0], pickle.loads(message[1]))

    @rule(batch=st.one_of(consumes(in_worker), consumes(received)), view=st.booleans())
    def drop(self, batch: Any, view: bool) -> None:
        self.live = [other for other in self.live if other is not batch]
        if view:
            self.keep(batch[0], {"b": batch[1]["b"][1:, ::2]})
        batch[1].clear()

    @invariant()
    def nothing_that_is_used_has_changed(self) -> None:
        for number, tensors in self.live:
            assert all((tensor == number).all() for tensor in tensors.values())


TestHandover = Handover.TestCase
TestHandover.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)


def test_a_segment_that_is_free_is_used_again() -> None:
    pool = Pool("stream", 0)
    addresses = set()
    for number in range(10):
        batch = made(pool, number, 1000)
        message = sent(batch)
        addresses.add(batch["a"].data_ptr())
        del batch
        received = pickle.loads(message)
        assert type(received) is dict
        assert int(received["a"][0]) == number
        del received
    assert len(addresses) == 1


def test_what_was_changed_on_its_way_arrives_changed() -> None:
    batch = copy.copy(made(Pool("stream", 0), 1, 8))
    batch["a"] = batch["a"][:2]
    batch["c"] = "more"
    del batch["b"]
    received = pickle.loads(sent(batch))
    assert list(received) == ["a", "c"]
    assert received["a"].tolist() == [1, 1]
    assert received["c"] == "more"


class Twice(IterableDataset[Any]):
    """What a user may wrap around a stream: keep batches, yield them again, send parts of them."""

    def __init__(self, stream: BatchStream) -> None:
        self.stream = stream

    def __iter__(self) -> Iterator[Any]:
        kept = []
        for batch in self.stream:
            yield batch
            yield batch
            kept.append(batch["tokens"])
        yield from kept


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_that_a_wrapper_keeps_stay_as_they_are(path: Any, workers: int) -> None:
    def stream() -> BatchStream:
        return BatchStream(path, 1, prefetch=0)

    expected = fingerprints(stream())
    found = []
    for item in DataLoader(Twice(stream()), batch_size=None, num_workers=workers):
        found.append(item["tokens"].sum() if isinstance(item, dict) else item.sum())
        if isinstance(item, dict):
            assert fingerprint(item) in expected
    tokens = [batch["tokens"].sum() for batch in stream()]
    assert sorted(found) == sorted([*tokens, *tokens, *tokens])


def segments_mapped() -> int:
    with open("/proc/self/maps") as maps:
        return sum("/torch_" in line for line in maps)


@pytest.mark.parametrize("persistent", [False, True])
def test_segments_are_few_and_go_with_the_last_batch(path: Any, persistent: bool) -> None:
    gc.collect()
    before = segments_mapped()
    stream = BatchStream(path, 1, prefetch=0)
    loader = DataLoader(stream, batch_size=None, num_workers=2, persistent_workers=persistent)
    for _ in range(3):
        for batch in loader:
            assert len(batch["tokens"]) == 1
            assert len(module._MAPPED[stream._name].storages) <= 2 * 5
    kept = batch["tokens"][:, :1]
    del batch
    assert stream._name in module._MAPPED
    del kept
    assert stream._name not in module._MAPPED
    del loader, stream
    gc.collect()
    assert segments_mapped() <= before
