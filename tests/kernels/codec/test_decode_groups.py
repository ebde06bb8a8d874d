"""Rows of the compact codec, decoded by kernels in Triton's interpreter and on the CPU, equal the reference's."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st

from logitstore.codec import CutRows, RowFormat, fast_encode, group_rows
from logitstore.codec.compact import IdCodec, ValueCodec, reference, train_ids, train_values
from logitstore.codec.compact.chunk import build_chunk
from logitstore.codec.compact.codebook import gap_context
from logitstore.codec.compact.symbols import SymbolCode
from logitstore.device import Decoded, decode_coded, group_kernels
from logitstore.device.coded_rows import ends_of_books, launch_groups, moved_groups, tables_on, without_entries
from logitstore.errors import CorruptDataError, LogitStoreError
from tests.codec.compact.samples import SLOTS, VOCABULARY
from tests.kernels.codec.coded_batches import (
    FORMATS,
    KINDS,
    Batch,
    array_of,
    chunk_of,
    codecs,
    has_both,
    random_batch,
    with_tables,
)

if TYPE_CHECKING:
    from logitstore.codec import GroupRows
    from tests.kernels.codec.coded_batches import Words

pytestmark = pytest.mark.usefixtures("quick_interpreter")
each_kind = pytest.mark.parametrize("kind", KINDS)
everywhere = pytest.mark.parametrize("kernels", [False, True])


def elements(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().numpy().tobytes()


def decode(batch: Batch, *, kernels: bool, flat: bool = False) -> Decoded:
    offsets = batch.coded.offsets if flat else None
    return decode_coded(batch.coded, FORMATS[batch.kind], "cpu", codecs=batch.codecs, offsets=offsets, kernels=kernels)


@triton.jit
def contexts_of_gaps(left, rank, out, LANES: tl.constexpr):  # type: ignore[no-untyped-def]
    lanes = tl.arange(0, LANES)
    tl.store(out + lanes, group_kernels._gap_context(tl.load(left + lanes), tl.load(rank + lanes)))


def test_contexts_of_gaps() -> None:
    """Of all sizes there are: rows so long would take the interpreter too long."""
    lefts = [1, 2, 3, 4, 7, 8, 15, 16, 31, 32, 63, 64, 127, 128, 255, 600]
    ranks = [(1 << bits) + more for bits in range(21) for more in (-1, 0, 1)] + [1 << 26]
    pairs = torch.cartesian_prod(torch.tensor(lefts), torch.tensor(ranks)).int()
    out = torch.empty(len(pairs), dtype=torch.int32)
    contexts_of_gaps[(1,)](*pairs.T.contiguous(), out, LANES=len(pairs))
    assert out.tolist() == [gap_context(left, rank) for left, rank in pairs.tolist()]


@each_kind
@given(seed=st.integers(0, 1 << 20), parts=st.integers(1, 12), flat=st.booleans())
@settings(deadline=None, max_examples=25)
def test_batches_on_the_cpu(kind: str, seed: int, parts: int, flat: bool) -> None:
    batch = random_batch(kind, seed, parts, most_log2=3)
    assert elements(decode(batch, kernels=False, flat=flat).check()) == (
        batch.flat if flat else batch.expected.tobytes()
    )


@pytest.mark.parametrize(("kind", "flat"), [("ids", True), ("values", False), ("counts", True)])
def test_batches_by_kernels(kind: str, flat: bool) -> None:
    batch = random_batch(kind, seed=3, parts=40)
    assert has_both(batch)
    assert len(batch.codecs) == 2
    assert elements(decode(batch, kernels=True, flat=flat).check()) == (
        batch.flat if flat else batch.expected.tobytes()
    )


@pytest.mark.plain_interpreter
def test_long_rows_take_several_programs_and_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Columns of many contexts, gaps far apart, a class of many nibbles; and numbers that are no powers of two."""
    monkeypatch.setattr("logitstore.device.coded_rows._LANES", 2)
    monkeypatch.setattr("logitstore.device.coded_rows._TURNS", 8)
    generator = np.random.default_rng(0)
    ids = np.sort(generator.permuted(np.tile(np.arange(1 << 15, dtype=np.uint32), (3, 1)), axis=1)[:, :13], axis=1)
    values = generator.normal(-5, 3, ids.shape).astype(np.float16)
    id_codec = IdCodec(with_tables(train_ids(ids[:1], vocab_size=1 << 15), "gap_code", "nibble_code"), 13)
    value_codec = ValueCodec(with_tables(train_values(values, max_error=0.01), "delta_code"), 13)
    for codec, array, form in (
        (id_codec, ids, RowFormat(1, 3, 13, 1 << 15)),
        (value_codec, values, RowFormat(2, 2, 13, 0)),
    ):
        chunk = memoryview(chunk_of(codec, array, 0))
        target = CutRows(3)
        target.take(codec.cut(chunk, 3, 0, 3, verify=True))
        found = decode_coded(target.joined(), form, "cpu", codecs=[codec], kernels=True).check()
        assert elements(found) == codec.decode(chunk, 3, use_reference=True).tobytes()


