"""The order of documents: a bijection that keys choose, and that never changes unnoticed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logitstore.stream.order import DocumentOrder, block_documents
from logitstore.stream.permutation import Permutation, derive_key

KEYS = st.integers(0, 2**64 - 1)


@given(st.integers(0, 3000), KEYS)
@settings(deadline=None)
def test_a_permutation_is_a_bijection_and_knows_its_inverse(size: int, key: int) -> None:
    numbers = np.arange(size)
    permutation = Permutation(size, key)
    image = permutation(numbers)
    assert sorted(image.tolist()) == numbers.tolist()
    assert (permutation.inverse(image) == numbers).all()


@given(st.integers(1, 2**62), KEYS, st.data())
@settings(deadline=None)
def test_a_permutation_of_any_size_stays_within_it(size: int, key: int, data: st.DataObject) -> None:
    positions = np.array(data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=9)))
    permutation = Permutation(size, key)
    image = permutation(positions)
    assert ((image >= 0) & (image < size)).all()
    assert (permutation.inverse(image) == positions).all()


def test_keys_choose_different_permutations() -> None:
    images = {tuple(Permutation(20, derive_key(0, key))(np.arange(20)).tolist()) for key in range(500)}
    assert len(images) == 500


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_all_permutations_of_a_few_numbers_come_up_about_as_often(size: int) -> None:
    images = [tuple(Permutation(size, derive_key(7, key))(np.arange(size)).tolist()) for key in range(2000)]
    found, counts = np.unique(images, axis=0, return_counts=True)
    possible = int(np.prod(np.arange(1, size + 1)))
    assert len(found) == possible
    expected = 2000 / possible
    freedom = possible - 1
    assert ((counts - expected) ** 2 / expected).sum() < freedom + 5 * np.sqrt(2 * freedom)


def test_neighbours_do_not_stay_neighbours() -> None:
    adjacent = [np.abs(np.diff(Permutation(1000, key)(np.arange(1000)))) == 1 for key in range(50)]
    assert 1.5 < np.mean([pairs.sum() for pairs in adjacent]) < 2.5


def test_the_order_is_this_one_for_ever() -> None:
    order = DocumentOrder(23, window_size=8, block=3, seed=5, epoch=2)
    assert order.name == "feistel-blocks-1"
    assert [order.window(number).tolist() for number in range(order.windows)] == [
        [13, 14, 6, 12, 7, 8, 18, 19],
        [16, 20, 5, 17, 15, 3, 21, 4],
        [2, 1, 22, 9, 10, 0, 11],
    ]
    assert order.sequences(1, 7).tolist() == [5, 0, 6, 2, 1, 4, 3]
    assert derive_key(2**64 - 1, 0, 3) == 0x826F425735251C13
    assert Permutation(1000, 99)(np.array([0, 300, 900])).tolist() == [726, 311, 773]
    assert Permutation(10**12, 99)(np.array([0, 1, 10**12 - 1])).tolist() == [135086460882, 538112232420, 207621614612]


@given(st.integers(0, 400), st.integers(1, 50), st.integers(1, 60), st.integers(0, 9), st.integers(0, 9), st.booleans())
@settings(deadline=None, max_examples=150)
def test_every_document_comes_once(
    documents: int, window: int, block: int, seed: int, epoch: int, shuffle: bool
) -> None:
    order = DocumentOrder(documents, window, block, seed, epoch, shuffle)
    windows = [order.window(number).tolist() for number in range(order.windows)]
    assert sorted([number for found in windows for number in found]) == list(range(documents))
    assert [len(found) for found in windows] == [order.size(number) for number in range(order.windows)]
    if not shuffle:
        assert [number for found in windows for number in found] == list(range(documents))


def test_windows_draw_from_whole_blocks() -> None:
    order = DocumentOrder(100, window_size=20, block=10, seed=0, epoch=0)
    for number in range(5):
        blocks, counts = np.unique(order.window(number) // 10, return_counts=True)
        assert (counts == 10).all()
        assert len(blocks) == 2


@pytest.mark.parametrize("changed", [{"seed": 1}, {"epoch": 1}])
def test_seed_and_epoch_choose_the_order(changed: dict[str, int]) -> None:
    settings = {"seed": 0, "epoch": 0}
    orders = [DocumentOrder(500, 100, 7, **(settings | change)) for change in ({}, changed, {})]
    first, other, again = (np.concatenate([o.window(n) for n in range(o.windows)]).tolist() for o in orders)
    assert first == again != other


@pytest.mark.parametrize(
    ("documents", "rows", "expected"),
    [(0, 0, 1), (1, 9, 1), (100, 10**9, 1), (10_000, 10**6, 39), (10**6, 10**9, 262), (10**7, 10**7, 39062)],
)
def test_blocks_are_about_a_shard(documents: int, rows: int, expected: int) -> None:
    assert block_documents(documents, rows, 1 << 18) == expected
