"""Quantised rows whose probability adds up, against a plain search for the entry that is moved."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from logitstore.codec.compact import ValueCodec, generalised_kl, parse, train_values
from logitstore.codec.compact.balance import LOOKED_AT
from logitstore.codec.compact.loss import LossMeasure
from logitstore.codec.compact.quantise import Quantiser
from logitstore.codec.transform import bits_from_keys

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_KL = 1e-3
SLOTS = 40


def teacher_rows(number: int, seed: int = 0) -> NDArray[np.float16]:
    """Log-probabilities of nearly everything there is, of rows of all lengths."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, 3, (number, SLOTS))
    values = logits - np.log(np.exp(logits).sum(1, keepdims=True)) + np.log(0.98)
    counts = generator.integers(0, SLOTS + 1, number)
    return np.where(np.arange(SLOTS) < counts[:, None], values, -np.inf).astype(np.float16)


@pytest.fixture(scope="module")
def book() -> Any:
    return train_values(teacher_rows(400, 1), max_kl=MAX_KL)


def stored(book: Any, values: NDArray[np.float16]) -> NDArray[np.float16]:
    codec = ValueCodec(book, SLOTS)
    return codec.decode(codec.encode(values), len(values))


def nearest(levels: NDArray[np.float64], value: float) -> int:
    kl = math.exp(value) * (value - levels + np.expm1(levels - value))
    return int(np.where(np.abs(value - levels) <= 1, kl, np.inf).argmin())


def least_error(levels: NDArray[np.float64], row: NDArray[np.float64]) -> float:
    """Move each entry by one level in turn, where bounds allow it; return the least error of the sum there is."""
    found = [nearest(levels, value) for value in row]
    off = float(np.exp(levels[found]).sum() - np.exp(row).sum())
    best = abs(off)
    for column in range(min(len(row), LOOKED_AT)):
        moved = [*found[:column], found[column] + (-1 if off > 0 else 1), *found[column + 1 :]]
        if 0 <= moved[column] < len(levels):
            after = levels[moved]
            error = abs(float(np.exp(after).sum() - np.exp(row).sum()))
            fits = generalised_kl(row[None], after[None])[0] <= MAX_KL and np.abs(after - row).max() <= 1
            if fits and error < 0.9 * abs(off):
                best = min(best, error)
    return best


def test_the_entry_that_is_moved_is_that_of_a_plain_search(book: Any) -> None:
    values = teacher_rows(150)
    counts = np.isfinite(values).sum(1)
    levels = bits_from_keys(book.levels, book.dtype, 0).view(np.float16).astype(np.float64)
    _, _, kept = Quantiser.of(book)(values.view(np.uint16), counts)
    moved = 0
    for row, result, count, keeps in zip(values, stored(book, values), counts, kept, strict=True):
        if not keeps:
            before, after = row[:count].astype(np.float64), result[:count].astype(np.float64)
            error = abs(np.exp(after).sum() - np.exp(before).sum())
            assert error == pytest.approx(least_error(levels, before), rel=1e-6, abs=1e-12)
            others = [levels[nearest(levels, value)] for value in before]
            assert (after != others).sum() <= 1
            moved += int((after != others).any())
    assert moved > 80


def test_probabilities_add_up_better_and_bounds_hold(book: Any) -> None:
    values = teacher_rows(300)
    counts = np.isfinite(values).sum(1)
    after = stored(book, values)
    without = Quantiser.of(book)
    without.__dict__["_balancer"] = None
    levels, _, kept = without(values.view(np.uint16), counts)
    nearby = bits_from_keys(book.levels[levels], book.dtype, 0).view(np.float16)
    before = np.where(kept[:, None], values, np.where(np.arange(SLOTS) < counts[:, None], nearby, -np.inf))

    def off(rows: NDArray[Any]) -> NDArray[np.float64]:
        return np.abs(np.exp(rows.astype(np.float64)).sum(1) - np.exp(values.astype(np.float64)).sum(1))

    assert (off(after) <= off(before) + 1e-12).all()
    assert off(after).mean() < 0.5 * off(before).mean()
    assert generalised_kl(values, after).max() <= MAX_KL
    np.testing.assert_allclose(LossMeasure(book)(values, counts).kl, generalised_kl(values, after), atol=1e-12)


def test_what_was_stored_is_stored_again_to_the_same_bytes(book: Any) -> None:
    codec = ValueCodec(parse(book.blob), SLOTS)
    chunk = codec.encode(teacher_rows(300))
    assert codec.encode(codec.decode(chunk, 300)) == chunk
