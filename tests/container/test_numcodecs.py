"""The numcodecs twin: found by its id, the same bytes as everybody else's."""

from __future__ import annotations

import numcodecs
import numpy as np
import pytest

from logitstore.codec import encode
from logitstore.errors import CorruptDataError

IDS = np.array([[2, 3, 9, 300], [5, 40, 0xFFFFFFFF, 0xFFFFFFFF]], np.uint32)
VALUES = np.array([[-1, -2.5, -3, -4], [-0.25, -9, -np.inf, -np.inf]], np.float16)
LSE = np.array([1.5, np.nan, 2.25], np.float32)


@pytest.mark.parametrize(
    ("array", "kind", "vocab_size"), [(IDS, "ids", 512), (VALUES, "values", 0), (LSE, "flat", 0)], ids=str
)
def test_found_by_id_and_the_same_bytes(array, kind, vocab_size):
    config = {
        "id": "logitstore.exact", "kind": kind, "shape": list(array.shape), "dtype": array.dtype.str,
        "vocab_size": vocab_size,
    }  # fmt: skip
    codec = numcodecs.get_codec(config)
    assert codec.get_config() == config
    encoded = codec.encode(array)
    assert bytes(encoded) == encode(array, kind, vocab_size=vocab_size)
    assert codec.decode(encoded).tobytes() == array.tobytes()
    out = np.empty_like(array)
    codec.decode(encoded, out=out)
    assert out.tobytes() == array.tobytes()
    # Some callers hand over bytes instead of arrays.
    assert bytes(codec.encode(array.view(np.uint8).reshape(-1))) == bytes(encoded)


def test_broken_bytes_are_refused():
    codec = numcodecs.get_codec({"id": "logitstore.exact", "kind": "flat", "shape": [3], "dtype": "<f4"})
    encoded = bytearray(codec.encode(LSE))
    encoded[50] ^= 1
    with pytest.raises(CorruptDataError):
        codec.decode(bytes(encoded))
