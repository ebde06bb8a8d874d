"""DataLoader workers: forked, spawned and persistent."""

from __future__ import annotations

import json
from typing import Any

import pytest
from torch.utils.data import DataLoader

import logitstore
from logitstore import InvalidArgumentError
from logitstore.stream import BatchStream
from tests.stream.epochs import PACKED, fingerprint, fingerprints, is_blank

# Python 3.12 warns of forking with threads; PyTorch warns of more workers than cores.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
]


@pytest.mark.parametrize("workers", [1, 3, 16])
def test_workers_give_the_epoch_in_order(make: Any, workers: int) -> None:
    loader = DataLoader(make(), batch_size=None, num_workers=workers)
    batches = list(loader)
    assert len(batches) == len(loader)
    assert fingerprints(batches) == fingerprints(make())
    # What is left after a batch, as the training loop saw it.
    state = json.loads(json.dumps(loader.dataset.state_dict(batches[2])))
    resumed = make()
    resumed.load_state_dict(state)
    assert fingerprints(resumed) == fingerprints(batches[3:])
    with pytest.raises(InvalidArgumentError, match=r"call state_dict\(batch\)"):
        loader.dataset.state_dict()


def test_ranks_in_workers(make: Any) -> None:
    ranks = [list(DataLoader(make(num_replicas=5, rank=rank), batch_size=None, num_workers=2)) for rank in range(5)]
    steps = [batch for step in zip(*ranks, strict=True) for batch in step if not is_blank(batch)]
    assert fingerprints(steps) == fingerprints(make())


# Packed epochs differ in length by a batch or so, and the loader goes by the length it heard first.
@pytest.mark.filterwarnings("ignore:Length of IterableDataset:UserWarning")
@pytest.mark.parametrize(("context", "workers"), [("fork", 2), ("spawn", 1)])
def test_workers_that_persist_see_epochs_and_states(make: Any, context: str, workers: int) -> None:
    stream = make()
    loader = DataLoader(
        stream, batch_size=None, num_workers=workers, persistent_workers=True, multiprocessing_context=context
    )
    for epoch in range(3):
        stream.set_epoch(epoch)
        alone = make()
        alone.set_epoch(epoch)
        batches = list(loader)
        assert fingerprints(batches) == fingerprints(alone)
    stream.load_state_dict(stream.state_dict(batches[1]))
    assert fingerprints(loader) == fingerprints(batches[2:])
    stream.set_epoch(2)
    assert fingerprints(loader) == fingerprints(batches[2:])


def test_leaving_an_epoch_early_leaves_the_next_one_whole(make: Any) -> None:
    stream = make()
    loader = DataLoader(stream, batch_size=None, num_workers=2, persistent_workers=True)
    next(iter(loader))
    stream.set_epoch(1)
    alone = make()
    alone.set_epoch(1)
    assert fingerprints(loader) == fingerprints(alone)


def test_a_loader_in_this_process(make: Any) -> None:
    stream = make()
    seen = []
    for batch in DataLoader(stream, batch_size=None):
        seen.append(fingerprint(batch))
        assert stream.state_dict() == stream.state_dict(batch)
    assert seen == fingerprints(make())


def test_an_open_store_may_be_given(make: Any, path: Any) -> None:
    with logitstore.open(path) as store:
        assert fingerprints(BatchStream(store, 2, collate=PACKED, window=6)) == fingerprints(make())
