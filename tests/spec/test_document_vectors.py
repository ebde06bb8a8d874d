"""Both readers read every valid document file to the same bits and refuse every other one alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logitstore import layout
from logitstore.container.document import DocumentFile, DocumentHeader, encode_document
from logitstore.container.fields import row_fields
from logitstore.container.row_coder import RowCoder
from logitstore.errors import LogitStoreError, TruncatedDataError
from logitstore.records import RowBatch
from tests.spec.vectors import ERRORS

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType

    from numpy.typing import NDArray

Vector = tuple[bytes, dict[str, Any]]
Bits = dict[str, list[Any]]


def _open(data: bytes) -> DocumentFile:
    return DocumentFile(lambda start, stop: memoryview(data)[start:stop], len(data))


def _bits(array: NDArray[Any]) -> list[Any]:
    return list(array.view(f"<u{array.itemsize}").tolist())


def _read(data: bytes) -> Bits:
    file = _open(data)
    out = file.empty(file.header.rows)
    file.decode(0, file.header.rows, out)
    return {name: _bits(array) for name, array in out.items()}


def _read_plainly(decoder: ModuleType, data: bytes) -> Bits:
    file = decoder.DocumentFile(data)
    return {name: file.bits(name) for name in file.arrays}


def _batch(arrays: dict[str, NDArray[Any]]) -> RowBatch:
    fields: dict[str, Any] = {"values" if name.startswith("log") else name: array for name, array in arrays.items()}
    return RowBatch(**fields)


def _arrays(about: dict[str, Any]) -> dict[str, NDArray[Any]]:
    return {
        name: np.array(array["elements"], f"u{np.dtype(array['type']).itemsize}").view(array["type"])
        for name, array in about["arrays"].items()
    }


def _encode(header: DocumentHeader, arrays: dict[str, NDArray[Any]], rows_per_shard: int) -> bytes:
    fields = row_fields(
        slots=header.slots, vocab_size=header.vocab_size, values="logprob" if "logprobs" in arrays else "logit",
        counts="counts" in arrays, temperatures=header.temperatures, rows_per_shard=rows_per_shard,
    )  # fmt: skip
    return encode_document(header, fields, _batch(arrays), RowCoder(fields)).data


def _header(about: dict[str, Any]) -> DocumentHeader:
    return DocumentHeader(**about["header"] | {"store_id": bytes.fromhex(about["header"]["store_id"])})


def test_valid(valid_document: Vector) -> None:
    data, about = valid_document
    file = _open(data)
    assert file.header == _header(about)
    assert list(file.names) == list(about["arrays"])
    assert _read(data) == {name: array["elements"] for name, array in about["arrays"].items()}
    rows = file.header.rows
    for start in range(rows):
        part = file.empty(rows - start)
        file.decode(start, rows, part)
        for name, array in about["arrays"].items():
            assert _bits(part[name]) == array["elements"][start:]


def test_valid_by_standard_library(decoder: ModuleType, valid_document: Vector) -> None:
    data, about = valid_document
    assert vars(decoder.DocumentFile(data).header) == about["header"]
    assert _read_plainly(decoder, data) == {name: array["elements"] for name, array in about["arrays"].items()}


def test_encoder_yields_the_golden_bytes(valid_document: Vector) -> None:
    data, about = valid_document
    if about.get("by_hand"):  # an encoder may choose otherwise, and ours does
        return
    assert _encode(_header(about), _arrays(about), about["rows_per_shard"]) == data


def test_invalid(invalid_document: Vector) -> None:
    data, about = invalid_document
    error = ERRORS[about["error"]]
    with pytest.raises(error) as caught:
        _read(data)
    assert type(caught.value) is error


def test_invalid_by_standard_library(decoder: ModuleType, invalid_document: Vector) -> None:
    data, about = invalid_document
    with pytest.raises(decoder.FormatError) as caught:
        _read_plainly(decoder, data)
    assert (caught.value.rule, caught.value.kind) == (about["rule"], about["error"])


def _sound(spec: Path, name: str) -> bytes:
    return (spec / "vectors" / "documents" / f"{name}.bin").read_bytes()


def _outcome(decoder: ModuleType, data: bytes) -> Bits | None:
    """What both readers make of bytes: the same rows, or the same kind of error."""
    try:
        found: Bits | str = _read(data)
    except LogitStoreError as error:
        found = next(kind for kind, type_ in ERRORS.items() if type_ is type(error))
    try:
        plainly: Bits | str = _read_plainly(decoder, data)
    except decoder.FormatError as error:
        plainly = error.kind
    assert plainly == found
    return None if isinstance(found, str) else found


@pytest.mark.parametrize(("name", "flip"), [("worked_example", 0x01), ("worked_example", 0xFF), ("other_chunks", 0x10)])
def test_every_flipped_byte(decoder: ModuleType, spec: Path, name: str, flip: int) -> None:
    sound = _sound(spec, name)
    expected = _read(sound)
    padding = set()
    for array in decoder.DocumentFile(sound).arrays.values():
        padding |= {offset + size + i for offset, size in array.chunks for i in range(-size % 8)}
    for position in range(len(sound)):
        data = sound[:position] + bytes([sound[position] ^ flip]) + sound[position + 1 :]
        assert _outcome(decoder, data) == (expected if position in padding else None), f"byte {position}"


@pytest.mark.parametrize("name", ["worked_example", "other_chunks"])
def test_every_prefix(decoder: ModuleType, spec: Path, name: str) -> None:
    sound = _sound(spec, name)
    for size in range(len(sound)):
        with pytest.raises(TruncatedDataError):
            _read(sound[:size])
        assert _outcome(decoder, sound[:size]) is None


@settings(max_examples=30, deadline=None, database=None)
@given(
    rows=st.integers(1, 40), slots=st.integers(1, 9), more_ids=st.integers(0, 300), logits=st.booleans(),
    counts=st.booleans(), temperatures=st.integers(0, 3), chunk=st.integers(0, 6), seed=st.integers(0, 1 << 32),
)  # fmt: skip
def test_round_trip(
    decoder: ModuleType, rows: int, slots: int, more_ids: int, logits: bool, counts: bool, temperatures: int,
    chunk: int, seed: int,
) -> None:  # fmt: skip
    generator = np.random.default_rng(seed)
    vocab_size = slots + more_ids
    kept = generator.integers(0, slots + 1, rows)
    ids = np.full((rows, slots), layout.UNUSED_ID, np.uint32)
    for row, n in enumerate(kept):
        ids[row, :n] = np.sort(generator.choice(vocab_size, n, replace=False))
    used = np.arange(slots) < kept[:, None]

    def floats(*shape: int) -> NDArray[np.float32]:
        return generator.integers(0, 1 << 32, shape, np.uint32).view(np.float32)  # NaNs and all

    values = generator.integers(0, 1 << 16, (rows, slots), np.uint16).view(np.float16)
    arrays: dict[str, NDArray[Any]] = {
        "tokens": generator.integers(0, 1 << 32, rows, np.uint32),
        "ids": ids,
        "logits" if logits else "logprobs": np.where(used, values, np.float16(-np.inf)),
        "lse": floats(rows),
        "label_logprob": floats(rows),
        "mask": generator.integers(0, 256, rows, np.uint8),
    }
    if counts:
        arrays["counts"] = np.where(used, generator.integers(0, 256, (rows, slots)), 0).astype(np.uint8)
    if temperatures:
        arrays["lse_T"] = floats(rows, temperatures)
    header = DocumentHeader(generator.bytes(16), seed, seed, rows, slots, vocab_size, temperatures)
    data = _encode(header, arrays, 1 << chunk)
    expected = {name: _bits(array) for name, array in arrays.items()}
    assert _open(data).header == header
    assert _read(data) == expected
    assert _read_plainly(decoder, data) == expected
    assert vars(decoder.DocumentFile(data).header) == {**header._asdict(), "store_id": header.store_id.hex()}
