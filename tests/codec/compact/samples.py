"""Rows like a teacher's, small enough for every test: topics that make some ids likely, and noise."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from logitstore.codec.compact import IdBook, IdCodec, ValueBook, train_ids, train_values

if TYPE_CHECKING:
    from numpy.typing import NDArray

VOCABULARY = 500
SLOTS = 12
UNUSED = 0xFFFFFFFF


def rows(seed: int, number: int, *, ragged: bool = True) -> tuple[NDArray[np.uint32], NDArray[np.float16]]:
    """Ids, ascending, and their log-probabilities; some rows short, one in twenty empty."""
    generator = np.random.default_rng(seed)
    ids = np.full((number, SLOTS), UNUSED, np.uint32)
    values = np.full((number, SLOTS), -np.inf, np.float16)
    topics = np.random.default_rng(99).permuted(np.tile(np.arange(VOCABULARY), (6, 1)), axis=1)
    for row in range(number):
        count = SLOTS if not ragged or generator.random() < 0.7 else int(generator.integers(0, SLOTS + 1))
        if ragged and generator.random() < 0.05:
            count = 0
        likely = topics[generator.integers(6), :20]
        pool = np.union1d(likely, generator.choice(VOCABULARY, 4, replace=False))
        ids[row, :count] = np.sort(generator.choice(pool, count, replace=False))
        values[row, :count] = -np.abs(generator.normal(4, 2, count))
    return ids, values


@cache
def id_book() -> IdBook:
    return train_ids(rows(1, 600)[0], vocab_size=VOCABULARY, max_classes=6)


@cache
def arranged() -> tuple[NDArray[np.uint32], NDArray[np.float16]]:
    """Forty rows in the order of their classes, as nobody trained on them."""
    ids, values = rows(2, 40)
    order = IdCodec(id_book(), SLOTS).arrange(ids).order
    return np.take_along_axis(ids, order, 1), np.take_along_axis(values, order, 1)


@cache
def value_book(kind: str) -> ValueBook:
    """One of ``lossless``, ``max_kl``, ``max_error`` or ``counts``."""
    ids, values = rows(1, 600)
    values = np.take_along_axis(values, IdCodec(id_book(), SLOTS).arrange(ids).order, 1)
    if kind == "counts":
        return train_values(counts_of(values))
    options = {"lossless": {}, "max_kl": {"max_kl": 1e-4}, "max_error": {"max_error": 0.25}}[kind]
    return train_values(values, **options)


def counts_of(values: NDArray[np.float16]) -> NDArray[np.uint8]:
    """Draws per id that go with log-probabilities."""
    return np.rint(50 * np.exp(values.astype(np.float64))).clip(0, 255).astype(np.uint8)


def values_of(kind: str) -> NDArray[np.generic]:
    values = arranged()[1]
    return counts_of(values) if kind == "counts" else values
