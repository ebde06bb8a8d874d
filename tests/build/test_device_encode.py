"""Chunks that are encoded where the teacher is make the very store that the CPU makes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from logitstore.build.encode import broken_row
from logitstore.build.extract import Tally
from logitstore.build.gather import Gatherer
from logitstore.build.transfer import ToHost
from logitstore.container.codec_record import CodecRecord
from logitstore.container.invariants import check_rows
from logitstore.device import encode_chunks
from logitstore.errors import InvalidArgumentError
from logitstore.select import SelectedRows
from tests.build.test_rows import CHATS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("load_once")


TARS = {"container": "webdataset", "shard_bytes": 3000}
TOP_K = {"top_k": 8, "rows_per_shard": 32}
TOP_P = {"top_p": 0.7, "max_k": 40, "values": "logit", "rows_per_shard": 16}
DRAWS = {"top_k": 5, "samples": 20, "temperatures": (2.0,), "rows_per_shard": 64}
MASKED = {"top_k": 4, "rows": "masked", "rows_per_shard": 32}


@pytest.mark.parametrize(
    ("settings", "writes"),
    [
        *((settings, False) for settings in (TOP_K, TOP_P, DRAWS, MASKED, TOP_P | TARS, DRAWS | TARS)),
        *((settings, True) for settings in (DRAWS, MASKED, TOP_K | TARS, MASKED | TARS)),
    ],
    ids=str,
)
def test_the_same_bytes(
    settings: dict[str, Any], writes: bool, configure: Any, configured: Any, write_corpus: Any, texts: Any, run: Any,
    tmp_path: Path, files_of: Callable[[Path], dict[str, bytes]], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    # Windows that are no multiple of chunks, and chunks no multiple of shards or documents.
    monkeypatch.setattr("logitstore.build.config._WINDOW_BYTES", 50 * 6 * 8)
    monkeypatch.setattr("logitstore.container.fields._CHUNK_TARGET_BYTES", 8 * 4 * 8)
    encoded: list[int] = []

    def counted(*arguments: Any, **options: Any) -> list[bytes]:
        chunks = encode_chunks(*arguments, **options)
        encoded.append(len(chunks))
        return chunks

    monkeypatch.setattr("logitstore.build.encode.encode_chunks", counted)
    make = configured if writes else configure
    data = write_corpus([*texts(4, 25 if writes else 60, 9, 1, 30, 17), *CHATS])
    config = make(data, tokens_per_batch=200 if writes else 40, rows_per_chunk=32, **settings)
    summary = run(config, "host")
    assert not encoded
    assert run(config, "device", encode="device").manifest == summary.manifest
    assert files_of(tmp_path / "device") == files_of(tmp_path / "host")
    assert max(encoded) > 5, "chunks of many rows and documents are encoded at once"


@pytest.mark.parametrize("container", [{}, TARS], ids=["zarr", "tars"])
@pytest.mark.parametrize("writes", [False, True], ids=["reads", "writes"])
def test_a_resumed_build_makes_the_same_bytes(
    container: dict[str, Any], writes: bool, configure: Any, configured: Any, write_corpus: Any, texts: Any, run: Any,
    tmp_path: Path, files_of: Any, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("logitstore.build.config._WINDOW_BYTES", 50 * 6 * 8)
    make = configured if writes else configure
    data = write_corpus(texts(4, 25 if writes else 40, 9, 1, 17, 8))
    config = make(data, tokens_per_batch=130 if writes else 40, rows_per_shard=16, **container)
    run(config, "host")
    store = tmp_path / "device"

    def stop_once_committed(progress: Any) -> None:
        if progress.committed_rows >= 48:
            raise KeyboardInterrupt

    for encode in ("device", "host", "device"):
        try:
            run(config, "device", resume=True, encode=encode, on_progress=stop_once_committed)
        except KeyboardInterrupt:
            continue
    run(config, "device", resume=True, encode="device")
    assert files_of(store) == files_of(tmp_path / "host")


@pytest.mark.parametrize("asked", [{"codec": CodecRecord.compact()}, {"encode": "gpu"}], ids=["compact", "gpu"])
def test_what_a_device_does_not_encode(asked: dict[str, Any], configure: Any, write_corpus: Any, run: Any) -> None:
    asked = {"encode": "device"} | asked
    encode = asked.pop("encode")
    with pytest.raises(InvalidArgumentError, match="device"):
        run(configure(write_corpus(["the fox"]), **asked), encode=encode)


def test_rows_are_gathered_without_asking_the_device(configure: Any) -> None:
    # On the meta device, whatever asks for a value fails.
    config = configure("corpus", top_k=4, samples=3, temperatures=(2.0,))
    n, slots = 5, 7
    kept = SelectedRows(
        *(torch.empty(n, slots, dtype=dtype, device="meta") for dtype in (torch.int32, torch.float16)),
        *(torch.empty(n, device="meta") for _ in range(2)), torch.empty(n, slots, dtype=torch.uint8, device="meta"),
        torch.empty(n, 1, device="meta"), torch.empty(n, device="meta"),
    )  # fmt: skip
    Tally().add(kept, "logit")
    gatherer = Gatherer(config, 50)
    few = gatherer.put(kept, np.array([0, 1, 1, 2, 2]), np.array([0, 0, 1, 0, 1]))
    assert set(few) == {"entries", "lse", "label_logprob", "lse_T", "refused"}
    gatherer.lay_out([10, 11, 13, 16])
    gathered = gatherer.take(torch.device("cpu"))
    assert gathered.entries["counts"].shape == (6, slots)
    assert gathered.lse.device.type == "meta"


BREAK = {
    "id-range": lambda rows: rows.ids.__setitem__((3, -1), 97),
    "id-order": lambda rows: rows.ids.__setitem__((3, slice(2)), rows.ids[3, :2][::-1].copy()),
    "value-finite": lambda rows: rows.values.__setitem__((3, 0), np.nan),
    "value-unused": lambda rows: rows.ids.__setitem__((3, -1), 0xFFFFFFFF),
    "lse-finite": lambda rows: rows.lse.__setitem__(3, np.nan),
    "mass": lambda rows: rows.values.__setitem__((3, 0), 0.5),
    "maximum": lambda rows: rows.values.__setitem__(3, -9),
    "count-unused": lambda rows: (rows.ids.__setitem__((3, -1), 0xFFFFFFFF), rows.values.__setitem__((3, -1), -np.inf),
                                  rows.counts.__setitem__((3, -1), 1)),
}  # fmt: skip


@pytest.mark.parametrize("rule", [None, *BREAK])
@pytest.mark.parametrize("values", ["logprob", "logit"])
def test_rules_are_those_of_the_host(stores: Any, rule: str | None, values: str) -> None:
    manifest = stores.manifest(values=values, has_counts=True)
    ((_, rows),) = stores.documents([6], manifest)
    if rule == "mass":
        rows.lse[:] = rows.lse if values == "logprob" else rows.lse - 20
    if rule == "maximum" and values == "logit":
        rows.lse[3] = 30
    if rule is not None:
        BREAK[rule](rows)
    settings = {"vocab_size": 97, "values": values, "holds_maximum": True}
    entries = {"ids": rows.ids.view(np.int32), "values": rows.values, "counts": rows.counts}
    on_device = broken_row(
        {name: torch.from_numpy(array) for name, array in entries.items()}, torch.from_numpy(rows.lse), **settings
    )
    on_host = [(violation.row, violation.rule) for violation in check_rows(rows, **settings)]
    assert on_device == (on_host[0] if on_host else None)
    assert rule is None or rule in [name for _, name in on_host]


def test_rows_leave_a_gpu_on_a_stream_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str] = []

    class Lane:
        def __init__(self, name: str) -> None:
            self.name, self.device = name, "cuda"

        def wait_stream(self, other: Lane) -> None:
            notes.append(f"{self.name} waits for {other.name}")

        def record_event(self) -> Any:
            notes.append(f"{self.name} records")
            return self

        def synchronize(self) -> None:
            notes.append("host waits")

        def __enter__(self) -> None:
            notes.append(f"on {self.name}")

        def __exit__(self, *_: object) -> None:
            pass

    class OnGpu:
        device, shape, dtype = torch.device("cuda"), (3,), torch.float32

        def record_stream(self, lane: Lane) -> None:
            notes.append(f"kept for {lane.name}")

    class Pinned:
        def copy_(self, tensor: OnGpu, *, non_blocking: bool) -> torch.Tensor:
            assert non_blocking
            return torch.arange(3.0)

    side, teacher = Lane("side"), Lane("teacher")
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: side)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: teacher)
    monkeypatch.setattr(torch.cuda, "stream", lambda lane: lane)
    monkeypatch.setattr(torch, "empty", lambda *shape, pin_memory, dtype: notes.append("pinned") or Pinned())
    copy = ToHost().copy({"lse": OnGpu()})  # type: ignore[dict-item]
    assert copy.arrays()["lse"].tolist() == [0, 1, 2]
    assert notes == [
        "side waits for teacher", "on side", "pinned", "side records", "kept for side", "host waits",
    ]  # fmt: skip
