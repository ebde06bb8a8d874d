"""States: saved at any step, taken up by other ranks and workers, and refused where they do not fit."""

from __future__ import annotations

import json
import pickle
from typing import TYPE_CHECKING, Any

import pytest
import torch

import logitstore
from logitstore import InvalidArgumentError, UnsupportedVersionError
from logitstore.stream import BatchStream, Collate
from tests.stream.epochs import dealt, fingerprints, in_worker, is_blank, joined, loaded

if TYPE_CHECKING:
    from collections.abc import Callable

MODES = {
    "whole": Collate(),
    "cut": Collate(seq_len=6),
    "packed": Collate(seq_len=12, pack=True),
    "packed flat": Collate(seq_len=12, pack=True, entries="flat"),
}
SPLITS = [(1, 0), (1, 2), (2, 0), (2, 3), (3, 1), (5, 2)]


@pytest.fixture(scope="module")
def store(path: Any) -> Any:
    return logitstore.open(path, order="stored")


@pytest.fixture(params=sorted(MODES))
def make(request: Any, store: Any) -> Callable[..., BatchStream]:
    def make(**changes: Any) -> BatchStream:
        settings = {
            "collate": MODES[request.param],
            "window": 6,
            "prefetch": 0,
            "seed": 3,
            "num_replicas": 1,
            "rank": 0,
        }
        stream = BatchStream(store, 2, **(settings | changes))
        stream.set_epoch(4)
        return stream

    return make


@pytest.mark.parametrize(("replicas", "workers"), SPLITS)
def test_ranks_and_workers_share_one_epoch(make: Any, replicas: int, workers: int) -> None:
    epoch = fingerprints(make())
    ranks = dealt(make, replicas, workers)
    assert len({len(batches) for batches in ranks}) == 1
    assert [len(make(num_replicas=replicas, rank=rank)) for rank in range(replicas)] == list(map(len, ranks))
    assert fingerprints(joined(ranks)) == epoch
    blank = [batch for batches in ranks for batch in batches if is_blank(batch)]
    assert len(blank) == len(ranks[0]) * replicas - len(epoch)
    full = dealt(lambda **world: make(drop_last=True, **world), replicas, workers)
    assert fingerprints(joined(full)) == epoch[: len(full[0]) * replicas]
    assert len(full[0]) == len(make(drop_last=True, num_replicas=replicas, rank=0))
    assert all(len(batch["tokens"]) == 2 for batches in full for batch in batches)


@pytest.mark.parametrize(("replicas", "workers"), SPLITS)
def test_a_state_of_any_step_gives_exactly_what_was_left(make: Any, replicas: int, workers: int) -> None:
    epoch = fingerprints(make())
    ranks = dealt(make, replicas, workers)
    for step, batch in enumerate(ranks[-1]):
        saver = make(num_replicas=replicas, rank=0)
        state = json.loads(json.dumps(saver.state_dict(batch)))
        consumed = min(len(epoch), (step + 1) * replicas)
        assert state["cursor"] == consumed
        # All ranks agree, and so does a stream that counts by itself.
        assert all(saver.state_dict(other[step]) == state for other in ranks)
        for other_replicas, other_workers in SPLITS[step % 3 :: 3]:

            def resumed(*, state: Any = state, **world: Any) -> BatchStream:
                stream = make(**world)
                stream.load_state_dict(state)
                assert stream.state_dict() == state
                return stream

            left = joined(dealt(resumed, other_replicas, other_workers))
            assert fingerprints(left) == epoch[consumed:]


def test_a_state_needs_no_batch_where_batches_are_made(make: Any) -> None:
    stream = make(prefetch=2)
    start = stream.state_dict()
    assert (start["cursor"], start["place"], start["epoch"]) == (0, [0, 0], 4)
    epoch = fingerprints(make())
    for step, batch in enumerate(stream):
        state = stream.state_dict()
        assert state == stream.state_dict(batch)
        copy = make()
        copy.load_state_dict(state)
        assert fingerprints(copy) == epoch[step + 1 :]


