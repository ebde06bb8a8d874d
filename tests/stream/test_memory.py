"""A reader streams a store that is larger than the memory it may use."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from logitstore.container.writer import StoreWriter, prepare_directory
from logitstore.records import RowBatch, TokenDocument

if TYPE_CHECKING:
    from pathlib import Path

ROWS, SLOTS, DOCUMENTS, VOCAB_SIZE = 1024, 512, 32, 50_257
CAP = 24_000_000

READ = """
import resource, sys
import logitstore
from logitstore.stream import BatchStream
path, cap, cache = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])

def stream():
    return BatchStream(logitstore.open(path, order="stored", cache_bytes=cache), 1, prefetch=0)

next(iter(stream()))
with open("/proc/self/status") as status:
    size = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmSize"))
resource.setrlimit(resource.RLIMIT_AS, (size + cap, size + cap))
print(sum(int(batch["attention_mask"].sum()) for batch in stream()))
"""


def write_large_store(path: Path, manifest: Any) -> int:
    """Write random rows; return the bytes of the store."""
    generator = np.random.default_rng(0)
    mask = np.ones(ROWS, np.uint8)
    mask[-1] = 0
    label = np.full(ROWS, -11, np.float32)
    label[-1] = np.nan
    prepare_directory(path)
    with StoreWriter(path, manifest, holds_maximum=False) as writer:
        for number in range(DOCUMENTS):
            tokens = generator.integers(0, VOCAB_SIZE, ROWS, np.uint32)
            steps = generator.integers(1, VOCAB_SIZE // SLOTS, (ROWS, SLOTS), np.uint32)
            rows = RowBatch(
                tokens=tokens,
                ids=np.cumsum(steps, axis=1, dtype=np.uint32),
                values=generator.uniform(-14, -8, steps.shape).astype(np.float16),
                lse=np.full(ROWS, 12, np.float32),
                label_logprob=label,
                mask=mask,
            )
            writer.append(TokenDocument(f"document {number}", tokens, mask), rows)
        writer.finish()
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's limit on a process's address space")
@pytest.mark.parametrize("container", ["zarr", "webdataset"])
def test_mapped_shards_stay_under_the_cap(stores: Any, tmp_path: Path, container: str) -> None:
    manifest = stores.manifest(
        slots=SLOTS, vocab_size=VOCAB_SIZE, padded_vocab_size=VOCAB_SIZE, rows_per_shard=4 * ROWS, selection={},
        container=container, shard_bytes=3_000_000 if container == "webdataset" else 0,
    )  # fmt: skip
    size = write_large_store(tmp_path / "s", manifest)
    assert size > 1.2 * CAP

    def read(cache_bytes: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-W", "ignore", "-c", READ, str(tmp_path / "s"), str(CAP), str(cache_bytes)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    bounded = read(4_000_000)
    assert bounded.returncode == 0, bounded.stderr
    assert int(bounded.stdout) == ROWS * DOCUMENTS
    # The limit is a limit: where nothing bounds what is mapped, it is hit.
    unbounded = read(1 << 40)
    assert unbounded.returncode != 0
    assert "Cannot allocate memory" in unbounded.stderr
