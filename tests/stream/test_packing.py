"""Packing: everything once, nothing too long, little waste, and the kernel equal to its plain reference."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from logitstore.stream.packing import pack, pack_plainly


@st.composite
def pieces(draw: st.DrawFn) -> tuple[np.ndarray, int]:
    capacity = draw(st.integers(1, 40))
    lengths = draw(st.lists(st.integers(1, capacity), max_size=80))
    return np.array(lengths, np.int64), capacity


@given(pieces())
@settings(deadline=None)
def test_the_kernel_equals_the_reference(case: tuple[np.ndarray, int]) -> None:
    assert pack(*case).tolist() == pack_plainly(*case).tolist()


@given(pieces())
@settings(deadline=None)
def test_what_is_packed_fits(case: tuple[np.ndarray, int]) -> None:
    lengths, capacity = case
    sequences = pack(lengths, capacity)
    assert len(sequences) == len(lengths)
    filled = np.bincount(sequences, weights=lengths)
    assert (filled <= capacity).all()
    assert (filled > 0).all()
    # Numbered in the order of their first pieces.
    _, first = np.unique(sequences, return_index=True)
    assert (np.diff(first) > 0).all()
    # Were two sequences at most half full together, the later one's pieces would have gone into the earlier one.
    assert np.sort(filled)[:2].sum() > capacity or len(filled) < 2


def test_what_fits_best() -> None:
    assert pack(np.array([6, 7, 3, 2, 4]), 10).tolist() == [0, 1, 1, 2, 0]
    assert pack(np.array([10, 10]), 10).tolist() == [0, 1]


def test_it_wastes_less_than_filling_one_after_the_other() -> None:
    generator = np.random.default_rng(0)
    best, next_fit = [], []
    for _ in range(20):
        lengths = np.minimum(256, generator.lognormal(4, 1, 200).astype(np.int64) + 1)
        best.append(pack(lengths, 256).max() + 1)
        room, count = 0, 0
        for length in lengths:
            if length > room:
                room, count = 256, count + 1
            room -= length
        next_fit.append(count)
        assert best[-1] >= -(-lengths.sum() // 256)
    assert np.mean(best) < 0.9 * np.mean(next_fit)
