"""Every decoder reads every valid chunk to the same bits and refuses every invalid one with the same kind of error."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from logitstore.codec import decode, encode
from tests.spec.vectors import ERRORS

if TYPE_CHECKING:
    from types import ModuleType

    from numpy.typing import NDArray

Vector = tuple[bytes, dict[str, Any]]


def _decode(vector: Vector, *, use_reference: bool) -> NDArray[Any]:
    chunk, about = vector
    return decode(
        chunk, about["kind"], shape=tuple(about["shape"]), dtype=about["type"], vocab_size=about["vocab_size"],
        use_reference=use_reference,
    )  # fmt: skip


def _decode_plainly(decoder: ModuleType, vector: Vector) -> list[list[int]]:
    chunk, about = vector
    rows = decoder.decode_chunk(chunk, about["kind"], about["type"], tuple(about["shape"]), bound=about["vocab_size"])
    return list(rows)


@pytest.mark.parametrize("use_reference", [False, True], ids=["fast", "reference"])
def test_valid(valid_chunk: Vector, use_reference: bool) -> None:
    _, about = valid_chunk
    array = _decode(valid_chunk, use_reference=use_reference)
    assert array.dtype == np.dtype(about["type"]).newbyteorder("<")
    assert list(array.shape) == about["shape"]
    assert array.view(f"<u{array.itemsize}").tolist() == about["elements"]


def test_valid_by_standard_library(decoder: ModuleType, valid_chunk: Vector) -> None:
    rows = _decode_plainly(decoder, valid_chunk)
    elements = np.array(valid_chunk[1]["elements"])
    assert rows == ([elements.reshape(-1).tolist()] if valid_chunk[1]["kind"] == "flat" else elements.tolist())


@pytest.mark.parametrize("use_reference", [False, True], ids=["fast", "reference"])
def test_encoders_yield_the_golden_bytes(valid_chunk: Vector, use_reference: bool) -> None:
    chunk, about = valid_chunk
    if about.get("by_hand"):  # an encoder may choose otherwise, and ours does
        return
    elements = np.array(about["elements"], f"u{np.dtype(about['type']).itemsize}").reshape(about["shape"])
    array = elements.view(about["type"])
    assert encode(array, about["kind"], vocab_size=about["vocab_size"], use_reference=use_reference) == chunk


@pytest.mark.parametrize("use_reference", [False, True], ids=["fast", "reference"])
def test_invalid(invalid_chunk: Vector, use_reference: bool) -> None:
    error = ERRORS[invalid_chunk[1]["error"]]
    with pytest.raises(error) as caught:
        _decode(invalid_chunk, use_reference=use_reference)
    assert type(caught.value) is error


def test_invalid_by_standard_library(decoder: ModuleType, invalid_chunk: Vector) -> None:
    with pytest.raises(decoder.FormatError) as caught:
        _decode_plainly(decoder, invalid_chunk)
    about = invalid_chunk[1]
    assert (caught.value.rule, caught.value.kind) == (about["rule"], about["error"])


def test_crc32c_check_value(decoder: ModuleType) -> None:
    assert decoder.crc32c(b"123456789") == 0xE3069283


def test_numbers_of_bits(decoder: ModuleType) -> None:
    assert decoder.number_of(0xBE00, "float16") == -1.5
    assert decoder.number_of(0x3FC00000, "float32") == 1.5
    assert math.isnan(decoder.number_of(0x7E00, "float16"))
    assert decoder.number_of((1 << 32) - 1, "uint32") == (1 << 32) - 1
