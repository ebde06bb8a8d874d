"""Broken chunks and codebooks give errors: not wrong rows, not a crash, no endless loop, no unearned memory."""

from __future__ import annotations

import struct
import tracemalloc
from typing import Any

import google_crc32c
import numpy as np
import pytest

from logitstore import layout
from logitstore.codec.compact import IdCodec, ValueCodec, codebook_of, parse, register, train_ids
from logitstore.errors import CorruptDataError, LogitStoreError, TruncatedDataError, UnsupportedVersionError
from tests.codec.compact.samples import SLOTS, VOCABULARY, arranged, id_book, rows, value_book, values_of

KINDS = ["ids", "lossless", "max_kl", "counts"]
everything = pytest.mark.parametrize("kind", KINDS)


def _codec(kind: str) -> Any:
    return IdCodec(id_book(), SLOTS) if kind == "ids" else ValueCodec(value_book(kind), SLOTS)


def _book(kind: str) -> Any:
    return id_book() if kind == "ids" else value_book(kind)


def _array(kind: str) -> Any:
    return (arranged()[0] if kind == "ids" else values_of(kind))[:20]


def _seal(body: bytes) -> bytes:
    return body + google_crc32c.value(body).to_bytes(4, "little")


def _outcome(codec: Any, chunk: bytes, **options: Any) -> bytes | type[Exception]:
    try:
        decoded = codec.decode(chunk, 20, **options)
    except LogitStoreError as error:
        return type(error)
    return bytes(decoded.tobytes())


@everything
def test_every_changed_byte_is_noticed(kind: str) -> None:
    codec = _codec(kind)
    chunk = codec.encode(_array(kind))
    for position, byte in enumerate(chunk):
        for changed in {byte ^ (1 << bit) for bit in range(8)} | {0x00, 0xFF} - {byte}:
            with pytest.raises((CorruptDataError, UnsupportedVersionError)):
                codec.decode(chunk[:position] + bytes([changed]) + chunk[position + 1 :], 20)


@everything
@pytest.mark.parametrize("verify", [True, False])
def test_every_prefix_is_truncated(kind: str, verify: bool) -> None:
    codec = _codec(kind)
    chunk = codec.encode(_array(kind))
    for length in range(len(chunk)):
        with pytest.raises(TruncatedDataError):
            codec.decode(chunk[:length], 20, verify=verify)
    with pytest.raises(CorruptDataError, match="bytes"):
        codec.decode(chunk + b"\0", 20)


def _mutants(body: bytes, number: int, header: int) -> list[bytes]:
    """Bodies with sound checksums that are not sound."""
    generator = np.random.default_rng(len(body))
    mutants = []
    for _ in range(number):
        mutant = np.frombuffer(body, np.uint8).copy()
        first = 0 if generator.random() < 0.2 else header
        for _ in range(generator.integers(1, 4)):
            position = generator.integers(first, len(body))
            mutant[position] = (
                mutant[position] ^ (1 << generator.integers(8)) if generator.random() < 0.6 else generator.integers(256)
            )
        mutants.append(_seal(mutant.tobytes()))
    return mutants


@everything
def test_crafted_chunks_mean_the_same_to_both_decoders(kind: str) -> None:
    codec = _codec(kind)
    outcomes = []
    for mutant in _mutants(codec.encode(_array(kind))[:-4], 500, layout.COMPACT_HEADER_BYTES):
        fast = _outcome(codec, mutant)
        assert fast == _outcome(codec, mutant, use_reference=True), mutant.hex()
        assert fast == _outcome(codec, mutant[:-4] + b"\0\0\0\0", verify=False), mutant.hex()
        outcomes.append(fast)
    assert CorruptDataError in outcomes


def test_words_of_noise_mean_the_same_to_both_decoders() -> None:
    """Payloads that nobody wrote, with lengths that lead everywhere."""
    generator = np.random.default_rng(0)
    for kind in KINDS:
        codec = _codec(kind)
        chunk = codec.encode(_array(kind))
        for _ in range(60):
            body = bytearray(chunk[:-4])
            first = int(generator.integers(layout.COMPACT_HEADER_BYTES, len(body)))
            body[first:] = generator.bytes(len(body) - first)
            noisy = _seal(bytes(body))
            assert _outcome(codec, noisy) == _outcome(codec, noisy, use_reference=True), noisy.hex()


