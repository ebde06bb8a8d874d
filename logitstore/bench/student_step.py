"""A student's step of training from a store, against the same step on tokens alone."""

from __future__ import annotations

import contextlib
import itertools
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from logitstore.bench.measure import Case, Contender, Goal
from logitstore.bench.random_data import kept_sets, random_llama, random_logits
from logitstore.container.fields import rows_per_shard_for
from logitstore.container.manifest import Manifest
from logitstore.container.writer import StoreWriter, prepare_directory
from logitstore.loss import make_loss
from logitstore.records import RowBatch, TokenDocument
from logitstore.select import select_rows
from logitstore.stream import BatchStream, Collate
from logitstore.train import LossStep

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from logitstore.bench.measure import Setting
    from logitstore.select import Selection

    Batch = dict[str, torch.Tensor]
    Loss = Callable[[Batch], torch.Tensor]

__all__ = ["step_cases"]

_TOKENS = "torch cross_entropy on tokens"
_GOALS = {"top_k": 1.03, "top_fraction": 1.08}
_WARM_UP = 2
_BLOCK_ROWS = 512
_THREADS = min(8, os.cpu_count() or 1)


def step_cases(setting: Setting) -> Iterator[Case]:
    """Yield SLIM from a store of each selection."""
    for name, selection in kept_sets(setting.sizes):
        yield _case(setting, name, selection)


def _case(setting: Setting, name: str, selection: Selection) -> Case:
    sizes, device, folder = setting
    store = _write_store(setting, folder / f"store{selection.slots(sizes.vocab_size)}", selection)
    model = random_llama(sizes.student, sizes.vocab_size, sizes.seq_len, device, torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=device.type == "cuda")
    slim = LossStep(model, make_loss("slim"), vocab_size=sizes.vocab_size)
    tokens = LossStep(model, make_loss("cross_entropy"), vocab_size=sizes.vocab_size)

    def stream(step: LossStep) -> BatchStream:
        collate = Collate(sizes.seq_len, values="logprob", fields=step.stored_fields)
        return BatchStream(
            store, sizes.sequences, collate=collate, decode="device", prefetch=2 * _THREADS, threads=_THREADS,
            pin_memory=device.type == "cuda",
        )  # fmt: skip

    def train(batches: Iterable[Batch], loss: Loss) -> None:
        for batch in batches:
            optimizer.zero_grad()
            autocast = torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else contextlib.nullcontext()
            with autocast:
                value = loss(batch) / (batch["labels"] >= 0).sum()
            value.backward()
            optimizer.step()

    def plain(batch: Batch) -> torch.Tensor:
        logits = type(model).forward(model, input_ids=batch["tokens"], use_cache=False).logits
        return cross_entropy(logits.float().flatten(0, 1), batch["labels"].flatten(), reduction="sum")

    def turn(label: str, batches: Callable[[], Iterator[Batch]], loss: Loss) -> Contender:
        """Return steps as they are in the midst of a run: some are taken before the clock starts."""
        running: list[Iterator[Batch]] = []

        def prepare() -> None:
            running[:] = [batches()]
            train(itertools.islice(running[0], _WARM_UP), loss)

        return Contender(label, lambda: train(itertools.islice(running[0], sizes.steps), loss), prepare)

    source = stream(slim)
    text = list(stream(tokens))
    on_tokens = turn(_TOKENS, lambda: _tokens_on(text, device), plain)
    return Case(
        f"a student's step, {name}",
        "cross_entropy's step and one read of the kept entries",
        [
            turn("logitstore slim, from a store", lambda: iter(source.on_device(source, device)),
                 lambda batch: slim.summed(batch)[0]),
            turn("logitstore cross_entropy on tokens", lambda: _tokens_on(text, device),
                 lambda batch: tokens.summed(batch)[0]),
            on_tokens,
        ],
        goals=tuple(Goal(limit, _TOKENS) for of, limit in _GOALS.items() if getattr(selection, of) is not None),
        bytes=sizes.steps * sizes.sequences * sizes.seq_len * selection.slots(sizes.vocab_size) * 6,
        least=on_tokens,
        long=True,
    )  # fmt: skip


def _tokens_on(text: list[Batch], device: torch.device) -> Iterator[Batch]:
    """Yield batches of tokens on a device."""
    return (
        {name: batch[name].to(device, non_blocking=True) for name in ("tokens", "labels", "mask")} for batch in text
    )


def _write_store(setting: Setting, path: Path, selection: Selection) -> Path:
    """Write as many documents as a turn has sequences, with what random logits say about them."""
    sizes = setting.sizes
    slots = selection.slots(sizes.vocab_size)
    manifest = Manifest(
        store_id="1" * 32, complete=False, vocab_size=sizes.vocab_size, padded_vocab_size=sizes.vocab_size,
        slots=slots, values="logprob", rows_per_shard=rows_per_shard_for(slots), selection=selection.to_json(),
        teacher={}, tokenizer={}, corpus={}, build={"rows": "all"}, versions={},
    )  # fmt: skip
    generator = np.random.default_rng(5)
    prepare_directory(path)
    with StoreWriter(path, manifest, workers=_THREADS) as writer:
        for number in range(sizes.sequences * (_WARM_UP + sizes.steps)):
            tokens = generator.integers(0, sizes.vocab_size, sizes.seq_len, np.uint32)
            mask = np.ones(sizes.seq_len, np.uint8)
            mask[-1] = 0
            writer.append(TokenDocument(str(number), tokens, mask), _rows(setting, selection, number, tokens, mask))
        writer.finish()
    return path


def _rows(setting: Setting, selection: Selection, number: int, tokens: Any, mask: Any) -> RowBatch:
    sizes, device, _ = setting
    labels = torch.from_numpy(np.append(tokens[1:].astype(np.int64), -1)).to(device)
    parts = []
    for start in range(0, sizes.seq_len, _BLOCK_ROWS):
        block = labels[start : start + _BLOCK_ROWS]
        logits = random_logits(sizes, device, rows=len(block), seed=number * sizes.seq_len + start)
        parts.append(select_rows(logits, selection, block))
    joined = {name: np.concatenate([getattr(part, name).cpu().numpy() for part in parts])
              for name in ("ids", "values", "lse", "label_logprob")}  # fmt: skip
    return RowBatch(tokens=tokens, mask=mask, **(joined | {"ids": joined["ids"].view(np.uint32)}))
