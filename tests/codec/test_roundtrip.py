"""Whatever goes in comes out bit for bit, and both implementations write the same bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from logitstore.codec import Kind, decode, decode_slice, encode
from logitstore.codec.header import read_header

if TYPE_CHECKING:
    from numpy.typing import NDArray

UNUSED_ID = 0xFFFFFFFF
VOCABULARIES = [1, 2, 100, 2048, 50_257, 131_072, 151_936, (1 << 31) - 1, 1 << 31]


@st.composite
def id_rows(draw: st.DrawFn) -> tuple[NDArray[np.uint32], int]:
    """Ids and the size of their vocabulary; rows of any length from empty to full."""
    vocab_size = draw(st.sampled_from(VOCABULARIES) | st.integers(1, 1 << 31))
    slots = draw(st.integers(1, min(vocab_size, 40)))
    ids = st.lists(st.integers(0, vocab_size - 1), unique=True, max_size=slots)
    full = st.just(list(range(vocab_size - slots, vocab_size)))
    rows = draw(st.lists(ids | full, max_size=5))
    array = np.full((len(rows), slots), UNUSED_ID, np.uint32)
    for row, kept in enumerate(rows):
        array[row, : len(kept)] = sorted(kept)
    return array, vocab_size


@st.composite
def value_rows(draw: st.DrawFn) -> NDArray[Any]:
    """Any bits whatever, with any run of unused slots at the end of each row."""
    bits_type, unused, dtype = draw(st.sampled_from([(np.uint16, 0xFC00, "f2"), (np.uint8, 0, "u1")]))
    shape = draw(st.tuples(st.integers(0, 4), st.integers(1, 70)))
    bits = draw(hnp.arrays(bits_type, shape))
    for row in bits:
        row[draw(st.integers(0, shape[1])) :] = unused
    return bits.view(dtype)


@st.composite
def flat_arrays(draw: st.DrawFn) -> NDArray[Any]:
    """Any bits whatever, around the group size of 256; constant ones too."""
    bits_type, dtype = draw(st.sampled_from([(np.uint8, "u1"), (np.uint32, "u4"), (np.uint32, "f4")]))
    size = draw(st.sampled_from([0, 1, 255, 256, 257, 513]) | st.integers(0, 600))
    return draw(hnp.arrays(bits_type, size, fill=st.integers(0, np.iinfo(bits_type).max))).view(dtype)


def bits_of(array: NDArray[Any]) -> NDArray[Any]:
    return array.view(f"u{array.dtype.itemsize}")


def check(array: NDArray[Any], kind: Kind, start: int, stop: int, vocab_size: int = 0) -> bytes:
    chunk = encode(array, kind, vocab_size=vocab_size)
    assert encode(array, kind, vocab_size=vocab_size, use_reference=True) == chunk
    for use_reference in (False, True):
        options: dict[str, Any] = {
            "shape": array.shape, "dtype": array.dtype, "vocab_size": vocab_size, "use_reference": use_reference,
        }  # fmt: skip
        decoded = decode(chunk, kind, **options)
        assert decoded.dtype == array.dtype
        np.testing.assert_array_equal(bits_of(decoded), bits_of(array))
        part = decode_slice(chunk, kind, start=start, stop=stop, **options)
        assert part.dtype == array.dtype
        np.testing.assert_array_equal(bits_of(part), bits_of(array[start:stop]))
    return chunk


@st.composite
def spans(draw: st.DrawFn, length: int) -> tuple[int, int]:
    start = draw(st.integers(0, length))
    return start, draw(st.integers(start, length))


@settings(deadline=None)
@given(rows=id_rows(), data=st.data())
def test_ids(rows: tuple[NDArray[np.uint32], int], data: st.DataObject) -> None:
    array, vocab_size = rows
    check(array, "ids", *data.draw(spans(len(array))), vocab_size)


@settings(deadline=None)
@given(array=value_rows(), data=st.data())
def test_values(array: NDArray[Any], data: st.DataObject) -> None:
    check(array, "values", *data.draw(spans(len(array))))


@settings(deadline=None)
@given(array=flat_arrays(), data=st.data())
def test_flat(array: NDArray[Any], data: st.DataObject) -> None:
    check(array, "flat", *data.draw(spans(len(array))))


@pytest.mark.parametrize(
    ("rows", "slots", "vocab_size"),
    [(3, 300, 3_000), (2, 1_100, 5_000), (1, 1_500, 1_500), (2, 700, 1 << 31), (40, 3, 50_257)],
)
def test_ids_in_blocks_of_every_size(rows: int, slots: int, vocab_size: int) -> None:
    generator = np.random.default_rng(slots)
    draws = (generator.choice(min(vocab_size, 1 << 20), slots, replace=False) for _ in range(rows))
    scale = vocab_size >> 20 or 1
    array = np.stack([np.sort(draw).astype(np.uint32) * np.uint32(scale) for draw in draws])
    check(array, "ids", rows // 2, rows, vocab_size)


@pytest.mark.parametrize("kind", ["ids", "values"])
def test_every_combination_of_row_lengths_around_a_block(kind: Kind) -> None:
    slots = 130
    array: NDArray[Any]
    if kind == "ids":
        array = np.tile(np.arange(0, 7 * slots, 7, dtype=np.uint32), (slots + 1, 1))
        for count, row in enumerate(array):
            row[count:] = UNUSED_ID
    else:
        array = np.random.default_rng(0).normal(-9, 3, (slots + 1, slots)).astype(np.float16)
        for count, row in enumerate(array):
            row[count:] = -np.inf
    check(array, kind, 60, 70, 1_000 if kind == "ids" else 0)


def test_parameters_of_one_chunk_far_apart() -> None:
    """Four bits hold sixteen parameters; the chunk's base moves them, and small ones are lifted to it."""
    near, far = np.arange(40, dtype=np.uint32), np.arange(40, dtype=np.uint32) * np.uint32(1 << 25)
    chunk = check(np.stack([near, far + np.uint32(3), near * np.uint32(9)]), "ids", 0, 2, 1 << 31)
    assert read_header(chunk).parameter_base > 0