@everything
def test_crafted_codebooks_are_refused_or_decode_without_harm(kind: str) -> None:
    book, array = _book(kind), _array(kind)
    chunk = _codec(kind).encode(array)
    refused = 0
    for mutant in _mutants(book.blob[:-4], 300, layout.CODEBOOK_HEADER_BYTES):
        try:
            parsed: Any = parse(mutant)
        except LogitStoreError:
            refused += 1
            continue
        codec: Any = IdCodec(parsed, SLOTS) if parsed.kind == layout.KIND_IDS else ValueCodec(parsed, SLOTS)
        body = bytearray(chunk[:-4])
        body[20:36] = parsed.digest
        struct.pack_into("<I", body, 16, getattr(parsed, "vocab_size", 0))
        renamed = _seal(bytes(body))
        assert _outcome(codec, renamed) == _outcome(codec, renamed, use_reference=True), mutant.hex()
    assert refused


@everything
def test_changed_and_shortened_codebooks_are_noticed(kind: str) -> None:
    blob = _book(kind).blob
    for position in range(0, len(blob), 7):
        with pytest.raises((CorruptDataError, UnsupportedVersionError)):
            parse(blob[:position] + bytes([blob[position] ^ 16]) + blob[position + 1 :])
        with pytest.raises(CorruptDataError):
            parse(blob[:position])
    with pytest.raises(UnsupportedVersionError):
        parse(_seal(b"LGCBOOK2" + blob[8:-4]))


def test_another_codebook_is_named_in_the_error() -> None:
    other = train_ids(rows(7, 100)[0], vocab_size=VOCABULARY)
    chunk = _codec("ids").encode(_array("ids"))
    with pytest.raises(CorruptDataError, match=id_book().digest.hex()) as raised:
        IdCodec(other, SLOTS).decode(chunk, 20)
    assert other.digest.hex() in str(raised.value)


def test_a_codebook_is_found_once_it_was_loaded() -> None:
    book = train_ids(rows(8, 50)[0], vocab_size=VOCABULARY)
    codec = IdCodec(book, SLOTS)
    chunk = memoryview(codec.encode(codec.arrange(rows(9, 3)[0])))
    with pytest.raises(TruncatedDataError, match=f"{book.digest.hex()} is not loaded: open the store"):
        codebook_of(chunk)
    assert register(book.blob).digest == book.digest
    assert codebook_of(chunk) is register(book)
    with pytest.raises(TruncatedDataError, match="at least"):
        codebook_of(chunk[:40])


@pytest.mark.parametrize("wrong", [{"rows": 21}, {"slots": SLOTS + 1}])
def test_other_shapes_are_refused(wrong: dict[str, int]) -> None:
    chunk = _codec("ids").encode(_array("ids"))
    codec = IdCodec(id_book(), wrong.get("slots", SLOTS))
    with pytest.raises(CorruptDataError, match="expected"):
        codec.decode(chunk, wrong.get("rows", 20))
    with pytest.raises(CorruptDataError, match="expected"):
        _codec("lossless").decode(chunk, 20)


@everything
def test_a_header_that_asks_for_much_gets_nothing(kind: str) -> None:
    codec = _codec(kind)
    body = bytearray(codec.encode(_array(kind))[:-4])
    struct.pack_into("<I", body, 8, 1 << 30)
    tracemalloc.start()
    with pytest.raises(CorruptDataError):
        codec.decode_into(
            memoryview(_seal(bytes(body))), 1 << 30, 0, np.empty((1, SLOTS), _array(kind).dtype), verify=True
        )
    blob = bytearray(_book(kind).blob[:-4])
    struct.pack_into("<I", blob, layout.CODEBOOK_HEADER_BYTES, (1 << 32) - 1)
    with pytest.raises(CorruptDataError):
        parse(_seal(bytes(blob)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20
