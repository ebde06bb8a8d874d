"""Batches that stay coded until they are where the training is equal those that were decoded at once."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch.utils.data import DataLoader

import logitstore
from logitstore.codec import bit_rows
from logitstore.errors import CorruptDataError, InvalidArgumentError
from logitstore.stream import BatchStream, Collate
from logitstore.stream.ahead import SideStream, started_ahead
from logitstore.stream.device_batch import OnDevice
from tests.stream.conftest import LENGTHS
from tests.stream.test_fast_path import EXTRA, collates


@pytest.fixture(scope="module", params=[*sorted(EXTRA), "tar"])
def store(request: Any, stores: Any, tmp_path_factory: Any) -> Any:
    options = EXTRA.get(request.param) or {
        "container": "webdataset",
        "shard_bytes": 10**6,
        "ragged": True,
        "has_counts": True,
    }
    path = stores.make(tmp_path_factory.mktemp("device") / "s", LENGTHS, **options)
    return logitstore.open(path, order="stored")


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        assert found[name].contiguous().numpy().tobytes() == tensor.contiguous().numpy().tobytes(), name


@given(collate=collates())
@settings(deadline=None, max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_same_batches(store: Any, collate: Collate) -> None:
    options: dict[str, Any] = {"collate": collate, "prefetch": 0, "window": 8}
    stream = BatchStream(store, 4, decode="device", **options)
    for batch, expected in zip(stream, BatchStream(store, 4, **options), strict=True):
        assert {"ids", "logprobs", "logits", "counts"}.isdisjoint(batch)
        same(stream.to_device(batch, "cpu"), expected)


def test_workers_hand_coded_batches_over(store: Any) -> None:
    stream = BatchStream(store, 4, decode="device")
    loader = DataLoader(stream, batch_size=None, num_workers=1, multiprocessing_context="fork")
    found = [stream.to_device(batch, "cpu") for batch in loader]
    for batch, expected in zip(found, BatchStream(store, 4), strict=True):
        same(batch, expected)


def test_a_decoded_batch_is_only_moved(store: Any) -> None:
    stream = BatchStream(store, 4)
    batch = next(iter(stream))
    same(stream.to_device(batch, "cpu"), batch)


def test_another_place_to_decode_is_refused(store: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="decode"):
        BatchStream(store, 4, decode="gpu")  # type: ignore[arg-type]


def test_unreadable_documents_are_blank_in_either(stores: Any, tmp_path: Any) -> None:
    path = stores.make(tmp_path / "s", LENGTHS, rows_per_shard=8, ragged=True)
    broken = path / "ids" / "c.3.0"
    data = bytearray(broken.read_bytes())
    data[150] ^= 1
    broken.write_bytes(data)
    options: dict[str, Any] = {"on_corrupt": "skip", "collate": Collate(seq_len=16, pack=True), "prefetch": 0}
    stream = BatchStream(path, 4, decode="device", **options)
    found = [stream.to_device(batch, "cpu") for batch in stream]
    expected = list(BatchStream(path, 4, **options))
    for batch, other in zip(found, expected, strict=True):
        same(batch, other)
    assert sum(int(batch["skipped"]) for batch in found) > 0


def test_a_row_that_only_decoding_finds_broken(store: Any) -> None:
    stream = BatchStream(store, 4, decode="device", prefetch=0)
    batch = next(iter(stream))
    lengths = batch["ids_table"][bit_rows.LENGTH]
    row = int(torch.nonzero(lengths)[0])
    lengths[row] -= 1
    with pytest.raises(CorruptDataError, match="of document"):
        stream.to_device(batch, "cpu")


def test_batches_ahead_are_those_one_by_one(store: Any) -> None:
    for decode in ("host", "device"):
        stream = BatchStream(store, 4, decode=decode)  # type: ignore[arg-type]
        for batch, expected in zip(stream.on_device(stream, "cpu"), BatchStream(store, 4), strict=True):
            same(batch, expected)


class _Lane:
    """A CUDA stream as far as the order of things goes: notes what is done on it, and between it and others."""

    def __init__(self, notes: list[str], name: str) -> None:
        self.notes, self.name = notes, name

    def record_event(self) -> Any:
        self.notes.append(f"{self.name} records")
        return SimpleNamespace(synchronize=lambda: self.notes.append("host waits"))

    def wait_event(self, event: Any) -> None:
        self.notes.append(f"{self.name} waits")


def test_the_next_batch_is_on_its_way_before_one_is_handed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str] = []
    side, training = _Lane(notes, "side"), _Lane(notes, "training")
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: side)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: training)
    monkeypatch.setattr(torch.cuda, "stream", lambda lane: nullcontext(notes.append("on side")))

    class OnGpu:
        def __init__(self, number: int) -> None:
            self.number, self.is_cuda = number, True

        def is_pinned(self) -> bool:
            return self.number > 0

        def pin_memory(self) -> OnGpu:
            notes.append("pinned")
            return self

        def record_stream(self, lane: _Lane) -> None:
            notes.append(f"{self.number} kept for {lane.name}")

    def move(batch: dict[str, Any]) -> OnDevice:
        notes.append(f"move {batch['ids'].number}")
        return OnDevice(batch, lambda: notes.append(f"check {batch['ids'].number}"))

    mover = SideStream(torch.device("cuda"), move)
    batches = started_ahead([{"ids": OnGpu(number)} for number in range(3)], mover.start, mover.finish)
    started = [["on side", f"move {number}", "side records"] for number in range(3)]
    taken = [["host waits", f"check {n}", "training waits", f"{n} kept for training"] for n in range(3)]
    for number, expected in enumerate(
        (["pinned", *started[0], *started[1], *taken[0]], [*started[2], *taken[1]], taken[2])
    ):
        notes.clear()
        assert next(batches)["ids"].number == number
        assert notes == expected
    assert next(batches, None) is None