def damaged(words: Words, generator: np.random.Generator) -> Words:
    """Groups with a bit or a word changed, a word too few, or one too many."""
    number = int(generator.integers(len(words)))
    group = words[number].copy()
    place = int(generator.integers(len(group)))
    match int(generator.integers(5)):
        case 0 | 1:
            group[place] ^= np.uint16(1 << generator.integers(16))
        case 2:
            group[place] = generator.integers(1 << 16)
        case 3:
            group = np.delete(group, place) if len(group) > 2 else group
        case _:
            group = np.insert(group, place, np.uint16(generator.integers(1 << 16)))
    return [*words[:number], group, *words[number + 1 :]]


def outcome(codec: Any, chunk: bytes, rows: int) -> bytes | None:
    try:
        return bytes(codec.decode(chunk, rows, use_reference=True).tobytes())
    except LogitStoreError:
        return None


@pytest.fixture
def touchable(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Tensors outside of which no kernel loads or stores, whether it would notice or not."""
    from triton.runtime.interpreter import InterpreterBuilder

    tensors: list[torch.Tensor] = []

    def look(pointers: Any, mask: Any) -> None:
        starts = pointers.data[mask.data]
        ends = starts + np.uint64(pointers.get_element_ty().primitive_bitwidth // 8)
        inside = np.zeros(len(starts), np.bool_)
        for tensor in tensors:
            inside |= (starts >= tensor.data_ptr()) & (ends <= tensor.data_ptr() + tensor.nbytes)
        assert inside.all()

    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store

    def checked_load(self: Any, pointers: Any, mask: Any, *given: Any) -> Any:
        look(pointers, mask)
        return load(self, pointers, mask, *given)

    def checked_store(self: Any, pointers: Any, value: Any, mask: Any, *given: Any) -> Any:
        look(pointers, mask)
        return store(self, pointers, value, mask, *given)

    monkeypatch.setattr(InterpreterBuilder, "create_masked_load", checked_load)
    monkeypatch.setattr(InterpreterBuilder, "create_masked_store", checked_store)
    return tensors


@each_kind
def test_crafted_words_mean_the_same_everywhere(kind: str, touchable: list[torch.Tensor]) -> None:
    """Of all chunks at once; so words that are read from behind a group's end are those of another."""
    generator, (codec, _), number = np.random.default_rng(1), codecs(kind), 100
    target, expected = CutRows(3 * number), []
    for first in range(0, 3 * number, 3):
        array = array_of(kind, first, 3)
        change = partial(damaged, generator=generator)
        if kind == "values" and not first:
            # Raw bits that begin before all words.
            array, change = np.full_like(array, np.nan), lambda words: [words[0][:2], *words[1:]]
        chunk = chunk_of(codec, array, int(generator.integers(2)), change)
        expected.append(outcome(codec, chunk, 3))
        target[first : first + 3].take(codec.cut(memoryview(chunk), 3, 0, 3, verify=True))
    assert 10 < sum(rows is None for rows in expected) < number - 5
    coded, form, cpu = target.joined(), FORMATS[kind], torch.device("cpu")
    assert coded.groups is not None
    by_kernels = without_entries(3 * number, form, cpu)
    groups, tables = moved_groups(coded.groups, cpu), tables_on(codec, cpu)
    touchable += [*by_kernels, *groups, *(tensor for tensor in tables if isinstance(tensor, torch.Tensor))]
    launch_groups(groups, [tables], ends_of_books(coded.groups), by_kernels, form)
    on_the_cpu = decode_coded(coded, form, "cpu", codecs=[codec], kernels=False)
    for found in (by_kernels, on_the_cpu):
        for part, rows in enumerate(expected):
            here = slice(3 * part, 3 * part + 3)
            assert bool(found.status[here].any()) == (rows is None)
            assert rows is None or elements(found.entries[here]) == rows


def test_rows_that_break_a_rule_though_their_groups_end_as_they_should() -> None:
    """One rule each, which the end of a group does not tell as well."""
    (codec, _), [value_codec, _] = codecs("ids"), codecs("values")
    # Two symbols of 31 raw bits, for any number of 32.
    any_number = SymbolCode(np.full(2, 31, np.uint32), np.zeros(1, np.uint32), np.array([[512, 512]], np.uint32))
    any_gap = dataclasses.replace(any_number, contexts=np.zeros(48, np.uint32))
    book = dataclasses.replace(codec.decoder.book, class_code=any_number, miss_code=any_number, gap_code=any_gap)
    nibbles = int(book.first_nibble[1])
    empty = [(book.nibble_code, context, 0) for context, n in enumerate(book.nibbles[0].tolist()) for _ in range(n)]
    two = [(code, context, 3 if place == 0 else 0) for place, (code, context, _) in enumerate(empty[:1])]
    of_class, misses, gap = (any_number, 0, 0), (any_number, 0, 0), any_gap
    rows: list[tuple[int, Any, bool]] = [
        (0, [of_class, misses], True),
        (2, [of_class, misses, *two], True),
        (1, [of_class, (any_number, 0, 1), (gap, 0, VOCABULARY - 1)], True),
        (0, [(any_number, 0, book.classes), misses], False),
        (0, [(any_number, 0, 1 << 31), misses], False),
        (0, [of_class, (any_number, 0, (1 << 32) - 1)], False),
        (0, [of_class, (any_number, 0, 1)], False),
        (1, [of_class, misses, *two], False),
        (1, [of_class, misses, *empty], False),
        (1, [of_class, (any_number, 0, 1), (gap, 0, VOCABULARY)], False),
        (1, [of_class, (any_number, 0, 1), (gap, 0, (1 << 32) - 1)], False),
        (2, [of_class, (any_number, 0, 2), (gap, 0, 5), (gap, 0, (1 << 31) - 1)], False),
    ]
    assert nibbles > 1
    check_rows_of(IdCodec(book, SLOTS), "ids", rows)
    levels = len(value_codec.decoder.book.levels)
    distances = dataclasses.replace(any_gap, contexts=np.zeros_like(value_codec.decoder.book.delta_code.contexts))
    value_book = dataclasses.replace(value_codec.decoder.book, base_code=any_number, delta_code=distances)
    values: list[tuple[int, Any, bool]] = [
        (2, [(any_number, 0, 1), (distances, 0, levels - 1), (distances, 0, 0)], True),
        (1, [(any_number, 0, levels), (distances, 0, 0)], True),
        (1, [(any_number, 0, levels + 1), (distances, 0, 0)], False),
        (1, [(any_number, 0, (1 << 32) - 1), (distances, 0, 0)], False),
        (2, [(any_number, 0, 2), (distances, 0, 0), (distances, 0, levels - 1)], False),
        (2, [(any_number, 0, 2), (distances, 0, (1 << 31) - 1), (distances, 0, 0)], False),
        (2, [(any_number, 0, 2), (distances, 0, (1 << 32) - 1), (distances, 0, 0)], False),
    ]
    check_rows_of(ValueCodec(value_book, SLOTS), "values", values)


def check_rows_of(codec: Any, kind: str, rows: list[tuple[int, Any, bool]]) -> None:
    """Decode rows of so many entries, each in a chunk of its own, out of numbers in codes and contexts."""
    target = CutRows(len(rows))
    for row, (count, numbers, sound) in enumerate(rows):
        coded = [reference.encode_number(*number) for number in numbers]
        words = reference.encode_group([part for part, _ in coded], [raw for _, raw in coded])  # type: ignore[misc]
        columns = fast_encode.pack_column(np.array([count])), fast_encode.pack_column(np.array([len(words)]))
        chunk = build_chunk(codec.decoder.book, (1, SLOTS), 0, *columns, np.array(words, np.uint16), count)
        assert (outcome(codec, chunk, 1) is not None) == sound
        target[row : row + 1].take(codec.cut(memoryview(chunk), 1, 0, 1, verify=True))
    for kernels in (False, True):
        found = decode_coded(target.joined(), FORMATS[kind], "cpu", codecs=[codec], kernels=kernels)
        assert (found.status == 0).tolist() == [sound for _, _, sound in rows]


@everywhere
@pytest.mark.parametrize(
    ("column", "value"),
    [
        (group_rows.WORD, 1 << 30), (group_rows.WORDS, 1 << 20), (group_rows.WORDS, 1), (group_rows.ROW, 1 << 20),
        (group_rows.ROWS, 1 << 20), (group_rows.ROWS, 0), (group_rows.TARGET, 400), (group_rows.TARGET, -400),
        (group_rows.ANSWERS, 400), (group_rows.BOOK, 2),
    ],
)  # fmt: skip
def test_a_table_that_points_outside_is_refused(kernels: bool, column: int, value: int) -> None:
    batch = random_batch("ids", 3, 12)
    batch.coded.groups.table[column, -1] = value  # type: ignore[union-attr]
    last = batch.coded.groups.table.shape[1] - 1  # type: ignore[union-attr]
    with pytest.raises(CorruptDataError, match=f"group {last} of"):
        decode(batch, kernels=kernels)


@everywhere
def test_more_entries_than_room_are_refused(kernels: bool) -> None:
    batch = random_batch("ids", 3, 12)
    groups = batch.coded.groups
    assert groups is not None
    row = int((groups.counts > 0).argmax())
    offsets = batch.coded.offsets
    offsets[1 + int(groups.targets()[row]) :] -= 1
    form: Any = FORMATS["ids"]
    with pytest.raises(CorruptDataError, match="outside its words or its rows"):
        decode_coded(batch.coded, form, "cpu", codecs=batch.codecs, offsets=offsets, kernels=kernels)
    for count in (SLOTS + 1, ~(SLOTS + 1)):
        groups.counts[row] = count
        with pytest.raises(CorruptDataError, match="outside its words or its rows"):
            decode(batch, kernels=kernels)


@everywhere
def test_the_broken_row_is_named_or_the_one_that_answers_for_its_group(kernels: bool) -> None:
    """A group that does not end where it should: its second row is broken, which is wanted or not."""
    codec = codecs("ids")[0]
    chunk = memoryview(chunk_of(codec, array_of("ids", 9, 2), 1))
    target = CutRows(12)
    for first, start, stop in ((3, 0, 2), (6, 0, 1), (9, 1, 2)):
        target[first : first + stop - start].take(codec.cut(chunk, 2, start, stop, verify=True))
    coded = target.joined()
    coded.groups.table[group_rows.WORDS] -= 1  # type: ignore[union-attr]
    found = decode_coded(coded, FORMATS["ids"], "cpu", codecs=[codec], kernels=kernels)
    assert torch.nonzero(found.status).flatten().tolist() == [4, 6, 9]
    with pytest.raises(CorruptDataError, match="does not end where its words do") as caught:
        found.check()
    assert caught.value.row == 4


def test_what_goes_along_is_the_groups_of_wanted_rows() -> None:
    codec = codecs("ids")[0]
    chunk = memoryview(chunk_of(codec, array_of("ids", 5, 8), 1))
    part: GroupRows = codec.cut(chunk, 8, 3, 5, verify=True)
    assert part.table[group_rows.TARGET].tolist() == [-1, 1]
    assert part.table[group_rows.ANSWERS].tolist() == [0, 1]
    assert (part.counts >= 0).tolist() == [False, True, True, False]
    assert part.targets().tolist() == [-1, 0, 1, -1]
    assert len(part.words) == part.table[group_rows.WORDS].sum() < len(chunk) // 2
    assert codec.cut(chunk, 8, 5, 5, verify=True).table.shape == (7, 0)
    target = CutRows(2)
    target.take(part)
    # Of the two groups, only one has a row that nothing was read over.
    target.blank(0, 1)
    groups = target.joined().groups
    assert groups is not None
    assert groups.targets().tolist() == [-1, -1, 1, -1]
    assert groups.table.shape == (7, 1)
    target.blank(1, 2)
    assert target.joined().groups is None
