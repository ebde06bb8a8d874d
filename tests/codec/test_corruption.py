"""Broken chunks give errors: not wrong rows, not a crash, and no memory that their bytes have not earned."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from typing import Any

import google_crc32c
import numpy as np
import pytest
from numpy.typing import NDArray

from logitstore.codec import Kind, decode, encode
from logitstore.errors import CorruptDataError, LogitStoreError, TruncatedDataError, UnsupportedVersionError

Sample = tuple[Kind, NDArray[Any], int]


def _samples() -> dict[str, Sample]:
    generator = np.random.default_rng(0)
    ids = np.full((5, 40), 0xFFFFFFFF, np.uint32)
    for row, count in enumerate((40, 0, 17, 1, 16)):
        ids[row, :count] = np.sort(generator.choice(997, count, replace=False))
    values = -np.abs(generator.normal(5, 3, (4, 20))).astype(np.float16)
    values[1, 9:] = -np.inf
    far = np.sort(generator.integers(0, 1 << 30, (2, 20), np.uint32) * 2, axis=1)
    return {
        "ids": ("ids", ids, 997),
        "far ids": ("ids", far + np.arange(20, dtype=np.uint32), 1 << 31),
        "float16": ("values", values, 0),
        "uint8": ("values", generator.poisson(0.8, (6, 12)).astype(np.uint8), 0),
        "float32": ("flat", generator.normal(10, 2, 300).astype(np.float32), 0),
        "uint32": ("flat", generator.integers(0, 50_257, 40).astype(np.uint32), 0),
        "no rows": ("ids", np.empty((0, 4), np.uint32), 10),
    }


SAMPLES = _samples()
everything = pytest.mark.parametrize("sample", SAMPLES.values(), ids=SAMPLES)


def _decode(chunk: bytes, sample: Sample, **options: Any) -> NDArray[Any]:
    kind, array, vocab_size = sample
    return decode(chunk, kind, shape=array.shape, dtype=array.dtype, vocab_size=vocab_size, **options)


def _seal(body: bytes) -> bytes:
    return body + google_crc32c.value(body).to_bytes(4, "little")


def _outcome(chunk: bytes, sample: Sample, **options: Any) -> bytes | type[Exception]:
    """Bits of the array, or the kind of error."""
    try:
        array = _decode(chunk, sample, **options)
    except LogitStoreError as error:
        return type(error)
    assert (array.shape, array.dtype) == (sample[1].shape, sample[1].dtype)
    return array.tobytes()


@everything
def test_every_changed_byte_is_noticed(sample: Sample) -> None:
    kind, array, vocab_size = sample
    chunk = encode(array, kind, vocab_size=vocab_size)
    for position, byte in enumerate(chunk):
        for changed in {byte ^ (1 << bit) for bit in range(8)} | {0x00, 0xFF} - {byte}:
            broken = chunk[:position] + bytes([changed]) + chunk[position + 1 :]
            with pytest.raises((CorruptDataError, UnsupportedVersionError)):
                _decode(broken, sample)


@everything
@pytest.mark.parametrize("verify", [True, False])
def test_every_prefix_is_truncated(sample: Sample, verify: bool) -> None:
    kind, array, vocab_size = sample
    chunk = encode(array, kind, vocab_size=vocab_size)
    for length in range(len(chunk)):
        with pytest.raises(TruncatedDataError):
            _decode(chunk[:length], sample, verify=verify)


@everything
def test_bytes_behind_the_end_are_refused(sample: Sample) -> None:
    kind, array, vocab_size = sample
    with pytest.raises(CorruptDataError, match="bytes"):
        _decode(encode(array, kind, vocab_size=vocab_size) + b"\0", sample)


def _mutants(sample: Sample, number: int) -> list[bytes]:
    """Chunks with sound checksums whose header, row table and payload are not sound."""
    kind, array, vocab_size = sample
    body = np.frombuffer(encode(array, kind, vocab_size=vocab_size)[:-4], np.uint8)
    generator = np.random.default_rng(len(body))
    mutants = []
    for _ in range(number):
        mutant = body.copy()
        first = 0 if generator.random() < 0.2 else 48
        for _ in range(generator.integers(1, 4)):
            position = generator.integers(first, len(body))
            choice = generator.integers(3)
            mutant[position] = (
                mutant[position] ^ (1 << generator.integers(8)) if choice == 0 else generator.choice([0, 255])
                if choice == 1 else generator.integers(256)
            )  # fmt: skip
        mutants.append(_seal(mutant.tobytes()))
    return mutants


@everything
def test_crafted_chunks_mean_the_same_to_both_decoders(sample: Sample) -> None:
    for mutant in _mutants(sample, 400):
        fast = _outcome(mutant, sample)
        assert fast == _outcome(mutant, sample, use_reference=True), mutant.hex()
        assert fast == _outcome(mutant[:-4] + b"\0\0\0\0", sample, verify=False), mutant.hex()


@everything
def test_every_crafted_bit_means_the_same_to_both_decoders(sample: Sample) -> None:
    kind, array, vocab_size = sample
    body = encode(array, kind, vocab_size=vocab_size)[:-4]
    for position in range(4, min(len(body), 160)):
        for bit in range(8):
            mutant = _seal(body[:position] + bytes([body[position] ^ (1 << bit)]) + body[position + 1 :])
            assert _outcome(mutant, sample) == _outcome(mutant, sample, use_reference=True), (position, bit)


def test_noise_is_refused() -> None:
    generator = np.random.default_rng(1)
    for size in (0, 1, 47, 52, 60, 1000):
        with pytest.raises(CorruptDataError):
            _decode(generator.bytes(size), SAMPLES["ids"])


@pytest.mark.parametrize("field", range(8, 48, 4))
def test_no_header_field_alone_takes_memory(field: int) -> None:
    """Every 32-bit field of the header at its largest: refused before anything is allocated from it."""
    kind, array, vocab_size = SAMPLES["ids"]
    chunk = encode(array, kind, vocab_size=vocab_size)
    _decode(chunk, SAMPLES["ids"])  # so that no kernel is compiled while memory is watched
    body = bytearray(chunk[:-4])
    body[field : field + 4] = b"\xff\xff\xff\xff"
    tracemalloc.start()
    try:
        with pytest.raises(CorruptDataError):
            _decode(_seal(bytes(body)), SAMPLES["ids"])
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


GUARDED = """
import ctypes, mmap, sys
import numpy as np
from logitstore.codec import decode
from logitstore.errors import LogitStoreError

