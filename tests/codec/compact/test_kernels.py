"""What the fast paths rest on, each held equal to its plain form."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from logitstore import layout
from logitstore.codec.compact import IdCodec
from logitstore.codec.compact.arranging import arrange, rank
from logitstore.codec.compact.bank import gap_context_of
from logitstore.codec.compact.class_kernels import pick
from logitstore.codec.compact.classes import ClassScores
from logitstore.codec.compact.codebook import gap_context
from logitstore.codec.compact.vector_coder import IDLE, LANES, PACKED_WORDS, STEPS, code_blocks
from logitstore.codec.compact.writing import addresses_of_rows
from logitstore.codec.intrinsics import address_of
from logitstore.codec.kernels import kernel
from logitstore.errors import InvalidArgumentError
from tests.codec.compact.samples import SLOTS, VOCABULARY, arranged, id_book, rows

if TYPE_CHECKING:
    from numpy.typing import NDArray


@pytest.mark.parametrize("classes", [1, 40, 300])
def test_classes_are_those_of_the_reference(classes: int) -> None:
    """One group of classes, few that are all looked into, and many; rows longer than 16 bits of scores hold."""
    generator = np.random.default_rng(classes)
    topics = generator.normal(0, 12, (5, 200))
    weights = topics[generator.integers(0, 5, classes)].T + generator.normal(0, 6, (200, classes))
    scores = ClassScores(weights.clip(-127, 127).astype(np.int8), generator.integers(-900, 0, classes).astype(np.int32))
    ranks = np.array([generator.permutation(600) for _ in range(30)], np.uint32)
    counts = generator.integers(0, 601, 30)
    counts[0] = 0
    found = scores.choose(ranks, counts)
    assert found.tolist() == scores.choose(ranks, counts, use_reference=True).tolist()
    assert classes == 1 or len(set(found.tolist())) > 1


def test_classes_of_a_codebook_are_those_of_the_reference() -> None:
    ids = rows(11, 60)[0]
    arrangement = IdCodec(id_book(), SLOTS).arrange(ids)
    scores = ClassScores.of(id_book())
    found = scores.choose(arrangement.ranks, arrangement.counts, use_reference=True)
    assert arrangement.classes.tolist() == found.tolist()


@pytest.mark.parametrize("width", [30, 200])
def test_rows_are_ranked_picked_and_arranged_as_plainly(width: int) -> None:
    """Rows with ids of no class, of all lengths; and rows so long that a part of their ids is scored."""
    book = id_book()
    generator = np.random.default_rng(width)
    ids = np.array([generator.permutation(VOCABULARY)[:width] for _ in range(70)], np.uint32)
    counts = generator.integers(0, width + 1, 70)
    ids[np.arange(width) >= counts[:, None]] = layout.UNUSED_ID
    scores = ClassScores.of(book, width)
    assert (scores.numbers[-1] < len(ClassScores.of(book).numbers) - 40) == (width > 100)
    bad, ranks, picked, starts = rank(book, ids, counts, scores)
    assert bad == -1
    assert all(np.array_equal(book.order[r[:n]], row[:n]) for r, n, row in zip(ranks, counts, ids, strict=True))
    expected, expected_starts = pick(ranks, counts, scores.numbers, scores.most)
    assert starts.tolist() == expected_starts.tolist()
    assert picked[: starts[-1]].tolist() == expected[: starts[-1]].tolist()
    classes = scores.choose_of(picked, starts)
    found, plain = (arrange(book, ranks, counts, classes, use_reference=plainly) for plainly in (False, True))
    for number in (0, 1, 3):
        assert np.array_equal(found[number], plain[number])
    words = -(-np.diff(book.first_nibble)[classes] * layout.NIBBLE // 64)
    used = np.arange(found[2].shape[1]) < words[:, None]
    assert np.array_equal(found[2][used], plain[2][used])
    assert (found[1] < counts).any()


@pytest.mark.parametrize("plainly", [False, True])
@pytest.mark.parametrize("places", [(0, 4), (3, 9), (11, 12), (0, 1)])
def test_a_rank_that_comes_twice_is_noticed(places: tuple[int, int], plainly: bool) -> None:
    book = id_book()
    for listed in (True, False):
        ranks = np.arange(14, dtype=np.uint32)[None] + (0 if listed else VOCABULARY - 14)
        ranks[0, places[0]] = ranks[0, places[1]]
        counts, classes = np.array([14]), np.zeros(1, np.int64)
        assert arrange(book, ranks, counts, classes, use_reference=plainly)[0] == 0


def test_a_row_is_in_the_order_of_its_class_as_the_codebook_lists_it() -> None:
    book = id_book()
    ids = rows(12, 60)[0]
    found = IdCodec(book, SLOTS).arrange(ids)
    for row, count, group, hits, order, mask in zip(
        ids, found.counts, found.classes, found.hits, found.ids, found.masks, strict=True
    ):
        there = set(row[:count].tolist())
        first, end = layout.NIBBLE * book.first_nibble[group], layout.NIBBLE * book.first_nibble[group + 1]
        listed = book.listed_ids[first:end].tolist()
        in_list = [token for token in listed if token in there]
        others = sorted(there - set(listed), key=lambda token: book.ranks[token])
        assert order[:count].tolist() == in_list + others
        assert hits == len(in_list)
        bits = [int(mask[place // 64]) >> place % 64 & 1 for place in range(len(listed))]
        last = max((place for place, token in enumerate(listed) if token in there), default=-1)
        assert bits[: last + 1] == [token in there for token in listed[: last + 1]]


def test_values_are_taken_as_numpy_takes_them() -> None:
    ids, values = rows(13, 25)
    found = IdCodec(id_book(), SLOTS).arrange(ids)
    for array in (values, ids, values.view(np.uint16).astype(np.uint8)):
        taken = found.take(array)
        assert taken.dtype == array.dtype
        assert taken.tobytes() == np.take_along_axis(array, found.order, 1).tobytes()
    assert np.array_equal(found[3:9].take(values[3:9]), found.take(values)[3:9])
    with pytest.raises(InvalidArgumentError, match="belongs to rows"):
        found.take(values[:, 1:])


@kernel
def _code(parts, states, targets, places, blocks):  # type: ignore[no-untyped-def]
    ends = addresses_of_rows(parts, 4 * parts.shape[1])
    code_blocks(address_of(ends), address_of(states), address_of(targets), address_of(places), np.uint64(blocks))


@kernel
def _behind_rows(array):  # type: ignore[no-untyped-def]
    return addresses_of_rows(array, array.itemsize * array.shape[1])


def coded(state: int, parts: list[int]) -> tuple[int, list[int]]:
    """State and words after parts that are coded from the last one on."""
    words: list[int] = []
    for part in reversed(parts):
        frequency, start = part & 0xFFFF, part >> 16
        if state >= frequency << 22:
            words.insert(0, state & 0xFFFF)
            state >>= 16
        state = (state // frequency << 10) + state % frequency + start
    return state, words


def check_coding(parts: NDArray[np.uint32], states: NDArray[np.uint32]) -> None:
    expected = [coded(state, row) for state, row in zip(states.tolist(), parts.tolist(), strict=True)]
    room = np.zeros((LANES, parts.shape[1] + 8), np.uint16)
    targets = _behind_rows(room)
    ends = targets.copy()
    _code(np.ascontiguousarray(parts), states, targets, PACKED_WORDS, parts.shape[1] // STEPS)
    for lane, (state, words) in enumerate(expected):
        assert states[lane] == state
        count = int(ends[lane] - targets[lane]) // 2
        assert room[lane, room.shape[1] - count :].tolist() == words


def test_vectors_divide_as_integers_do() -> None:
    """At every multiple near the end of the range, where an error would show first, and anywhere."""
    generator = np.random.default_rng(0)
    for frequency in range(1, (1 << layout.TABLE_LOG2) + 1):
        limit = frequency << 32 - layout.TABLE_LOG2
        ends = limit - frequency * np.arange(1, 5, dtype=np.int64)
        states = np.concatenate([ends, ends + frequency - 1, ends - 1, generator.integers(0, limit, 4)])
        parts = np.full((LANES, STEPS), IDLE, np.uint32)
        parts[:, -1] = frequency | generator.integers(0, 1025 - frequency, LANES) << 16
        check_coding(parts, states.clip(0).astype(np.uint32))


def test_vectors_code_as_the_specification_says() -> None:
    generator = np.random.default_rng(1)
    for blocks in (0, 1, 2, 9):
        shape = (LANES, STEPS * blocks)
        frequencies = np.exp2(generator.uniform(0, 10, shape)).astype(np.int64)
        starts = (generator.random(shape) * (1025 - frequencies)).astype(np.int64)
        states = generator.integers(1 << 16, 1 << 32, LANES)
        check_coding((frequencies | starts << 16).astype(np.uint32), states.astype(np.uint32))


@kernel
def _gap_contexts(left, previous, out):  # type: ignore[no-untyped-def]
    for i in range(len(out)):
        out[i] = gap_context_of(left[i], previous[i])


def test_contexts_of_gaps_are_those_of_the_specification() -> None:
    left, previous = (grid.reshape(-1) for grid in np.meshgrid([*range(1, 20), 127, 128, 255, 256, 9000], [
        *range(20), 4095, 4096, 32767, 32768, 65536, 1 << 25]))  # fmt: skip
    out = np.empty(len(left), np.int64)
    _gap_contexts(left, previous, out)
    assert out.tolist() == [gap_context(*pair) for pair in zip(left.tolist(), previous.tolist(), strict=True)]


def test_decoding_into_part_of_an_array() -> None:
    ids = arranged()[0]
    codec = IdCodec(id_book(), SLOTS)
    wide = np.full((len(ids), SLOTS + 3), VOCABULARY, np.uint32)
    codec.decode_into(memoryview(codec.encode(ids)), len(ids), 0, wide[:, 1 : SLOTS + 1], verify=True)
    assert np.array_equal(wide[:, 1 : SLOTS + 1], ids)
    assert (wide[:, [0, -2, -1]] == VOCABULARY).all()