def test_a_row_as_long_as_a_vocabulary() -> None:
    """Its quotients take more than 65,535 zeros together, which the fast decoder reads another way."""
    ids = np.unique(np.random.default_rng(5).integers(0, 1 << 31, 160_000, np.uint32))[None]
    chunk = encode(ids, "ids", vocab_size=1 << 31)
    np.testing.assert_array_equal(decode(chunk, "ids", shape=ids.shape, dtype="u4", vocab_size=1 << 31), ids)


@pytest.mark.parametrize("K", [1, 2, 63, 64, 65, 128])
def test_rows_of_one_value_cost_nothing(K: int) -> None:
    chunk = check(np.full((64, K), -1.25, np.float16), "values", 3, 9)
    assert read_header(chunk).payload_words == 2
    whole = np.tile(np.arange(K, dtype=np.uint32), (64, 1))
    assert read_header(check(whole, "ids", 3, 9, K)).payload_words == 2


def test_unused_slots_cost_nothing() -> None:
    """The bytes of ragged rows follow their entries, not their room."""
    narrow = np.full((32, 8), UNUSED_ID, np.uint32)
    narrow[:, :3] = [5, 70, 900]
    wide = np.full((32, 4096), UNUSED_ID, np.uint32)
    wide[:, :3] = [5, 70, 900]
    assert len(encode(narrow, "ids", vocab_size=1_000)) == len(encode(wide, "ids", vocab_size=1_000))


@pytest.mark.parametrize(("low_bits", "shift"), [(0, 0), (3, 3), (10, 10)])
def test_trailing_zero_bits_are_not_stored(low_bits: int, shift: int) -> None:
    logits = np.random.default_rng(1).normal(0, 8, (9, 32)).astype(np.float16)
    bits = logits.view(np.uint16) >> np.uint16(low_bits) << np.uint16(low_bits)
    bits[0, 0] |= 1 << low_bits
    assert read_header(check(bits.view(np.float16), "values", 2, 5)).shift == shift


