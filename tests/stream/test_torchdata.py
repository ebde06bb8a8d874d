"""torchdata's StatefulDataLoader around a stream."""

from __future__ import annotations

from typing import Any

import pytest
from torchdata.stateful_dataloader import StatefulDataLoader

from logitstore import InvalidArgumentError
from logitstore.stream import Collate
from tests.stream.epochs import PACKED, fingerprint, fingerprints, is_blank

# torchdata 0.11 calls something that PyTorch has deprecated; Python 3.12 warns of forking with threads.
pytestmark = [
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]


@pytest.mark.parametrize(
    ("workers", "every", "collate"),
    [(0, 1, PACKED), (2, 1, PACKED), (2, 3, PACKED), (2, 1, Collate())],
    ids=["alone", "workers", "snapshots", "whole"],
)
def test_a_stateful_loader_goes_on_by_itself(make: Any, workers: int, every: int, collate: Collate) -> None:
    def load() -> Any:
        return StatefulDataLoader(
            make(collate=collate), batch_size=None, num_workers=workers, snapshot_every_n_steps=every
        )

    epoch = fingerprints(make(collate=collate))
    for step in (0, 1, 4, len(epoch)):
        loader = load()
        batches = iter(loader)
        assert [fingerprint(next(batches)) for _ in range(step)] == epoch[:step]
        state = loader.state_dict()
        again = load()
        again.load_state_dict(state)
        left = fingerprints(again)
        assert left == epoch[step:]
        # The same state, for another number of workers.
        stream = make(collate=collate)
        stream.load_state_dict(state)
        assert stream.state_dict()["cursor"] == step
        other = StatefulDataLoader(stream, batch_size=None, num_workers=2 - workers)
        assert fingerprints(other) == epoch[step:]
        del batches, loader, again, other


def test_a_stateful_loader_of_a_rank(make: Any) -> None:
    def load(rank: int, replicas: int = 2) -> Any:
        return StatefulDataLoader(make(num_replicas=replicas, rank=rank), batch_size=None, num_workers=2)

    epoch = fingerprints(make())
    loaders = [load(rank) for rank in range(2)]
    iterators = [iter(loader) for loader in loaders]
    for _ in range(3):
        for iterator in iterators:
            next(iterator)
    states = [loader.state_dict() for loader in loaders]
    ranks = []
    for rank, state in enumerate(states):
        again = load(rank)
        again.load_state_dict(state)
        ranks.append(list(again))
    left = [batch for step in zip(*ranks, strict=True) for batch in step if not is_blank(batch)]
    assert fingerprints(left) == epoch[6:]
    alone = make(num_replicas=1, rank=0)
    alone.load_state_dict(states[1])
    assert fingerprints(alone) == epoch[6:]
    refused = load(0, replicas=3)
    refused.load_state_dict(states[0])
    with pytest.raises(InvalidArgumentError, match=r"stream.load_state_dict\(loader.state_dict\(\)\) takes it"):
        iter(refused)


def test_epochs_after_a_stateful_loader_was_resumed(make: Any) -> None:
    stream = make()
    stream.set_epoch(3)
    loader = StatefulDataLoader(stream, batch_size=None, num_workers=2, persistent_workers=True)
    batches = iter(loader)
    next(batches)
    state = loader.state_dict()
    stream = make()
    again = StatefulDataLoader(stream, batch_size=None, num_workers=2, persistent_workers=True)
    again.load_state_dict(state)
    left = fingerprints(again)
    assert stream.epoch == 3
    whole = make()
    whole.set_epoch(3)
    assert left == fingerprints(whole)[1:]
    for number in (4, 5):
        stream.set_epoch(number)
        whole.set_epoch(number)
        assert fingerprints(again) == fingerprints(whole)
