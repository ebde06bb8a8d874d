"""Batches whose entries are decoded by kernels equal those that were decoded where they were made."""

from __future__ import annotations

from typing import Any

import pytest

from logitstore.stream import BatchStream, Collate
from tests.stream.test_device import same


@pytest.mark.parametrize(
    "collate",
    [Collate(seq_len=8, pack=True), Collate(entries="flat", fields=["ids", "values"]), Collate(order="logit")],
    ids=["packed", "flat", "sorted"],
)
def test_kernels_make_the_same_batches(
    collate: Collate, stores: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = stores.make(tmp_path / "s", [5, 3, 9, 1, 7], ragged=True, has_counts=True)
    monkeypatch.setattr("logitstore.device.decode.runs_on", lambda device: True)
    stream = BatchStream(path, 2, decode="device", collate=collate, prefetch=0)
    expected = next(iter(BatchStream(path, 2, collate=collate, prefetch=0)))
    same(stream.to_device(next(iter(stream)), "cpu"), expected)
