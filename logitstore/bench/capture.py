"""A teacher's logits all the way to the disk, against its plain forward over the same batches."""

from __future__ import annotations

import os
import shutil
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from logitstore.bench.measure import Case, Contender, Goal
from logitstore.bench.random_data import kept_sets, random_llama
from logitstore.build import BuildConfig
from logitstore.build.extract import Extractor
from logitstore.build.flow import write_store
from logitstore.build.windows import Cursor, Window
from logitstore.container.manifest import Manifest
from logitstore.container.writer import prepare_directory
from logitstore.corpus import CorpusConfig, CorpusCounters
from logitstore.records import TokenDocument
from logitstore.stopwatch import Stopwatch
from logitstore.teacher import Teacher, TeacherConfig
from logitstore.teacher.head import detach_head, probe_logits

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from logitstore.bench.measure import Setting
    from logitstore.bench.sizes import Sizes
    from logitstore.select import Selection

__all__ = ["capture", "capture_cases", "random_documents", "random_teacher"]

_PLAIN = "plain forward"
_GOALS = {"top_k": 1.03, "top_fraction": 1.06}
_WORKERS = min(16, os.cpu_count() or 1)


def capture_cases(setting: Setting) -> Iterator[Case]:
    """Yield each teacher with each selection."""
    for name in setting.sizes.teachers:
        teacher = random_teacher(setting.sizes, setting.device, name)
        for kept, selection in kept_sets(setting.sizes):
            yield _case(setting, teacher, name, kept, selection)
        del teacher  # before the next one is made


def _case(setting: Setting, teacher: Teacher, name: str, kept: str, selection: Selection) -> Case:
    sizes = setting.sizes
    documents = random_documents(sizes)
    config = BuildConfig(
        TeacherConfig(name), CorpusConfig(data=("random tokens",)), selection, tokens_per_batch=sizes.tokens_per_batch
    )
    store = setting.folder / "store"
    per_batch = max(1, sizes.tokens_per_batch // sizes.document_tokens)

    @torch.inference_mode()
    def forward() -> None:
        for start in range(0, len(documents), per_batch):
            tokens = np.stack([document.tokens for document in documents[start : start + per_batch]]).astype(np.int64)
            teacher.model(input_ids=torch.from_numpy(tokens).to(teacher.device), use_cache=False)

    def to_disk(*, gather: bool) -> None:
        capture(store, teacher, config, documents, gather=gather)

    def prepare() -> None:
        shutil.rmtree(store, ignore_errors=True)
        prepare_directory(store)

    plain = Contender(_PLAIN, forward)
    rows = len(documents) * sizes.document_tokens
    return Case(
        f"capture, {name}, {kept}",
        "the plain forward and one read of its logits",
        [
            Contender("logitstore, to the disk", partial(to_disk, gather=False), prepare),
            Contender("logitstore, encoded on the device", partial(to_disk, gather=True), prepare),
            plain,
        ],
        goals=tuple(Goal(limit, _PLAIN) for of, limit in _GOALS.items() if getattr(selection, of) is not None),
        bytes=rows * sizes.vocab_size * sizes.dtype.itemsize,
        least=plain,
        long=True,
    )


def capture(
    store: Path, teacher: Teacher, config: BuildConfig, documents: list[TokenDocument], *, gather: bool
) -> None:
    """Do what a build does for documents of one length: write a store at an empty directory.

    ``gather``: entries are encoded on the device.
    """
    watch = Stopwatch()
    manifest = _manifest(config, teacher)
    windows = list(_windows(documents, config.window_tokens(manifest.slots)))
    extractor = Extractor(teacher, config, watch, gather=gather)
    write_store(store, manifest, extractor, lambda _: iter(windows), CorpusCounters(), watch, workers=_WORKERS)


@torch.inference_mode()
def random_teacher(sizes: Sizes, device: torch.device, name: str) -> Teacher:
    """Return one of the teachers, with random weights, without a tokenizer."""
    shape = sizes.teachers[name]
    model: Any = random_llama(shape, sizes.vocab_size, sizes.document_tokens, device, sizes.dtype).eval()
    ids = torch.arange(min(8, sizes.document_tokens), device=device)[None] % sizes.vocab_size
    return Teacher(
        model, None, head=detach_head(model, ids, probe_logits(model, ids)), device=device,
        vocab_size=sizes.vocab_size, padded_vocab_size=sizes.vocab_size, max_length=sizes.document_tokens,
        description={"id": f"random {name}"},
    )  # fmt: skip


def random_documents(sizes: Sizes) -> list[TokenDocument]:
    """Return what is read in a turn."""
    generator = np.random.default_rng(4)
    count = max(1, sizes.batches * sizes.tokens_per_batch // sizes.document_tokens)
    tokens = generator.integers(0, sizes.vocab_size, (count, sizes.document_tokens), np.uint32)
    mask = np.ones(sizes.document_tokens, np.uint8)
    mask[-1] = 0
    return [TokenDocument(str(number), row, mask) for number, row in enumerate(tokens)]


def _windows(documents: list[TokenDocument], window_tokens: int) -> Iterator[Window]:
    length = len(documents[0].tokens)
    step = -(-window_tokens // length)
    for first in range(0, len(documents), step):
        yield Window(Cursor(document=first, row=first * length), tuple(documents[first : first + step]))


def _manifest(config: BuildConfig, teacher: Teacher) -> Manifest:
    slots = config.selection.slots(teacher.vocab_size)
    return Manifest(
        store_id="0" * 32, complete=False, vocab_size=teacher.vocab_size, padded_vocab_size=teacher.padded_vocab_size,
        slots=slots, values=config.values, rows_per_shard=config.shard_rows(slots),
        selection=config.selection.to_json(), teacher=teacher.describe(), tokenizer={}, corpus={},
        build=config.run_settings(), versions={}, container=config.container,
        shard_bytes=config.shard_bytes if config.container == "webdataset" else 0,
    )  # fmt: skip
