"""What the fast paths rest on, each held equal to its plain form."""

from __future__ import annotations

import numpy as np
import pytest

from logitstore import layout
from logitstore.codec.compact import IdCodec
from logitstore.codec.compact.bank import gap_context_of
from logitstore.codec.compact.classes import ClassScores
from logitstore.codec.compact.codebook import gap_context
from logitstore.codec.compact.writing import RECIPROCALS
from logitstore.codec.kernels import kernel
from logitstore.errors import InvalidArgumentError
from tests.codec.compact.samples import SLOTS, VOCABULARY, arranged, id_book, rows


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


def test_reciprocals_divide() -> None:
    """At every multiple near the end of the range, where an error would show first, and anywhere."""
    generator = np.random.default_rng(0)
    for frequency in range(1, (1 << layout.TABLE_LOG2) + 1):
        limit = frequency << 32 - layout.TABLE_LOG2
        ends = limit - frequency * np.arange(1, 40, dtype=np.int64)
        states = np.concatenate([ends, ends + frequency - 1, ends - 1, generator.integers(0, limit, 40)])
        states = states[states >= 0].astype(np.uint64)
        found = states * RECIPROCALS[frequency] >> np.uint64(32 + layout.TABLE_LOG2)
        assert np.array_equal(found, states // np.uint64(frequency)), frequency


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
