"""Tar shards inside WebDataset: decoded, whole, and the same as what `logitstore.open` gives."""

from __future__ import annotations

import gc
import subprocess
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import webdataset as wds

import logitstore
import logitstore.wds
from logitstore import CorruptDataError, InvalidArgumentError, TruncatedDataError
from logitstore.container.tar_index import IndexRecord

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")

LENGTHS = [20, 13, 9, 1, 40, 7]


@pytest.fixture(autouse=True)
def _collect() -> Iterator[None]:
    """Let go of the files that WebDataset leaves to the garbage collector, where the warning of it is expected."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture
def store(stores: Any, tmp_path: Path) -> Path:
    return Path(
        stores.make(
            tmp_path / "t.wds", LENGTHS, container="webdataset", shard_bytes=9000, rows_per_shard=16, has_counts=True,
            temperatures=(2.0,), selection={"top_k": 5, "samples": 50}, ragged=True,
        )
    )  # fmt: skip


def pipeline(store: Path) -> Any:
    return wds.WebDataset(logitstore.wds.urls(store), shardshuffle=False)


def test_importing_is_enough_in_a_new_process(store: Path) -> None:
    code = (
        "import sys, webdataset as wds, logitstore.wds\n"
        "urls = sys.argv[1:]\n"
        "for sample in wds.WebDataset(urls, shardshuffle=False).decode():\n"
        "    print(sample['json']['key'], *sample['lgt'].logprobs.shape)\n"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, *logitstore.wds.urls(store)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"document {number} {length} 5" for number, length in enumerate(LENGTHS)]


@pytest.mark.parametrize("order", ["logit", "stored"])
def test_samples_equal_documents(store: Path, order: Any) -> None:
    opened = logitstore.open(store, order=order)
    samples = list(pipeline(store).decode(logitstore.wds.Handler(order=order)))
    assert len(samples) == len(opened) == len(LENGTHS)
    for sample, document in zip(samples, opened, strict=True):
        found = sample["lgt"]
        for field in ("tokens", "ids", "values", "lse", "label_logprob", "mask", "counts", "lse_T"):
            assert getattr(found, field).tobytes() == getattr(document, field).tobytes()
            assert getattr(found, field).flags.writeable  # torch warns of arrays that are not
        assert (found.index, found.first_row, found.stores) == (document.index, document.first_row, document.stores)
        assert sample["__key__"] == f"{document.index:010d}"
        assert sample["json"]["key"] == document.key
        assert sample["json"]["rows"] == len(document)
        assert sample["json"].get("metadata", {}) == document.metadata


def test_handler_leaves_other_members_alone(store: Path) -> None:
    data = next(iter(pipeline(store)))["lgt"]
    assert isinstance(data, bytes)
    for key in (".lgt", ".teacher.lgt"):
        decoded = logitstore.wds.handler(key, data)
        assert decoded is not None
        assert len(decoded) == LENGTHS[0]
    for key in (".json", ".lgt.bin", ".txt"):
        assert logitstore.wds.handler(key, data) is None


def test_damaged_members(store: Path) -> None:
    data = next(iter(pipeline(store)))["lgt"]
    for offset in range(0, len(data), 7):
        damaged = bytearray(data)
        damaged[offset] ^= 64
        try:
            found = logitstore.wds.decode_lgt(bytes(damaged))
        except logitstore.LogitStoreError:
            continue
        # Padding behind a chunk belongs to nothing.
        assert found.ids.tobytes() == logitstore.wds.decode_lgt(data).ids.tobytes()
    for size in range(0, len(data), 11):
        with pytest.raises(CorruptDataError):
            logitstore.wds.decode_lgt(data[:size])
    with pytest.raises(wds.autodecode.DecodingError) as caught:
        list(wds.DataPipeline([[{"__key__": "a", "__url__": "u", "lgt": data[:-8]}]], wds.decode()))
    assert isinstance(caught.value.__cause__, TruncatedDataError)


def test_more_rows_than_memory(store: Path) -> None:
    data = next(iter(pipeline(store)))["lgt"]
    with pytest.raises(CorruptDataError, match="max_bytes"):
        logitstore.wds.decode_lgt(data, max_bytes=100)


def test_a_tar_cut_between_members_is_an_error(store: Path) -> None:
    stage = logitstore.wds.whole_shards(store)
    assert len(list(pipeline(store).compose(stage).decode())) == len(LENGTHS)
    tar = store / "shard-000000.tar"
    record = IndexRecord.unpack((store / "documents.idx").read_bytes()[:64])
    tar.write_bytes(tar.read_bytes()[: record.offset + -(-record.size // 512) * 512])
    assert len(list(pipeline(store))) < len(LENGTHS)  # WebDataset alone does not notice
    with pytest.raises(TruncatedDataError, match="after 1 of") as caught:
        list(pipeline(store).compose(stage))
    assert caught.value.shard == 0


def test_a_swapped_tar_is_an_error(store: Path) -> None:
    content = (store / "shard-000001.tar").read_bytes()
    (store / "shard-000000.tar").write_bytes(content)
    with pytest.raises(CorruptDataError, match="sample 0 is"):
        list(pipeline(store).compose(logitstore.wds.whole_shards(store)))


def test_shuffled_pipelines_and_workers(store: Path) -> None:
    import torch

    stage = logitstore.wds.whole_shards(store)
    dataset = wds.WebDataset(logitstore.wds.urls(store), shardshuffle=3, seed=1).compose(stage).shuffle(4).decode()
    loader = torch.utils.data.DataLoader(dataset.map(_length), batch_size=None, num_workers=2)
    assert sorted(loader) == sorted(LENGTHS)


def _length(sample: Any) -> int:
    return len(sample["lgt"])


def test_stores_without_tars(stores: Any, tmp_path: Path) -> None:
    path = stores.make(tmp_path / "z", [3])
    for ask in (logitstore.wds.urls, logitstore.wds.whole_shards):
        with pytest.raises(InvalidArgumentError, match="convert"):
            ask(path)


def test_labels_fit_the_rows(store: Path) -> None:
    for sample in pipeline(store).decode():
        rows = sample["lgt"]
        at_label = rows.ids == np.append(rows.tokens[1:], 2**32 - 1)[:, None]
        found = np.where(at_label, rows.logprobs, -np.inf).max(axis=1)
        kept = at_label.any(axis=1) & (np.arange(len(rows)) < len(rows) - 1)
        assert np.abs(found[kept] - rows.label_logprob[kept]).max(initial=0) < 0.01
