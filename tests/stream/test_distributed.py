"""Two real processes of a process group."""

from __future__ import annotations

import json
import pickle
from typing import TYPE_CHECKING, Any

import pytest
import torch.distributed as dist
import torch.multiprocessing as mp

from logitstore.stream import BatchStream, Collate
from tests.stream.conftest import LENGTHS

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="no gloo")


def _train(rank: int, path: str, out: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{out}/rendezvous", rank=rank, world_size=2)
    try:
        stream = BatchStream(path, 2, collate=Collate(seq_len=50, pack=True), window=6, prefetch=1)
        steps = [(_documents(batch), stream.state_dict(batch)) for batch in stream]
        gathered: list[Any] = [None, None]
        dist.all_gather_object(gathered, steps)
        sent = pickle.dumps(stream)
        if not rank:
            with open(f"{out}/gathered.json", "w", encoding="utf-8") as file:
                json.dump(gathered, file)
    finally:
        dist.destroy_process_group()
    # A spawned worker is in no process group; the stream it is sent knows whose it is.
    assert [_documents(batch) for batch in pickle.loads(sent)] == [documents for documents, _ in steps]


def _documents(batch: dict[str, Any]) -> list[int]:
    return sorted(set(batch["document_ids"].flatten().tolist()) - {-1})


def test_ranks_find_out_who_they_are(path: Path, tmp_path: Path) -> None:
    mp.spawn(_train, (str(path), str(tmp_path)), nprocs=2)
    first, second = json.loads((tmp_path / "gathered.json").read_text())
    assert len(first) == len(second) > 0
    seen = [number for steps in (first, second) for documents, _ in steps for number in documents]
    assert sorted(seen) == list(range(len(LENGTHS)))
    assert [state for _, state in first] == [state for _, state in second]
