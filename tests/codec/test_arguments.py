"""Bad input is refused by name; nothing is masked, wrapped or guessed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from logitstore import layout
from logitstore.codec import decode, decode_slice, encode
from logitstore.codec.header import read_header
from logitstore.errors import CorruptDataError, InvalidArgumentError

if TYPE_CHECKING:
    from numpy.typing import NDArray

UNUSED_ID = 0xFFFFFFFF
IDS = np.array([[1, 5, 9], [0, 7, UNUSED_ID]], np.uint32)


def test_large_id_survives() -> None:
    """151,643 needs 18 bits; masked to 17 it is 20,571."""
    ids = np.array([[20_571, 151_643]], np.uint32)
    chunk = encode(ids, "ids", vocab_size=151_936)
    assert decode(chunk, "ids", shape=(1, 2), dtype="u4", vocab_size=151_936).tolist() == [[20_571, 151_643]]


@pytest.mark.parametrize("use_reference", [False, True])
@pytest.mark.parametrize(
    ("row", "vocab_size"),
    [
        ([5, 1], 10), ([3, 3], 10), ([1, 10], 10), ([1, 151_643], 1 << 17), ([UNUSED_ID, 3], 10),
        ([1, UNUSED_ID - 1], 1 << 31), ([0, 1 << 31], 1 << 31), ([2, 1], 1),
    ],
)  # fmt: skip
def test_bad_ids(row: list[int], vocab_size: int, use_reference: bool) -> None:
    ids = np.array([[0, UNUSED_ID], row], np.uint32)
    with pytest.raises(InvalidArgumentError, match=r"row 1 of the chunk.*vocabulary size|vocabulary size .*row 1"):
        encode(ids, "ids", vocab_size=vocab_size, use_reference=use_reference)


@pytest.mark.parametrize("vocab_size", [0, -1, (1 << 31) + 1])
def test_bad_vocabulary(vocab_size: int) -> None:
    with pytest.raises(InvalidArgumentError, match="1 to 2\\^31"):
        encode(IDS, "ids", vocab_size=vocab_size)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("ids", "i4"), ("ids", "u8"), ("ids", ">u4"), ("ids", "f4"), ("values", "f4"), ("values", "f8"),
        ("values", ">f2"), ("values", "u2"), ("values", "i1"), ("flat", "f2"), ("flat", "f8"), ("flat", "i4"),
        ("flat", "?"), ("flat", "i8"), ("ragged", "u4"),
    ],
)  # fmt: skip
def test_bad_types(kind: Any, dtype: str) -> None:
    with pytest.raises(InvalidArgumentError, match="holds arrays of type"):
        encode(np.zeros((2, 3), dtype), kind, vocab_size=10)


@pytest.mark.parametrize("shape", [(3,), (2, 3, 1), (2, 0), ()])
@pytest.mark.parametrize(("kind", "dtype"), [("ids", "u4"), ("values", "f2"), ("values", "u1")])
def test_bad_shapes(kind: Any, dtype: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidArgumentError, match="shape"):
        encode(np.zeros(shape, dtype), kind, vocab_size=10)


@pytest.mark.parametrize(
    "other",
    [
        {"shape": (3, 3)}, {"shape": (2, 4)}, {"shape": (6, 1)}, {"vocab_size": 11}, {"vocab_size": 0},
        {"kind": "values", "dtype": "f2"}, {"kind": "flat"}, {"kind": "flat", "shape": (6,)},
    ],
)  # fmt: skip
def test_another_chunk_than_expected(other: dict[str, Any]) -> None:
    chunk = encode(IDS, "ids", vocab_size=10)
    asked: dict[str, Any] = {"kind": "ids", "shape": (2, 3), "dtype": "u4", "vocab_size": 10, **other}
    with pytest.raises(CorruptDataError, match="expected"):
        decode(chunk, **asked)


@pytest.mark.parametrize("dtype", ["i4", ">u4", "f2"])
def test_decoding_to_a_type_the_kind_does_not_have(dtype: str) -> None:
    with pytest.raises(InvalidArgumentError):
        decode(encode(IDS, "ids", vocab_size=10), "ids", shape=(2, 3), dtype=dtype, vocab_size=10)


@pytest.mark.parametrize("use_reference", [False, True])
@pytest.mark.parametrize(("start", "stop"), [(-1, 1), (0, 3), (2, 1), (3, 3), (0, 1 << 40)])
def test_slices_outside_the_chunk(start: int, stop: int, use_reference: bool) -> None:
    chunk = encode(IDS, "ids", vocab_size=10)
    with pytest.raises(InvalidArgumentError, match="not within"):
        decode_slice(
            chunk, "ids", shape=(2, 3), dtype="u4", start=start, stop=stop, vocab_size=10, use_reference=use_reference
        )


@pytest.mark.parametrize("use_reference", [False, True])
def test_rows_are_put_where_they_are_wanted(use_reference: bool) -> None:
    chunk = encode(IDS, "ids", vocab_size=10)
    target = np.zeros((4, 3), np.uint32)
    options: dict[str, Any] = {"shape": (2, 3), "dtype": "u4", "vocab_size": 10, "use_reference": use_reference}
    decode_slice(chunk, "ids", start=0, stop=2, out=target[1:3], **options)
    assert target.tolist() == [[0] * 3, *IDS.tolist(), [0] * 3]


@pytest.mark.parametrize(
    "out",
    [
        np.zeros((2, 2), "u4"), np.zeros((1, 3), "u4"), np.zeros((3, 3), "u4"), np.zeros((2, 3), "f4"),
        np.zeros((2, 6), "u4")[:, ::2],
    ],
    ids=["narrow", "short", "long", "type", "strides"],
)  # fmt: skip
def test_a_place_that_rows_do_not_fit(out: NDArray[Any]) -> None:
    chunk = encode(IDS, "ids", vocab_size=10)
    with pytest.raises(InvalidArgumentError, match="out is contiguous"):
        decode_slice(chunk, "ids", shape=(2, 3), dtype="u4", start=0, stop=2, vocab_size=10, out=out)


def test_a_chunk_of_too_many_elements() -> None:
    """The array is a view of one number: refusing it needs no memory."""
    with pytest.raises(InvalidArgumentError, match="fewer than 2\\^32"):
        encode(np.broadcast_to(np.uint8(0), (1 << 32,)), "flat")


def test_a_chunk_of_too_many_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).integers(0, 1 << 32, 2_560, np.uint32)
    words = read_header(encode(noise, "flat")).payload_words
    monkeypatch.setattr(layout, "MAX_PAYLOAD_WORDS", words)
    encode(noise, "flat")
    monkeypatch.setattr(layout, "MAX_PAYLOAD_WORDS", words - 1)
    with pytest.raises(InvalidArgumentError, match=f"at most {words - 1} words.*fewer rows"):
        encode(noise, "flat")
