"""The device's decoder, in Triton's interpreter, equals the CPU's bit for bit, and notices what that notices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import google_crc32c
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from logitstore.codec import BitRows, ChunkDecoder, Kind, decode, encode
from logitstore.device import decode_rows
from logitstore.errors import CorruptDataError, LogitStoreError
from tests.codec.test_corruption import SAMPLES, Sample
from tests.codec.test_roundtrip import flat_arrays, id_rows, value_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

few = settings(deadline=None, max_examples=12)


def decoder_of(kind: Kind, array: NDArray[Any], vocab_size: int) -> ChunkDecoder:
    return ChunkDecoder(kind, array.dtype, 0 if kind == "flat" else array.shape[1], vocab_size)


def elements(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().numpy().tobytes()


def check(array: NDArray[Any], kind: Kind, vocab_size: int = 0, start: int = 0, stop: int | None = None) -> None:
    """Decode some rows (all groups, of a flat array) by kernels and on the CPU, padded and flat."""
    decoder = decoder_of(kind, array, vocab_size)
    chunk = memoryview(encode(array, kind, vocab_size=vocab_size))
    if kind == "flat":
        start, stop = 0, -(-len(array) // 256)
    stop = len(array) if stop is None else stop
    rows = decoder.cut(chunk, len(array), start, stop, verify=True)
    counts = rows.table[3].tolist()
    for kernels in (False, True):
        padded = decode_rows(rows, decoder.format, "cpu", kernels=kernels).check()
        packed = decode_rows(rows, decoder.format, "cpu", kernels=kernels, offsets=rows.offsets).check()
        if kind == "flat":
            assert elements(packed) == array.tobytes()
        else:
            assert elements(padded) == array[start:stop].tobytes()
            used = [row[:count] for row, count in zip(array[start:stop], counts, strict=True)]
            assert elements(packed) == b"".join(row.tobytes() for row in used)


@few
@given(rows=id_rows(), data=st.data())
def test_ids(rows: tuple[NDArray[np.uint32], int], data: st.DataObject) -> None:
    array, vocab_size = rows
    start = data.draw(st.integers(0, len(array)))
    check(array, "ids", vocab_size, start, data.draw(st.integers(start, len(array))))


@few
@given(array=value_rows(), data=st.data())
def test_values(array: NDArray[Any], data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(array)))
    check(array, "values", 0, start, data.draw(st.integers(start, len(array))))


@settings(deadline=None, max_examples=4)
@given(array=flat_arrays())
def test_flat(array: NDArray[Any]) -> None:
    check(array, "flat")


@pytest.mark.parametrize(("slots", "vocab_size"), [(300, 3_000), (1_100, 5_000), (700, 700), (17, 1 << 31)])
def test_ids_in_blocks_of_every_size(slots: int, vocab_size: int) -> None:
    generator = np.random.default_rng(slots)
    draw = generator.choice(min(vocab_size, 1 << 20), slots, replace=False)
    check(np.sort(draw)[None].astype(np.uint32) * np.uint32(vocab_size >> 20 or 1), "ids", vocab_size)


@pytest.mark.plain_interpreter
def test_the_interpreters_own_scan_agrees() -> None:
    check(np.array([[1, 5, 40, 41, 90], [0, 2, 4, 6, 99]], np.uint32), "ids", 100)


def test_parameters_far_apart() -> None:
    far = np.arange(40, dtype=np.uint32) * np.uint32(1 << 25)
    check(np.stack([np.arange(40, dtype=np.uint32), far + np.uint32(3)]), "ids", 1 << 31)


def test_fewer_entries_than_room_and_more() -> None:
    """Draws of 0 at the end of a row are not coded, so its ids have more entries than its counts."""
    array = np.array([[3, 1, 0, 0], [0, 0, 0, 0], [5, 0, 0, 2]], np.uint8)
    decoder = decoder_of("values", array, 0)
    rows = decoder.cut(memoryview(encode(array, "values")), 3, 0, 3, verify=True)
    for kernels in (False, True):
        found = decode_rows(rows, decoder.format, "cpu", kernels=kernels, offsets=np.array([0, 3, 4, 8])).check()
        assert found.tolist() == [3, 1, 0, 0, 5, 0, 0, 2]
        with pytest.raises(CorruptDataError, match="row 2"):
            decode_rows(rows, decoder.format, "cpu", kernels=kernels, offsets=np.array([0, 3, 4, 7]))


def test_rows_of_several_chunks_in_one_batch() -> None:
    generator = np.random.default_rng(0)
    narrow = np.sort(generator.permuted(np.tile(np.arange(90, dtype=np.uint32), (4, 1)), axis=1)[:, :20], axis=1)
    wide = narrow * np.uint32(1 << 24)
    parts, expected = [], np.full((9, 20), 0xFFFFFFFF, np.uint32)
    for first, array in ((1, narrow), (5, wide)):
        decoder = decoder_of("ids", array, 1 << 31)
        chunk = memoryview(encode(array, "ids", vocab_size=1 << 31))
        parts.append((first, decoder.cut(chunk, 4, 1, 4, verify=True)))
        expected[first : first + 3] = array[1:4]
    rows = BitRows.laid_out(parts, 9)
    for kernels in (False, True):
        assert elements(decode_rows(rows, decoder.format, "cpu", kernels=kernels).check()) == expected.tobytes()


def outcome(chunk: bytes, sample: Sample, *, kernels: bool) -> bytes | None:
    """Elements, or None if an error was raised. Whatever kernels load or store lies within their tensors."""
    kind, array, vocab_size = sample
    decoder = decoder_of(kind, array, vocab_size)
    count = -(-len(array) // 256) if kind == "flat" else len(array)
    try:
        rows = decoder.cut(memoryview(chunk), len(array), 0, count, verify=True)
        return elements(decode_rows(rows, decoder.format, "cpu", kernels=kernels).check())
    except LogitStoreError:
        return None


@pytest.fixture
def fences(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """What lies before and behind each tensor that is made uninitialised, which is where kernels store."""
    beside: list[torch.Tensor] = []

    def fenced(*shape: Any, dtype: torch.dtype, device: Any = None) -> torch.Tensor:
        size = torch.Size(shape[0] if isinstance(shape[0], tuple) else shape)
        whole = torch.full((size.numel() + 2048,), 77, dtype=dtype)
        beside.extend((whole[:1024], whole[-1024:]))
        return whole[1024:-1024].view(size)

    monkeypatch.setattr(torch, "empty", fenced)
    return beside


@pytest.mark.parametrize("name", ["ids", "float16", "uint8"])
def test_crafted_chunks_mean_the_same_on_a_device(name: str, fences: list[torch.Tensor]) -> None:
    kind, array, vocab_size = sample = SAMPLES[name]
    body = np.frombuffer(encode(array, kind, vocab_size=vocab_size)[:-4], np.uint8)
    generator = np.random.default_rng(len(body))
    refused = 0
    for _ in range(12):
        mutant = body.copy()
        position = generator.integers(7 if generator.random() < 0.1 else 48, len(body))
        mutant[position] ^= 1 << generator.integers(8)
        chunk = mutant.tobytes() + google_crc32c.value(mutant.tobytes()).to_bytes(4, "little")
        found = outcome(chunk, sample, kernels=True)
        try:
            whole = decode(chunk, kind, shape=array.shape, dtype=array.dtype, vocab_size=vocab_size)
            assert found is not None
            assert found[: whole.nbytes] == whole.tobytes()
        except LogitStoreError:
            assert found is None
        assert found == outcome(chunk, sample, kernels=False)
        refused += found is None
    assert 0 < refused < 12
    assert len(fences) >= 4 * 12
    assert all((fence == 77).all() for fence in fences)


@pytest.mark.parametrize("kernels", [False, True])
@pytest.mark.parametrize(("column", "value"), [(0, 1 << 30), (2, 1 << 20), (3, 41), (1, 7 << 10)])
def test_a_table_that_points_outside_is_refused(kernels: bool, column: int, value: int) -> None:
    kind, array, vocab_size = SAMPLES["ids"]
    decoder = decoder_of(kind, array, vocab_size)
    rows = decoder.cut(memoryview(encode(array, kind, vocab_size=vocab_size)), 5, 0, 5, verify=True)
    rows.table[column, 2] = value
    with pytest.raises(CorruptDataError, match="row 2"):
        decode_rows(rows, decoder.format, "cpu", kernels=kernels)


def test_the_broken_row_is_named() -> None:
    kind, array, _ = SAMPLES["ids"]
    decoder = decoder_of(kind, array, 997)
    rows = decoder.cut(memoryview(encode(array, kind, vocab_size=997)), 5, 0, 5, verify=True)
    low = decoder.format._replace(bound=3)
    for kernels in (False, True):
        with pytest.raises(CorruptDataError, match="outside the vocabulary") as caught:
            decode_rows(rows, low, "cpu", kernels=kernels).check()
        assert caught.value.row == 0
