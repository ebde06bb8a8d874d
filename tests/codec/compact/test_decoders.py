"""What coders make of codebooks and groups that this project does not write."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from logitstore import layout
from logitstore.codec import fast_encode
from logitstore.codec.compact import IdCodec, ValueBook, ValueCodec, parse, reference
from logitstore.codec.compact.chunk import build_chunk
from logitstore.codec.compact.symbols import SymbolCode
from logitstore.errors import CorruptDataError
from tests.codec.compact.samples import SLOTS, arranged, id_book, value_book, values_of


def with_a_table_too_many(code: SymbolCode) -> SymbolCode:
    """The same code; its only context has the second of two tables."""
    other = np.roll(code.frequencies, 1, axis=1)
    return SymbolCode(code.widths, np.array([1], np.uint32), np.vstack([other, code.frequencies]))


@pytest.mark.parametrize("name", ["class_code", "miss_code", "base_code"])
def test_the_only_context_of_a_code_may_have_any_table(name: str) -> None:
    book: Any = value_book("max_kl") if name == "base_code" else id_book()
    odd = parse(dataclasses.replace(book, **{name: with_a_table_too_many(getattr(book, name))}).blob)
    codec: Any = ValueCodec(odd, SLOTS) if name == "base_code" else IdCodec(odd, SLOTS)
    array = values_of("max_kl") if name == "base_code" else arranged()[0]
    chunk = codec.encode(array, use_reference=True)
    assert codec.encode(array) == chunk
    expected = codec.decode(chunk, len(array), use_reference=True)
    assert codec.decode(chunk, len(array)).tobytes() == expected.tobytes()


def test_a_group_that_lacks_its_last_word_is_refused() -> None:
    """The word is 0, as what a decoder may find behind; and a row without entries comes last, which takes none."""
    sure = SymbolCode(np.zeros(2, np.uint32), np.zeros(1, np.uint32), np.array([[0, 1024]], np.uint32))
    rare = SymbolCode(np.zeros(2, np.uint32), np.zeros(64, np.uint32), np.array([[1, 1023]], np.uint32))
    book = ValueBook(layout.DTYPE_FLOAT16, np.array([7, 9], np.uint32), np.empty(0, np.uint32), sure, rare)
    numbers: Any = reference.encode_values(book, [0, 0], [7, 7])
    words = reference.encode_group([part for part, _ in numbers], [])
    assert words[-1] == 0
    codec = ValueCodec(book, 2)
    for used, sound in ((words, True), (words[:-1], False)):
        counts, lengths = np.array([2, 0]), np.array([len(used)])
        packed = (fast_encode.pack_column(array) for array in (counts, lengths))
        chunk = build_chunk(book, (2, 2), 1, *packed, np.array(used, np.uint16), 2)  # type: ignore[misc]
        for use_reference in (False, True):
            if sound:
                assert codec.decode(chunk, 2, use_reference=use_reference)[1].tolist() == [-np.inf, -np.inf]
            else:
                with pytest.raises(CorruptDataError):
                    codec.decode(chunk, 2, use_reference=use_reference)
