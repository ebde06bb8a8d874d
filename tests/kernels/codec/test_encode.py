"""The device's encoder, in Triton's interpreter, makes the bytes that the CPU's makes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from logitstore.codec import Kind, encode
from logitstore.device import encode_chunk, encode_chunks
from logitstore.errors import InvalidArgumentError
from tests.codec.test_roundtrip import id_rows, value_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

few = settings(deadline=None, max_examples=12)


def check(array: NDArray[Any], kind: Kind, vocab_size: int = 0) -> None:
    tensor = torch.from_numpy(array.view(np.int32) if kind == "ids" else array)
    for kernels in (False, True):
        chunk = encode_chunk(tensor, kind, vocab_size=vocab_size, kernels=kernels)  # type: ignore[arg-type]
        assert chunk == encode(array, kind, vocab_size=vocab_size)


@few
@given(rows=id_rows())
def test_ids(rows: tuple[NDArray[np.uint32], int]) -> None:
    check(rows[0], "ids", rows[1])


@few
@given(array=value_rows())
def test_values(array: NDArray[Any]) -> None:
    check(array, "values")


@pytest.mark.parametrize(("slots", "vocab_size"), [(300, 3_000), (1_100, 5_000), (700, 700), (17, 1 << 31)])
def test_ids_in_blocks_of_every_size(slots: int, vocab_size: int) -> None:
    draw = np.random.default_rng(slots).choice(min(vocab_size, 1 << 20), slots, replace=False)
    check(np.sort(draw)[None].astype(np.uint32) * np.uint32(vocab_size >> 20 or 1), "ids", vocab_size)


def test_parameters_far_apart_are_lifted() -> None:
    far = np.arange(40, dtype=np.uint32) * np.uint32(1 << 25)
    check(np.stack([np.arange(40, dtype=np.uint32), far + np.uint32(3)]), "ids", 1 << 31)


def test_rows_with_shifts_of_their_own() -> None:
    logits = np.random.default_rng(2).normal(0, 8, (12, 70)).astype(np.float32)
    bfloat16 = (logits.view(np.uint32) & 0xFFFF0000).view(np.float32).astype(np.float16)
    bfloat16[np.abs(bfloat16) < 1e-3] = 1
    bfloat16[5, 17] = 3e-5
    check(bfloat16, "values")


@pytest.mark.parametrize("chunk_rows", [1, 3, 4, 40, [2, 1, 4, 3]], ids=str)
def test_many_chunks_at_once_are_each_what_they_are_alone(chunk_rows: int | list[int]) -> None:
    generator = np.random.default_rng(chunk_rows)
    counts = np.array([0, 5, 300, 20, 290, 1, 300, 280, 3, 299])  # chunks differ in the size of their blocks
    ids = np.full((len(counts), 300), 0xFFFFFFFF, np.uint32)
    values = np.full((len(counts), 300), -np.inf, np.float16)
    for row, count in enumerate(counts):
        # And in the parameters of the blocks.
        ids[row, :count] = np.sort(generator.choice(1000 * 50 ** (row % 3), count, replace=False))
        values[row, :count] = generator.normal(-10, 10 ** (row % 3 - 1), count)
    for array, kind, bound in ((ids, "ids", 1 << 22), (values, "values", 0)):
        tensor = torch.from_numpy(array.view(np.int32) if kind == "ids" else array)
        edges = range(0, len(array), chunk_rows) if isinstance(chunk_rows, int) else np.cumsum([0, *chunk_rows])
        parts = [part for part in np.split(array, edges) if len(part)]
        expected = [encode(part, kind, vocab_size=bound) for part in parts]
        for kernels in (False, True):
            assert encode_chunks(tensor, kind, chunk_rows, vocab_size=bound, kernels=kernels) == expected


@pytest.mark.parametrize("chunk_rows", [0, [2, 2], [5], [3, 0], []], ids=str)
def test_chunks_that_the_rows_do_not_make(chunk_rows: int | list[int]) -> None:
    with pytest.raises(InvalidArgumentError, match="chunk"):
        encode_chunks(torch.zeros((3, 2), dtype=torch.uint8), "values", chunk_rows, kernels=True)


@pytest.mark.parametrize("row", [[3, 2, -1], [1, 1, -1], [1, -1, 2], [1, 2, 10]])
def test_rows_that_break_a_rule_are_refused(row: list[int]) -> None:
    ids = torch.tensor([[0, 1, 2], row], dtype=torch.int32)
    for kernels in (False, True):
        with pytest.raises(InvalidArgumentError, match="row 1 of the chunk"):
            encode_chunk(ids, "ids", vocab_size=10, kernels=kernels)
        with pytest.raises(InvalidArgumentError, match="row 0 of the chunk"):
            encode_chunks(ids, "ids", [1, 1], vocab_size=10, kernels=kernels)