def test_epochs_differ_and_a_set_epoch_keeps_or_clears_the_cursor(make: Any) -> None:
    stream = make()
    batches = list(stream)
    state = stream.state_dict(batches[1])
    other = make()
    other.set_epoch(0)
    assert fingerprints(other) != fingerprints(batches)
    other.load_state_dict(state)
    assert other.epoch == 4
    other.set_epoch(4)
    assert other.state_dict() == state
    assert len(list(other)) == len(batches) - 2
    other.set_epoch(5)
    assert other.state_dict()["cursor"] == 0
    other.set_epoch(4)
    assert fingerprints(other) == fingerprints(batches)


def test_a_batch_knows_its_epoch(make: Any) -> None:
    stream = make()
    batch = next(iter(stream))
    stream.set_epoch(9)
    assert stream.state_dict(batch)["epoch"] == 4


def test_a_pickled_stream_goes_on_where_the_original_would_begin(make: Any) -> None:
    stream = make()
    batches = list(stream)
    stream.load_state_dict(stream.state_dict(batches[0]))
    copy = pickle.loads(pickle.dumps(stream))
    assert fingerprints(copy) == fingerprints(batches[1:])
    copy.set_epoch(1)
    assert stream.epoch == 4


def test_workers_tell_only_through_their_batches(make: Any) -> None:
    stream = make()
    batches = list(loaded(stream, 2))
    with pytest.raises(InvalidArgumentError, match=r"call state_dict\(batch\)"):
        stream.state_dict()
    assert stream.state_dict(batches[0])["cursor"] == 1
    stream.set_epoch(5)
    assert stream.state_dict()["cursor"] == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 4}, "seed is 3 there and 4 here"),
        ({"window": 7}, "window is 6 there and 7 here"),
        ({"shuffle": False}, "order is 'feistel-blocks-1' there and 'stored-1' here, shuffle is True there"),
        ({"collate": Collate(seq_len=24, pack=True)}, "seq_len is 12 there and 24 here"),
        ({"collate": Collate(seq_len=12)}, "pack is True there and False here"),
        ({"seed": 5, "window": 9}, "seed is 3 there and 5 here, window is 6 there and 9 here"),
    ],
)
def test_other_settings_are_refused(store: Any, changes: Any, message: str) -> None:
    settings = {"collate": MODES["packed"], "window": 6, "seed": 3}
    state = BatchStream(store, 2, **settings).state_dict()
    with pytest.raises(InvalidArgumentError, match=f"other settings: {message}"):
        BatchStream(store, 2, **(settings | changes)).load_state_dict(state)


def test_another_batch_size_is_refused_and_what_may_change_is_not(store: Any) -> None:
    state = BatchStream(store, 2).state_dict()
    with pytest.raises(InvalidArgumentError, match="batch_size is 2 there and 3 here"):
        BatchStream(store, 3).load_state_dict(state)
    changed = BatchStream(
        store, 2, drop_last=True, num_replicas=3, rank=1, prefetch=0, threads=4, on_corrupt="skip",
        collate=Collate(entries="flat", values="logit", order="logit", multiple_of=8),
    )  # fmt: skip
    changed.load_state_dict(state)
    assert changed.state_dict() == state


def test_another_store_is_refused(store: Any, stores: Any, tmp_path: Any) -> None:
    other = stores.make(tmp_path / "s", [5, 3], store_id="f" * 32)
    with pytest.raises(
        InvalidArgumentError, match=r"another store: store_id is '0123.*documents is 23 there and 2 here"
    ):
        BatchStream(other, 2).load_state_dict(BatchStream(store, 2).state_dict())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 0}, "version of a state is 1, found 0"),
        ({"seed": None}, "seed is None there and 0 here"),
        ({"more": 1}, "has more, which mean nothing"),
        ({"epoch": -1}, "epoch is of whole numbers, found -1"),
        ({"cursor": 1.0}, "cursor is of whole numbers"),
        ({"cursor": True}, "cursor is of whole numbers"),
        ({"place": [0]}, "place is a window and a sequence"),
        ({"place": 3}, "place is of whole numbers"),
        ({"place": [99, 0]}, "is none of this epoch"),
        ({"cursor": 5}, "is none of this epoch"),
        ({"store": None}, "another store: found None"),
        ({"worker": {}}, "the state of a single worker"),
    ],
)
def test_states_that_are_none(store: Any, changes: Any, message: str) -> None:
    stream = BatchStream(store, 2)
    state = stream.state_dict() | changes
    with pytest.raises(InvalidArgumentError, match=message):
        stream.load_state_dict(state)
    for broken in ({}, None, [], {"_snapshot": {}}, {"_num_yielded": 3}):
        with pytest.raises(InvalidArgumentError, match="state"):
            stream.load_state_dict(broken)
    assert stream.state_dict()["cursor"] == 0


