"""Keys are in the order of the numbers, and a bijection."""

from __future__ import annotations

import numpy as np
import pytest

from logitstore import layout
from logitstore.codec.transform import bits_from_keys, keys_from_bits, row_shifts


@pytest.mark.parametrize("shift", range(16))
def test_every_float16_comes_back(shift: int) -> None:
    bits = np.arange(0, 1 << 16, 1 << shift).astype(np.uint16)
    keys = keys_from_bits(bits, layout.DTYPE_FLOAT16, shift)
    assert sorted(keys.tolist()) == list(range(1 << (16 - shift)))
    np.testing.assert_array_equal(bits_from_keys(keys, layout.DTYPE_FLOAT16, shift), bits)


def test_keys_of_numbers_are_in_order() -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    numbers = bits.view(np.float16)
    order = np.argsort(keys_from_bits(bits, layout.DTYPE_FLOAT16, 0))
    rising = numbers[order][~np.isnan(numbers[order])].astype(np.float64)
    assert (np.diff(rising) >= 0).all()


@pytest.mark.parametrize("shift", [0, 1, 16, 23, 31])
def test_float32_comes_back(shift: int) -> None:
    words = np.random.default_rng(shift).integers(0, 1 << 32, 10_000, np.uint32)
    bits = np.append(words, np.array([0, 1 << 31, 0x7F800000, 0xFFFFFFFF], np.uint32)) >> np.uint32(shift)
    bits <<= np.uint32(shift)
    keys = keys_from_bits(bits, layout.DTYPE_FLOAT32, shift)
    np.testing.assert_array_equal(bits_from_keys(keys, layout.DTYPE_FLOAT32, shift), bits)


@pytest.mark.parametrize(
    ("dtype", "bits", "shifts"),
    [
        (layout.DTYPE_FLOAT16, [[0xBE00, 0xC080]], [7]), (layout.DTYPE_FLOAT16, [[0xFC00]], [10]),
        (layout.DTYPE_FLOAT16, [[0x8000]], [10]), (layout.DTYPE_UINT8, [[8, 16]], [0]),
        # A shift that differs is worth its column only in long rows, and only where most rows have it.
        (layout.DTYPE_FLOAT16, [[0x0008] * 40] * 19 + [[0x0001] * 40], [3] * 19 + [0]),
        (layout.DTYPE_FLOAT16, [[0x0008] * 4] * 19 + [[0x0001] * 4], [0] * 20),
        (layout.DTYPE_FLOAT16, [[0x0008] * 40] * 10 + [[0x0001] * 40] * 10, [0] * 20),
        # Rows that happen to have more zeros than most get no shift of their own.
        (layout.DTYPE_FLOAT16, [[0x0008] * 40] * 19 + [[0x0100] * 40], [3] * 20),
    ],
)  # fmt: skip
def test_row_shifts(dtype: int, bits: list[list[int]], shifts: list[int]) -> None:
    assert row_shifts(np.array(bits, np.uint16), dtype).tolist() == shifts


def test_no_rows_have_no_shifts() -> None:
    assert row_shifts(np.empty((0, 4), np.uint16), layout.DTYPE_FLOAT16).tolist() == []
