"""Stores of a tiny teacher that was really trained, in both containers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from logitstore.build import BuildConfig, build
from logitstore.corpus import CorpusConfig
from logitstore.select import Selection
from logitstore.teacher import TeacherConfig
from logitstore.teacher.tiny import train_tiny_teacher

if TYPE_CHECKING:
    from pathlib import Path

WORDS = ("the", "a", "bell", "fox", "stone", "old", "round", "shiny", "sings", "runs", "sleeps", "and", "never")
LENGTHS = (30, 4, 60, 1, 17, 90, 45, 8, 25, 70, 3, 52, 12, 38, 66, 21, 9, 80)


@dataclass(frozen=True)
class TinyStores:
    """Where they are, and the texts they were made of, with their prompts or ""."""

    teacher: Path
    zarr: Path
    tars: Path
    texts: list[str]
    prompts: list[str]


def make_stores(folder: Path, *, top_k: int = 16) -> TinyStores:
    """Train a teacher on random sentences and store what it says about them; every third has a prompt."""
    generator = torch.Generator().manual_seed(0)
    texts, prompts, records = [], [], []
    for number, count in enumerate(LENGTHS):
        words = [WORDS[word] for word in torch.randint(len(WORDS), (count,), generator=generator).tolist()]
        texts.append(" ".join(words))
        prompts.append("" if number % 3 else " ".join(words[: count // 2]))
        prompt, completion = prompts[-1], texts[-1].removeprefix(prompts[-1])
        records.append({"prompt": prompt, "completion": completion} if prompt else {"text": texts[-1]})
    (folder / "corpus.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        train_tiny_teacher(texts, folder / "teacher", vocab_size=300, max_steps=15)
        for container in ("zarr", "webdataset"):
            config = BuildConfig(
                TeacherConfig(str(folder / "teacher"), dtype="float32", device="cpu"),
                CorpusConfig((str(folder / "corpus.jsonl"),)),
                Selection(top_k=top_k),
                container=container,
                shard_bytes=8 << 10,
            )
            build(config, folder / f"store.{container}")
    finally:
        torch.set_num_threads(threads)
    return TinyStores(folder / "teacher", folder / "store.zarr", folder / "store.webdataset", texts, prompts)
