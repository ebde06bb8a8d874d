"""Batches whose entries are decoded by kernels equal those that were decoded where they were made."""

from __future__ import annotations

from typing import Any

import pytest

from logitstore.container.codec_record import CodecRecord
from logitstore.stream import BatchStream, Collate
from tests.conftest import use_codebooks_in_turns
from tests.stream.test_device import same

pytestmark = pytest.mark.usefixtures("quick_interpreter")
EXACT: dict[str, Any] = {}
COMPACT = {"codec": CodecRecord.compact(training_rows=4, retrain_rows=8), "rows_per_shard": 8}


@pytest.mark.parametrize("codec", [EXACT, COMPACT], ids=["exact", "compact"])
@pytest.mark.parametrize(
    "collate",
    [Collate(seq_len=8, pack=True), Collate(entries="flat", fields=["ids", "values"]), Collate(order="logit")],
    ids=["packed", "flat", "sorted"],
)
def test_kernels_make_the_same_batches(
    collate: Collate, codec: dict[str, Any], stores: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_codebooks_in_turns(monkeypatch)
    # Groups of two rows, so that they are soon decoded, and batches begin and end in the middle of one.
    monkeypatch.setattr("logitstore.codec.compact.codec.group_log2_for", lambda entries, rows: 1)
    path = stores.make(tmp_path / "s", [5, 3, 9, 1, 7], ragged=True, has_counts=True, **codec)
    for module in ("decode", "coded_rows"):
        monkeypatch.setattr(f"logitstore.device.{module}.runs_on", lambda device: True)
    stream = BatchStream(path, 2, decode="device", collate=collate, prefetch=0)
    expected = next(iter(BatchStream(path, 2, collate=collate, prefetch=0)))
    same(stream.to_device(next(iter(stream)), "cpu"), expected)
