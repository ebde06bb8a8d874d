from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest
import torch.utils.data

from logitstore.stream import BatchStream
from tests.stream.epochs import PACKED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

LENGTHS = [5, 3, 9, 1, 7, 20, 4, 4, 2, 13, 6, 1, 8, 3, 40, 5, 2, 9, 1, 6, 4, 7, 11]


@pytest.fixture(scope="package", autouse=True)
def _without_waiting_for_the_disk() -> Iterator[None]:
    """Stores of many tiny shards are synced thousands of times; what is tested here is reading."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="package", autouse=True)
def _without_waiting_for_failed_workers() -> Iterator[None]:
    """PyTorch waits five seconds for each worker after one of them has raised an error."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.2)
        yield


@pytest.fixture(scope="package")
def path(stores: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of documents of all lengths, with every field there is."""
    return stores.make(
        tmp_path_factory.mktemp("stream") / "s", LENGTHS, ragged=True, has_counts=True, temperatures=(2.0, 4.0)
    )


@pytest.fixture
def make(path: Path) -> Callable[..., BatchStream]:
    """Make a stream of packed batches of two; keywords change it."""
    return lambda **changes: BatchStream(path, 2, **({"collate": PACKED, "window": 6, "prefetch": 1} | changes))
