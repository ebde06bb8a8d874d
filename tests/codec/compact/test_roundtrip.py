"""What goes in comes out, and the fast coder is the reference's equal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from logitstore.codec.compact import IdCodec, ValueCodec, generalised_kl, parse, train_ids, train_values
from logitstore.errors import InvalidArgumentError
from tests.codec.compact.samples import SLOTS, UNUSED, VOCABULARY, arranged, id_book, rows, value_book, values_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

KINDS = ["lossless", "max_kl", "max_error", "counts"]


@st.composite
def sets_of_ids(draw: Any) -> NDArray[np.uint32]:
    found = draw(st.lists(st.lists(st.integers(0, VOCABULARY - 1), max_size=SLOTS, unique=True), max_size=12))
    return np.array([row + [UNUSED] * (SLOTS - len(row)) for row in found], np.uint32).reshape(-1, SLOTS)


@given(sets_of_ids())
@settings(deadline=None, max_examples=60)
def test_any_sets_of_ids_come_back(ids: NDArray[np.uint32]) -> None:
    codec = IdCodec(id_book(), SLOTS)
    chunk = codec.encode(codec.arrange(ids))
    assert chunk == codec.encode(codec.arrange(ids), use_reference=True)
    decoded = codec.decode(chunk, len(ids))
    assert np.array_equal(np.sort(decoded, axis=1), np.sort(ids, axis=1))
    assert np.array_equal(decoded, codec.decode(chunk, len(ids), use_reference=True))


@given(npst.arrays(np.uint16, npst.array_shapes(min_dims=2, max_dims=2, max_side=9)))
@settings(deadline=None, max_examples=60)
def test_any_bits_of_float16_come_back_bit_for_bit(bits: NDArray[np.uint16]) -> None:
    values = np.pad(bits, ((0, 0), (0, SLOTS - bits.shape[1])), constant_values=0xFC00).view(np.float16)
    codec = ValueCodec(value_book("lossless"), SLOTS)
    chunk = codec.encode(values)
    assert chunk == codec.encode(values, use_reference=True)
    assert np.array_equal(codec.decode(chunk, len(values)).view(np.uint16), values.view(np.uint16))
    assert np.array_equal(codec.decode(chunk, len(values), use_reference=True).view(np.uint16), values.view(np.uint16))


@given(npst.arrays(np.uint8, (5, SLOTS)))
@settings(deadline=None, max_examples=20)
def test_any_counts_come_back(counts: NDArray[np.uint8]) -> None:
    codec = ValueCodec(value_book("counts"), SLOTS)
    chunk = codec.encode(counts)
    assert chunk == codec.encode(counts, use_reference=True)
    assert np.array_equal(codec.decode(chunk, 5), counts)


@pytest.mark.parametrize("kind", ["max_kl", "max_error"])
@given(npst.arrays(np.float16, (4, SLOTS)))
@settings(deadline=None, max_examples=40)
def test_bounds_hold_for_any_values(kind: str, values: NDArray[np.float16]) -> None:
    codec = ValueCodec(value_book(kind), SLOTS)
    chunk = codec.encode(values)
    assert chunk == codec.encode(values, use_reference=True)
    decoded = codec.decode(chunk, 4)
    assert np.array_equal(decoded, codec.decode(chunk, 4, use_reference=True), equal_nan=True)
    same = decoded.view(np.uint16) == values.view(np.uint16)
    assert same[~np.isfinite(values)].all()
    with np.errstate(invalid="ignore", over="ignore"):
        error = np.where(same, 0, np.abs(decoded.astype(np.float64) - values.astype(np.float64)))
        assert error.max() <= (0.25 if kind == "max_error" else 1.0)
        if kind == "max_kl":
            p = np.where(same, 0, np.exp(values.astype(np.float64)))
            d = np.where(same, 0, values.astype(np.float64) - decoded.astype(np.float64))
            assert (p * (d + np.expm1(-d))).sum(axis=1).max() <= 1e-4


def test_quantised_rows_are_smaller_and_what_was_promised() -> None:
    values = arranged()[1]
    sizes = {}
    for kind in ("lossless", "max_kl", "max_error"):
        codec = ValueCodec(value_book(kind), SLOTS)
        sizes[kind] = len(codec.encode(values))
        decoded = codec.decode(codec.encode(values), len(values))
        assert np.array_equal(np.isfinite(decoded), np.isfinite(values))
        if kind == "max_kl":
            assert 0 < generalised_kl(values, decoded).max() <= 1e-4
        again = codec.encode(decoded)
        assert codec.decode(again, len(values)).tobytes() == decoded.tobytes()
    assert sizes["max_error"] < sizes["max_kl"] < sizes["lossless"]


@pytest.mark.parametrize("kind", ["ids", *KINDS])
@pytest.mark.parametrize("use_reference", [False, True])
def test_every_range_of_rows_is_found_alone(kind: str, use_reference: bool) -> None:
    codec: Any = IdCodec(id_book(), SLOTS) if kind == "ids" else ValueCodec(value_book(kind), SLOTS)
    array = np.tile(arranged()[0] if kind == "ids" else values_of(kind), (20, 1))
    chunk = memoryview(codec.encode(array))
    whole = codec.decode(chunk, len(array))
    for start, stop in ((0, 800), (0, 1), (799, 800), (63, 64), (64, 65), (100, 477), (300, 300), (5, 795)):
        out = np.empty((stop - start, SLOTS), array.dtype)
        codec.decode_into(chunk, len(array), start, out, verify=True, use_reference=use_reference)
        assert out.tobytes() == whole[start:stop].tobytes()


def test_the_order_of_a_row_does_not_matter() -> None:
    ids = rows(3, 30)[0]
    codec = IdCodec(id_book(), SLOTS)
    first = codec.arrange(ids)
    shuffled = np.array([np.append(np.random.default_rng(0).permutation(row[row != UNUSED]), row[row == UNUSED])
                         for row in ids], np.uint32)  # fmt: skip
    second = codec.arrange(shuffled)
    assert np.array_equal(first.ids, second.ids)
    assert np.array_equal(np.take_along_axis(shuffled, second.order, 1), second.ids)
    assert codec.encode(second) == codec.encode(first) == codec.encode(first.ids)


@pytest.mark.parametrize("slots", [1, 70])
def test_other_widths_and_chunks_without_rows_or_entries(slots: int) -> None:
    ids = np.full((3, slots), UNUSED, np.uint32)
    ids[1, 0] = 7
    codec = IdCodec(train_ids(ids, vocab_size=70), slots)
    full = np.vstack([ids, np.arange(70, dtype=np.uint32)[None, :slots]])
    for some in (full, ids[:0], ids[:1]):
        decoded = codec.decode(codec.encode(codec.arrange(some)), len(some))
        assert np.array_equal(np.sort(decoded, axis=1), np.sort(some, axis=1))
    values = np.where(full == UNUSED, -np.inf, -1.5).astype(np.float16)
    coder = ValueCodec(train_values(values[:1]), slots)
    for some_values in (values, values[:0], values[:1]):
        assert np.array_equal(coder.decode(coder.encode(some_values), len(some_values)), some_values)


def test_training_is_deterministic_and_a_file_is_its_book() -> None:
    ids = rows(1, 600)[0]
    again = train_ids(ids, vocab_size=VOCABULARY, max_classes=6)
    assert again.blob == id_book().blob
    assert again.digest == parse(again.blob).digest
    assert train_ids(ids, vocab_size=VOCABULARY, max_classes=6, seed=1).blob != again.blob
    parts: list[float] = []
    train_ids(ids, vocab_size=VOCABULARY, progress=parts.append)
    assert parts == sorted(parts)
    assert parts[-1] == 1.0
    for book in (id_book(), *map(value_book, KINDS)):
        parsed = parse(book.blob)
        assert parsed.blob == book.blob
        codec: Any = IdCodec if book.kind == 1 else ValueCodec
        array = arranged()[0] if book.kind == 1 else values_of("counts" if book.dtype == 1 else "lossless")
        assert codec(parsed, SLOTS).encode(array) == codec(book, SLOTS).encode(array)


def test_a_codebook_pays_for_itself() -> None:
    """Bits per id: far below those of ids that are set-coded without one."""
    from logitstore.codec import encode

    ids = rows(5, 3000, ragged=False)[0]
    codec = IdCodec(id_book(), SLOTS)
    assert len(codec.encode(codec.arrange(ids))) + len(id_book().blob) < 0.7 * len(
        encode(ids, "ids", vocab_size=VOCABULARY)
    )


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([[3, 3]], "twice"),
        ([[3, VOCABULARY]], "below 500"),
        ([[UNUSED, 3]], "unused slots last"),
    ],
)
def test_bad_rows_are_refused(ids: list[list[int]], message: str) -> None:
    padded = np.array([row + [UNUSED] * (SLOTS - 2) for row in ids], np.uint32)
    with pytest.raises(InvalidArgumentError, match=message):
        IdCodec(id_book(), SLOTS).arrange(padded)


def test_other_orders_are_refused_when_encoding() -> None:
    codec = IdCodec(id_book(), SLOTS)
    ids = arranged()[0].copy()
    row = int((ids[:, 1] != UNUSED).argmax())
    ids[row, :2] = ids[row, 1::-1]
    with pytest.raises(InvalidArgumentError, match=f"row {row} of the chunk is not"):
        codec.encode(ids)


@pytest.mark.parametrize(
    "call",
    [
        lambda: train_ids(np.empty((0, 3), np.uint32), vocab_size=9),
        lambda: train_ids(np.array([[9]], np.uint32), vocab_size=9),
        lambda: train_values(np.ones((2, 3), np.float32)),
        lambda: train_values(np.ones((2, 3), np.float16), max_kl=0.0),
        lambda: train_values(np.ones((2, 3), np.uint8), max_error=0.5),
        lambda: IdCodec(id_book(), SLOTS).arrange(np.zeros((1, SLOTS), np.int64)),  # type: ignore[arg-type]
        lambda: ValueCodec(value_book("lossless"), SLOTS).encode(np.zeros((1, SLOTS), np.uint8)),
    ],
)
def test_bad_arguments_are_refused(call: Any) -> None:
    with pytest.raises(InvalidArgumentError):
        call()


def test_codebooks_of_nothing_code_everything() -> None:
    """A store may begin with rows that were not asked of the teacher."""
    nothing = np.full((3, SLOTS), UNUSED, np.uint32)
    codec = IdCodec(train_ids(nothing, vocab_size=VOCABULARY), SLOTS)
    ids = rows(4, 20)[0]
    decoded = codec.decode(codec.encode(codec.arrange(ids)), 20)
    assert np.array_equal(np.sort(decoded, axis=1), np.sort(ids, axis=1))
    values = arranged()[1]
    for options in ({}, {"max_error": 0.25}, {"max_kl": 1e-3}):
        coder = ValueCodec(train_values(np.full((3, SLOTS), -np.inf, np.float16), **options), SLOTS)
        stored = coder.decode(coder.encode(values), len(values))
        assert np.array_equal(np.isfinite(stored), np.isfinite(values))
        assert generalised_kl(values, stored).max() <= options.get("max_kl", np.inf)