PAGE = mmap.PAGESIZE
memory = mmap.mmap(-1, 3 * PAGE)
address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
assert ctypes.CDLL(None, use_errno=True).mprotect(ctypes.c_void_p(address + 2 * PAGE), PAGE, 0) == 0
for line in sys.stdin:
    kind, dtype, vocab_size, rows, columns, chunk = line.split()
    shape = (int(rows), int(columns)) if kind != "flat" else (int(rows),)
    data = bytes.fromhex(chunk)
    start = 2 * PAGE - len(data)
    memory[start : 2 * PAGE] = data
    try:
        decode(memoryview(memory)[start : 2 * PAGE], kind, shape=shape, dtype=dtype, vocab_size=int(vocab_size))
    except LogitStoreError:
        pass
print("read nothing behind the end")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="protects a page of memory")
def test_nothing_behind_the_end_is_read() -> None:
    """Sound and crafted chunks that end where a page begins that must not be touched."""
    lines = []
    for sample in SAMPLES.values():
        kind, array, vocab_size = sample
        rows, columns = (*array.shape, 1)[:2]
        for chunk in (encode(array, kind, vocab_size=vocab_size), *_mutants(sample, 300)):
            lines.append(f"{kind} {array.dtype.str} {vocab_size} {rows} {columns} {chunk.hex()}")  # noqa: PERF401
    ran = subprocess.run(
        [sys.executable, "-c", GUARDED], input="\n".join(lines), capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert "read nothing behind the end" in ran.stdout
