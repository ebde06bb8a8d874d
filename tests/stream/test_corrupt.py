"""Documents that cannot be read: an error that names the place, or a blank place and a count."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from logitstore import CorruptDataError
from logitstore.stream import BatchStream, Collate
from tests.stream.epochs import fingerprint, fingerprints

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

LENGTHS = [4] * 24  # eight documents a shard of 32 rows


@pytest.fixture(scope="module")
def sound(stores: Any, tmp_path_factory: Any) -> Any:
    return stores.make(tmp_path_factory.mktemp("sound") / "s", LENGTHS, ragged=True)


@pytest.fixture(scope="module")
def broken(stores: Any, tmp_path_factory: Any) -> Any:
    """A store whose documents 8 to 15 have no readable ids."""
    path = stores.make(tmp_path_factory.mktemp("broken") / "s", LENGTHS, ragged=True)
    shard = path / "ids" / "c.1.0"
    content = bytearray(shard.read_bytes())
    content[150] ^= 1
    shard.write_bytes(content)
    return path


COLLATES = {
    "whole": Collate(),
    "cut": Collate(seq_len=3),
    "packed": Collate(seq_len=12, pack=True),
    "flat": Collate(seq_len=12, pack=True, entries="flat", order="logit", values="logit"),
}


@pytest.fixture(params=sorted(COLLATES))
def collate(request: Any) -> Collate:
    return COLLATES[request.param]


@pytest.mark.parametrize("prefetch", [0, 3])
def test_an_error_names_the_place_after_what_was_sound(broken: Any, collate: Collate, prefetch: int) -> None:
    stream = BatchStream(broken, 2, collate=collate, shuffle=False, prefetch=prefetch)
    found: list[int] = []
    with pytest.raises(CorruptDataError, match=r"checksum of chunk.*shard 1, row 32") as caught:
        found.extend(int(batch["document_ids"].max()) for batch in stream)
    assert caught.value.path.endswith("c.1.0")
    assert found
    assert max(found) < 8
    assert stream.state_dict()["cursor"] == len(found)


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_comes_out_of_a_worker(broken: Any, workers: int) -> None:
    stream = BatchStream(broken, 2, shuffle=False)
    with pytest.raises(CorruptDataError, match="the checksum of chunk") as caught:
        list(DataLoader(stream, batch_size=None, num_workers=workers))
    assert "shard 1, row 32" in str(caught.value)


def test_skipping_leaves_a_blank_and_nothing_else_changes(
    broken: Any, sound: Any, collate: Collate, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"collate": collate, "seed": 2, "prefetch": 0}
    stream = BatchStream(broken, 3, on_corrupt="skip", **settings)
    with caplog.at_level(logging.WARNING, "logitstore"):
        found = list(stream)
    whole = list(BatchStream(sound, 3, **settings))
    assert len(found) == len(whole)
    skipped = 0
    for batch, expected in zip(found, whole, strict=True):
        gone = (expected["document_ids"] >= 8) & (expected["document_ids"] < 16)
        if not gone.any():
            assert fingerprint(batch) == fingerprint(expected)
        for name in ("attention_mask", "position_ids", "cu_seqlens", "max_seqlen"):
            if name in expected:
                assert torch.equal(batch[name], expected[name])
        for name, blank in (("tokens", 0), ("labels", -100), ("mask", False), ("document_ids", -1)):
            assert torch.equal(batch[name], expected[name].masked_fill(gone, blank))
        assert torch.isnan(batch["lse"][gone]).all()
        assert torch.equal(batch["lse"][~gone].nan_to_num(7), expected["lse"][~gone].nan_to_num(7))
        if collate.entries == "padded":
            assert (batch["ids"][gone] == -1).all()
            assert torch.isneginf(batch["logprobs"][gone]).all()
            assert torch.equal(batch["ids"][~gone], expected["ids"][~gone])
        else:
            counts = expected["entry_offsets"].diff()
            kept = (~gone).reshape(-1).repeat_interleave(counts)
            assert torch.equal(batch["entry_offsets"].diff(), counts.masked_fill(gone.reshape(-1), 0))
            assert torch.equal(batch["ids"], expected["ids"][kept])
            assert torch.equal(batch["logits"], expected["logits"][kept])
        skipped += int(batch["skipped"])
    pieces = 16 if collate.seq_len == 3 else 8
    assert stream.skipped == skipped == pieces == len(caplog.records)
    assert all("shard 1, row 32" in record.message and "document" in record.message for record in caplog.records)


def test_skipping_in_workers_is_counted_over_all_of_them(broken: Any) -> None:
    stream = BatchStream(broken, 3, on_corrupt="skip")
    batches = list(DataLoader(stream, batch_size=None, num_workers=2))
    assert stream.skipped == 8
    assert sum(int(batch["skipped"]) for batch in batches) == 8
    assert fingerprints(batches) == fingerprints(BatchStream(broken, 3, on_corrupt="skip"))
    list(DataLoader(stream, batch_size=None, num_workers=2))
    assert stream.skipped == 16


def test_a_run_of_documents_loses_only_those_that_are_broken(broken: Any) -> None:
    # One read spans all documents; what fails is read again by itself.
    stream = BatchStream(broken, 24, on_corrupt="skip", shuffle=False, collate=Collate(seq_len=4))
    (batch,) = list(stream)
    assert batch["document_ids"][:, 0].tolist() == [*range(8)] + [-1] * 8 + [*range(16, 24)]


def test_where_documents_begin_must_be_known(stores: Any, tmp_path: Any) -> None:
    path = stores.make(tmp_path / "s", LENGTHS)
    shard = path / "doc_offsets" / "c.0"
    content = bytearray(shard.read_bytes())
    content[150] ^= 1
    shard.write_bytes(content)
    with pytest.raises(CorruptDataError, match="doc_offsets"):
        list(BatchStream(path, 2, on_corrupt="skip"))
