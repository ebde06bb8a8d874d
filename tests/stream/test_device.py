"""Batches that stay coded until they are where the training is equal those that were decoded at once."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch.utils.data import DataLoader

import logitstore
from logitstore.codec import bit_rows, group_rows
from logitstore.codec.compact.chunk import read_header
from logitstore.container.codec_record import CodecRecord
from logitstore.errors import CorruptDataError, InvalidArgumentError
from logitstore.stream import BatchStream, Collate
from logitstore.stream.ahead import SideStream, started_ahead
from logitstore.stream.device_batch import OnDevice
from tests.conftest import use_codebooks, use_codebooks_in_turns
from tests.stream.conftest import LENGTHS
from tests.stream.test_fast_path import EXTRA, collates

COMPACT = CodecRecord.compact(training_rows=24, retrain_rows=32)
OPTIONS = {
    **EXTRA,
    "tar": {"container": "webdataset", "shard_bytes": 10**6, "ragged": True, "has_counts": True},
    "compact": {"codec": COMPACT, "rows_per_shard": 16, "ragged": True, "has_counts": True},
    "compact tar": {"codec": COMPACT, "container": "webdataset", "shard_bytes": 10**6, "values": "logit"},
}


@pytest.fixture(scope="module", params=sorted(OPTIONS))
def store(request: Any, stores: Any, tmp_path_factory: Any) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        use_codebooks_in_turns(patch)
        path = stores.make(tmp_path_factory.mktemp("device") / "s", LENGTHS, **OPTIONS[request.param])
    opened = logitstore.open(path, order="stored")
    sets = opened.manifest.codec.codebooks
    assert not sets or sum(bool(books.files) for books in sets) >= 3 <= sum(not books.files for books in sets)
    return opened


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
    if "ids_group_table" in batch:
        batch["ids_group_table"][group_rows.WORDS, -1] -= 1
    else:
        lengths = batch["ids_table"][bit_rows.LENGTH]
        lengths[int(torch.nonzero(lengths)[0])] -= 1
    with pytest.raises(CorruptDataError, match="of document"):
        stream.to_device(batch, "cpu")


@pytest.fixture
def compact(stores: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A store of compact chunks alone."""
    use_codebooks(monkeypatch)
    return stores.make(tmp_path / "s", LENGTHS, rows_per_shard=16, codec=COMPACT)


@pytest.mark.parametrize("decode", ["host", "device"])
def test_bits_that_break_a_rule_are_found_and_named(compact: Any, decode: Any) -> None:
    broken = compact / "ids" / "c.0.0"
    data = bytearray(broken.read_bytes())
    chunk = data.index(b"LGC1")
    (size,) = np.frombuffer(data[chunk - 20 : chunk - 16], "<u4")
    header = read_header(memoryview(data)[chunk : chunk + int(size)])
    # The upper word of the first state: whatever follows, another number comes out at the end.
    data[chunk + header.payload_start + 3] ^= 64
    broken.write_bytes(data)
    stream = BatchStream(compact, len(LENGTHS), decode=decode, prefetch=0, verify="none")
    with pytest.raises(CorruptDataError, match="of the chunk") as caught:
        list(stream.on_device(stream, "cpu"))
    assert (caught.value.path, caught.value.shard) == (str(broken), 0)
    assert caught.value.row is not None
    assert caught.value.row < 16


def test_unreadable_documents_of_a_compact_store_are_blank_in_either(compact: Any) -> None:
    broken = compact / "logprobs" / "c.3.0"
    data = bytearray(broken.read_bytes())
    data[150] ^= 1
    broken.write_bytes(data)
    options: dict[str, Any] = {"on_corrupt": "skip", "collate": Collate(seq_len=16, pack=True), "prefetch": 0}
    stream = BatchStream(compact, 4, decode="device", **options)
    for batch, other in zip(stream.on_device(stream, "cpu"), BatchStream(compact, 4, **options), strict=True):
        same(batch, other)


def test_what_is_handed_over_of_a_compact_store(compact: Any) -> None:
    """No tables of the exact codec; of a row, its words and count and its share of its group's seven numbers."""
    batch = next(iter(BatchStream(compact, 4, decode="device", prefetch=0)))
    coded = {name: tensor for name, tensor in batch.items() if name.startswith(("ids_", "values_"))}
    assert set(coded) == {
        f"{field}_group_{part}" for field in ("ids", "values") for part in ("words", "table", "counts", "books")
    }
    assert coded["ids_group_books"].shape[1] == 16
    assert coded["ids_group_words"].dtype == torch.int16


def test_codebooks_of_another_store_are_refused(compact: Any, stores: Any, tmp_path: Any) -> None:
    batch = next(iter(BatchStream(compact, 4, decode="device", prefetch=0)))
    other = BatchStream(stores.make(tmp_path / "exact", LENGTHS), 4, decode="device", prefetch=0)
    with pytest.raises(CorruptDataError, match="the store has none"):
        other.to_device(batch, "cpu")
    batch["ids_group_books"] ^= 1
    with pytest.raises(CorruptDataError, match="not one that the manifest gives for ids"):
        BatchStream(compact, 4, decode="device").to_device(batch, "cpu")


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
