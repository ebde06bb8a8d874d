"""Training straight from a server: the same batches as from disk, in spite of failures, here and in workers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.utils.data import DataLoader

from logitstore.container import remote
from logitstore.stream import BatchStream, Collate
from tests.reader import servers

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")

PACKED = Collate(seq_len=64, pack=True)


@pytest.fixture(scope="module")
def folder(stores: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("served")
    lengths = [5, 60, 33, 1, 17, 40, 8] * 5
    stores.make(path / "zarr", lengths, rows_per_shard=64)
    stores.make(path / "webdataset", lengths, rows_per_shard=64, container="webdataset", shard_bytes=20_000)
    return path


def assert_equal(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for name, tensor in ours.items():
            assert torch.equal(torch.nan_to_num(tensor), torch.nan_to_num(theirs[name])), name


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("container", ["zarr", "webdataset"])
def test_batches_over_http(folder: Path, container: str, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.001)
    expected = list(BatchStream(folder / container, 2, collate=PACKED))
    with servers.serve_folder(folder) as server:
        stream = BatchStream(f"{server.url}/{container}", 2, collate=PACKED, prefetch=4, threads=3)
        server.failures = [503, "drop", 429, "drop"]
        loader = DataLoader(stream, batch_size=None, num_workers=workers, timeout=60 if workers else 0)
        assert_equal(list(loader), expected)
        assert server.failures == []


def test_resuming_over_s3(folder: Path) -> None:
    expected = list(BatchStream(folder / "webdataset", 2, collate=PACKED))
    with servers.serve_s3("bucket", folder) as options:
        stream = BatchStream("s3://bucket/webdataset", 2, collate=PACKED, storage_options=options)
        batches = iter(stream)
        first = [next(batches) for _ in range(3)]
        # A state from the server goes on from disk: it is the same store.
        local = BatchStream(folder / "webdataset", 2, collate=PACKED)
        local.load_state_dict(stream.state_dict())
        del batches
        assert_equal(first + list(local), expected)
