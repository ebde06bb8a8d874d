"""Our reader, plain Zarr, the standard-library decoder and what was written are equal."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import logitstore
from logitstore.audit import verify


@st.composite
def shapes(draw: st.DrawFn) -> dict[str, Any]:
    return {
        "lengths": draw(st.lists(st.integers(1, 40), min_size=1, max_size=6)),
        "slots": draw(st.sampled_from([1, 2, 5, 17, 97])),
        "rows_per_shard": draw(st.sampled_from([2, 8, 32, 1024])),
        "values": draw(st.sampled_from(["logprob", "logit"])),
        "has_counts": draw(st.booleans()),
        "temperatures": draw(st.sampled_from([(), (2.0,), (0.5, 2.0, 4.0)])),
        "build": {"rows": draw(st.sampled_from(["all", "masked"]))},
        "ragged": draw(st.booleans()),
        "seed": draw(st.integers(0, 99)),
    }


def check_equal(stores: Any, decoder: Any, path: Path, documents: Any, values: str) -> None:
    reference = decoder.Store(path)
    group = zarr.open_group(str(path), mode="r")
    store = logitstore.open(path, order="stored", verify="full")
    rows = store.rows[:]
    for field in ("tokens", "ids", "values", "lse", "label_logprob", "mask", "counts", "lse_T"):
        if getattr(documents[0][1], field) is None:
            assert getattr(rows, field) is None
            assert field not in group
            continue
        written = stores.joined(documents, field)
        name = {"logprob": "logprobs", "logit": "logits"}[values] if field == "values" else field
        # Bit for bit, NaN included.
        assert group[name][:].tobytes() == written.tobytes()
        assert getattr(rows, field).tobytes() == written.tobytes()
        np.testing.assert_array_equal(np.array(reference.read(name)).astype(written.dtype), written)
        assert group[name].shape == getattr(rows, field).shape == written.shape
    offsets = np.cumsum([0, *(len(document.tokens) for document, _ in documents)])
    np.testing.assert_array_equal(group["doc_offsets"][:], offsets)
    for number, (document, written) in enumerate(documents):
        read = store[number]
        assert (read.key, read.parent, read.metadata) == (document.key, document.parent, document.metadata)
        assert (read.index, read.first_row) == (number, offsets[number])
        assert read.ids.tobytes() == written.ids.tobytes()
        assert read.values.tobytes() == written.values.tobytes()


@settings(max_examples=20, deadline=None)
@given(shape=shapes(), cuts=st.lists(st.integers(0, 400), min_size=2, max_size=2))
def test_reader_zarr_decoder_and_written_rows_are_equal(
    stores: Any, decoder: Any, shape: dict[str, Any], cuts: list[int]
) -> None:
    lengths, ragged, seed = shape.pop("lengths"), shape.pop("ragged"), shape.pop("seed")
    manifest = stores.manifest(**shape)
    documents = stores.documents(lengths, manifest, seed=seed, ragged=ragged)
    with tempfile.TemporaryDirectory() as folder:
        path = stores.write(Path(folder) / "store.zarr", documents, manifest)
        check_equal(stores, decoder, path, documents, manifest.values)
        start, stop = sorted(min(cut, sum(lengths)) for cut in cuts)
        part = logitstore.open(path, order="stored").rows[start:stop]
        plain = zarr.open_group(str(path), mode="r")["ids"][start:stop]
        assert part.ids.tobytes() == plain.tobytes() == stores.joined(documents, "ids")[start:stop].tobytes()


def test_rows_wider_than_a_chunk_target_and_chunks_of_several_documents(
    stores: Any, decoder: Any, tmp_path: Path
) -> None:
    # 70,000 slots: a chunk holds a single row; the whole vocabulary is kept.
    manifest = stores.manifest(slots=70_000, vocab_size=70_000, padded_vocab_size=70_000, rows_per_shard=2)
    assert {field.name: field.chunk_rows for field in manifest.row_fields}["ids"] == 1
    documents = stores.documents([2, 1], manifest)
    check_equal(stores, decoder, stores.write(tmp_path / "s", documents, manifest), documents, "logprob")


def test_many_chunks_in_a_shard(stores: Any, decoder: Any, tmp_path: Path) -> None:
    manifest = stores.manifest(slots=64, rows_per_shard=8192)
    assert {field.name: field.chunk_rows for field in manifest.row_fields}["ids"] == 2048
    documents = stores.documents([3000, 1, 4000, 2500], manifest)
    check_equal(stores, decoder, stores.write(tmp_path / "s", documents, manifest), documents, "logprob")


def test_a_store_without_documents(stores: Any, decoder: Any, tmp_path: Path) -> None:
    path = stores.make(tmp_path / "s", [])
    store = logitstore.open(path)
    assert len(store) == len(store.rows) == 0
    assert list(store) == []
    assert store.rows[:].ids.shape == (0, 5)
    group = zarr.open_group(str(path), mode="r")
    assert group["ids"].shape == (0, 5)
    assert group["doc_offsets"][:].tolist() == [0]


def test_attributes_are_anybodys(stores: Any, tmp_path: Path) -> None:
    path = stores.make(tmp_path / "a.zarr", [20, 30])
    array = zarr.open_group(str(path), mode="r+")["ids"]
    array.attrs["note"] = "ours"
    assert verify(path).ok
    assert np.array_equal(logitstore.open(path, order="stored").rows[3:40].ids, array[3:40])