def test_a_state_lacks_nothing(store: Any) -> None:
    stream = BatchStream(store, 2)
    for name in stream.state_dict():
        state = {key: value for key, value in stream.state_dict().items() if key != name}
        with pytest.raises(InvalidArgumentError, match=f"lacks {name}|version of a state"):
            stream.load_state_dict(state)
    with pytest.raises(UnsupportedVersionError, match="version 2"):
        stream.load_state_dict({**stream.state_dict(), "version": 2})


@pytest.mark.parametrize("batch", [{}, {"cursor": 3}, {"cursor": torch.zeros(3)}])
def test_a_batch_of_something_else(store: Any, batch: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="cursor of four numbers"):
        BatchStream(store, 2).state_dict(batch)


@pytest.mark.parametrize(
    "changes",
    [
        {"batch_size": 0}, {"batch_size": 2.0}, {"window": 0}, {"threads": 0}, {"prefetch": -1}, {"seed": -1},
        {"on_corrupt": "ignore"}, {"num_replicas": 2, "rank": 2}, {"num_replicas": 0}, {"rank": 1},
        {"collate": Collate(fields=("lse_T",))},
    ],
    ids=str,
)  # fmt: skip
def test_settings_that_make_no_sense(stores: Any, tmp_path: Any, changes: Any) -> None:
    path = stores.make(tmp_path / "s", [3])
    with pytest.raises(InvalidArgumentError, match=str(next(iter(changes))).replace("collate", "lse_T")):
        BatchStream(path, **({"batch_size": 2} | changes))
    for epoch in (-1, 1.0, None):
        with pytest.raises(InvalidArgumentError, match="whole number"):
            BatchStream(path, 2).set_epoch(epoch)


@pytest.mark.parametrize("collate", MODES.values(), ids=MODES)
@pytest.mark.parametrize("lengths", [[], [5], [40]])
def test_small_stores(stores: Any, tmp_path: Any, lengths: list[int], collate: Collate) -> None:
    path = stores.make(tmp_path / "s", lengths)

    def make(**world: Any) -> BatchStream:
        return BatchStream(path, 3, collate=collate, **world)

    ranks = dealt(make, 4, 3)
    assert [len(batches) for batches in ranks] == [len(make(num_replicas=4, rank=0))] * 4
    assert sum(int((batch["document_ids"] >= 0).sum()) for batches in ranks for batch in batches) == sum(lengths)
    stream = make()
    stream.load_state_dict(stream.state_dict())
    assert len(list(stream)) == len(stream)


def test_ranks_come_from_the_environment(store: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("RANK", "1")
    found = fingerprints(BatchStream(store, 2))
    assert (
        found
        == fingerprints(BatchStream(store, 2, num_replicas=3, rank=1))
        != fingerprints(BatchStream(store, 2, num_replicas=1, rank=0))
    )
    monkeypatch.setenv("RANK", "one")
    with pytest.raises(InvalidArgumentError, match="RANK is a whole number, found 'one'"):
        BatchStream(store, 2)


def test_a_worker_of_another_loader_is_refused(store: Any) -> None:
    stream = BatchStream(store, 2)
    with in_worker(0, 2):
        next(iter(stream))
        state = stream.state_dict()
    with in_worker(1, 3):
        stream.load_state_dict(state)
        with pytest.raises(InvalidArgumentError, match=r"worker 0 of 2 .* there, worker 1 of 3"):
            iter(stream)


def test_a_state_is_good_for_the_other_container(make: Any, path: Any, tmp_path: Any) -> None:
    from logitstore.convert import convert

    convert(path, tmp_path / "tar", to="webdataset", shard_bytes=4000)
    tar = logitstore.open(tmp_path / "tar", order="stored")
    zarr = make()
    batches = list(zarr)
    stream = BatchStream(tar, 2, collate=zarr.collate, window=6, seed=3)
    stream.load_state_dict(zarr.state_dict(batches[2]))
    assert fingerprints(stream) == fingerprints(batches[3:])
