"""Epochs of several ranks and workers in one process, and how batches are compared."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from logitstore.stream import Collate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from logitstore.stream import BatchStream

    Batch = dict[str, Any]

PACKED = Collate(seq_len=12, pack=True)


def fingerprint(batch: Batch, *, without: tuple[str, ...] = ("cursor",)) -> dict[str, Any]:
    """Names, types, shapes and bits: NaN equals NaN, and -0.0 is not 0.0."""
    return {
        name: (tensor.dtype, tuple(tensor.shape), tensor.numpy().tobytes())
        for name, tensor in batch.items()
        if name not in without
    }


def fingerprints(batches: Any) -> list[dict[str, Any]]:
    return [fingerprint(batch) for batch in batches]


def is_blank(batch: Batch) -> bool:
    return bool((batch["document_ids"] < 0).all()) and not batch["mask"].any() and bool((batch["labels"] == -100).all())


def loaded(stream: BatchStream, workers: int) -> Iterator[Batch]:
    """What a DataLoader of so many workers collects, without its processes."""
    if not workers:
        yield from stream
        return
    its = []
    for worker in range(workers):
        with in_worker(worker, workers):
            its.append(iter(stream))
    while its:
        for it in list(its):
            batch = next(it, None)
            if batch is None:
                its.remove(it)
            else:
                yield batch


def in_worker(worker: int, workers: int) -> _InWorker:
    """A context in which this is a DataLoader's worker."""
    return _InWorker(SimpleNamespace(id=worker, num_workers=workers))


class _InWorker:
    def __init__(self, info: Any) -> None:
        self._info = info
        self._patch = pytest.MonkeyPatch()

    def __enter__(self) -> None:
        self._patch.setattr("logitstore.stream.batches.get_worker_info", lambda: self._info)

    def __exit__(self, *_: object) -> None:
        self._patch.undo()


def dealt(make: Callable[..., BatchStream], replicas: int, workers: int = 0) -> list[list[Batch]]:
    """The batches of each rank."""
    return [list(loaded(make(num_replicas=replicas, rank=rank), workers)) for rank in range(replicas)]


def joined(ranks: list[list[Batch]]) -> list[Batch]:
    """The batches of all ranks in the order of the epoch, without blank ones."""
    steps = zip(*ranks, strict=True)
    return [batch for step in steps for batch in step if not is_blank(batch)]