def test_bfloat16_logits_have_three() -> None:
    logits = np.random.default_rng(2).normal(0, 8, (9, 32)).astype(np.float32)
    bfloat16 = (logits.view(np.uint32) & 0xFFFF0000).view(np.float32).astype(np.float16)
    assert read_header(encode(bfloat16, "values")).shift == 3


def test_a_tiny_logit_costs_its_row_alone() -> None:
    logits = np.random.default_rng(2).normal(0, 8, (64, 256)).astype(np.float32)
    bfloat16 = (logits.view(np.uint32) & 0xFFFF0000).view(np.float32).astype(np.float16)
    bfloat16[np.abs(bfloat16) < 1e-3] = 1
    plain = len(encode(bfloat16, "values"))
    bfloat16[5, 17] = 3e-5
    header = read_header(check(bfloat16, "values", 2, 5))
    assert (header.shift, header.shift_width) == (0, 2)
    assert len(encode(bfloat16, "values")) < plain + 256  # all rows with shift 0 would cost 3 bits an entry: 6,144


def test_equal_input_gives_equal_bytes_whatever_its_memory() -> None:
    ids = np.sort(np.random.default_rng(3).integers(0, 1 << 20, (6, 9)).astype(np.uint32) * 2, axis=1)
    ids += np.arange(9, dtype=np.uint32)
    expected = encode(ids, "ids", vocab_size=1 << 22)
    assert encode(np.asfortranarray(ids), "ids", vocab_size=1 << 22) == expected
    assert encode(np.repeat(ids, 2, axis=0)[::2], "ids", vocab_size=1 << 22) == expected
    read_only = ids.copy()
    read_only.flags.writeable = False
    assert encode(read_only, "ids", vocab_size=1 << 22) == expected


def test_any_buffer_is_decoded() -> None:
    ids = np.array([[1, 5, 9]], np.uint32)
    chunk = encode(ids, "ids", vocab_size=10)
    for buffer in (bytearray(chunk), memoryview(chunk), np.frombuffer(chunk, np.uint8), memoryview(b"xyz" + chunk)[3:]):
        assert decode(buffer, "ids", shape=(1, 3), dtype="u4", vocab_size=10).tolist() == ids.tolist()


def test_sound_chunks_need_no_second_look(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise AssertionError("the fast way did not take a sound chunk")

    monkeypatch.setattr("logitstore.codec.exact.ChunkDecoder.decode_carefully", refuse)
    generator = np.random.default_rng(0)
    ids = np.sort(generator.permuted(np.tile(np.arange(400, dtype=np.uint32), (50, 1)), axis=1)[:, :30], axis=1)
    ids[3, 7:] = 0xFFFFFFFF
    ids[4] = 0xFFFFFFFF
    values = np.where(ids == 0xFFFFFFFF, -np.inf, generator.normal(-5, 3, ids.shape)).astype(np.float16)
    arrays: list[tuple[Kind, NDArray[Any]]] = [
        ("ids", ids), ("values", values), ("values", generator.poisson(2, (9, 4)).astype(np.uint8)),
        ("flat", generator.normal(size=1000).astype(np.float32)), ("flat", generator.integers(0, 2, 700, np.uint8)),
        ("flat", generator.integers(0, 1 << 32, 10, np.uint32)), ("flat", np.empty(0, np.float32)),
        ("ids", np.empty((0, 3), np.uint32)),
    ]  # fmt: skip
    for kind, array in arrays:
        bound = 400 if kind == "ids" else 0
        chunk = encode(array, kind, vocab_size=bound)
        for start, stop in ((0, len(array)), (len(array) // 3, len(array) // 2), (0, 0)):
            part = decode_slice(
                chunk, kind, shape=array.shape, dtype=array.dtype, start=start, stop=stop, vocab_size=bound
            )
            assert part.tobytes() == array[start:stop].tobytes()
