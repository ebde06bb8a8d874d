"""A build whose chunks are encoded by kernels, in the interpreter, makes the very store that the CPU makes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from logitstore.bench import TINY
from logitstore.bench.capture import capture, random_documents, random_teacher
from logitstore.build import BuildConfig
from logitstore.container.writer import prepare_directory
from logitstore.corpus import CorpusConfig
from logitstore.device import encode_kernels
from logitstore.kernels.choice import VARIABLE
from logitstore.select import Selection
from logitstore.teacher import TeacherConfig

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")


@pytest.mark.parametrize("container", ["zarr", "webdataset"])
def test_the_same_store(container, tmp_path, monkeypatch):
    # The interpreter is for one thread at a time: the teacher's has no kernels, the writer's encodes with them.
    monkeypatch.setenv(VARIABLE, "off")
    monkeypatch.setattr("logitstore.device.encode.runs_on", lambda device: True)
    # Windows of two documents, 6 rows each, and chunks of 4.
    monkeypatch.setattr("logitstore.build.config._WINDOW_BYTES", 12 * 6 * 4)
    sizes = replace(TINY, batches=3, tokens_per_batch=6, document_tokens=6)
    config = BuildConfig(
        TeacherConfig("tiny"), CorpusConfig(data=("none",)), Selection(top_k=4), tokens_per_batch=6, rows_per_shard=4,
        container=container,
    )  # fmt: skip
    launched = []
    kernel = encode_kernels.write_rows

    class Counted:
        def __getitem__(self, grid):
            launched.append(grid)
            return kernel[grid]

    monkeypatch.setattr(encode_kernels, "write_rows", Counted())
    teacher = random_teacher(sizes, torch.device("cpu"), "tiny")
    found = []
    for gather in (False, True):
        assert not launched
        store = tmp_path / str(gather)
        prepare_directory(store)
        capture(store, teacher, config, random_documents(sizes), gather=gather)
        found.append({str(path.relative_to(store)): path.read_bytes() for path in store.rglob("*") if path.is_file()})
    assert launched
    assert found[0] == found[1]
