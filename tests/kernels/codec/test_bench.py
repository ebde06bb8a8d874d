"""What is measured is the codec's work; here on the CPU, whose figures say nothing of a GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from logitstore.codec import ChunkDecoder, encode
from logitstore.device import bench

if TYPE_CHECKING:
    import pytest


def test_entries_and_bytes_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "seconds_of", lambda call, device: (call(), 0.5)[1])
    ids = np.array([[1, 5, 9], [2, 0xFFFFFFFF, 0xFFFFFFFF]], np.uint32)
    chunk = memoryview(encode(ids, "ids", vocab_size=10))
    decoder = ChunkDecoder("ids", "u4", 3, 10)
    rows = decoder.cut(chunk, 2, 0, 2, verify=True)
    decoded = bench.bench_decode(rows, decoder.format, "cpu", bandwidth=1.0)
    moved = rows.words.nbytes + rows.table.nbytes + ids.nbytes
    assert decoded == (8.0, 4 / moved)
    encoded = bench.bench_encode(torch.from_numpy(ids.view(np.int32)), "ids", vocab_size=10, bandwidth=1.0)
    assert encoded == (8.0, 4 / (ids.nbytes + len(chunk)))


def test_a_copy_has_a_bandwidth() -> None:
    assert bench.copy_bandwidth(torch.device("cpu"), nbytes=1 << 16) > 0
