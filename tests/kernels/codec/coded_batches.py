"""Batches of coded rows out of chunks of the compact codec, with groups as small as a test wants them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from logitstore.codec import ChunkDecoder, CutRows, RowFormat, encode, fast_encode
from logitstore.codec.bit_rows import COUNT, BitRows
from logitstore.codec.compact import IdCodec, ValueCodec, train_ids, train_values
from logitstore.codec.compact.chunk import build_chunk, read_header
from logitstore.codec.compact.groups import group_table
from logitstore.codec.compact.symbols import SymbolCode, normalise
from tests.codec.compact.samples import SLOTS, VOCABULARY, counts_of, id_book, rows, value_book

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from logitstore.codec import CodedRows

    Words = list[NDArray[np.uint16]]

KINDS = ["ids", "values", "counts"]
FORMATS = {
    "ids": RowFormat(1, 3, SLOTS, VOCABULARY),
    "values": RowFormat(2, 2, SLOTS, 0),
    "counts": RowFormat(2, 1, SLOTS, 0),
}


@cache
def codecs(kind: str) -> list[Any]:
    """Codecs of two codebooks, one as it was trained."""
    if kind == "ids":
        other = train_ids(rows(7, 60)[0], vocab_size=VOCABULARY)
        return [IdCodec(id_book(), SLOTS), IdCodec(with_tables(other, "gap_code", "nibble_code"), SLOTS)]
    if kind == "values":
        books = value_book("max_kl"), value_book("max_error")
    else:
        books = value_book("counts"), train_values(counts_of(rows(7, 60)[1]))
    return [ValueCodec(books[0], SLOTS), ValueCodec(with_tables(books[1], "delta_code"), SLOTS)]


def with_tables(book: Any, *names: str) -> Any:
    """Return the book with another table in each context of some codes, so that none is like another."""
    generator = np.random.default_rng(0)
    codes = {}
    for name in names:
        code: SymbolCode = getattr(book, name)
        count, symbols = len(code.contexts), len(code.widths)
        tables = [normalise(generator.random(symbols) ** 4, np.ones(symbols, np.bool_)) for _ in range(min(count, 256))]
        codes[name] = SymbolCode(code.widths, np.arange(count, dtype=np.uint32) % len(tables), np.stack(tables))
    return dataclasses.replace(book, **codes)


def array_of(kind: str, seed: int, number: int) -> NDArray[Any]:
    """Rows, some without entries; of values, some that are kept as they are for want of levels."""
    ids, values = rows(seed, number)
    if kind == "ids":
        return ids
    if kind == "counts":
        return counts_of(values)
    generator = np.random.default_rng(seed)
    odd = generator.random(values.shape) < np.where(generator.random(number) < 0.2, 0.5, 0)[:, None]
    return np.where(odd & (values > -np.inf), np.float16(np.nan), values)


def chunk_of(
    codec: Any, array: NDArray[Any], group_log2: int, change: Callable[[Words], Words] = lambda words: words
) -> bytes:
    """Encode rows in groups of a size; their words may be changed before the chunk is sealed."""
    if isinstance(codec, IdCodec):
        array = codec.arrange(array).ids
    words, counts = [], []
    for first in range(0, len(array), 1 << group_log2):
        # Whatever the size of a group would be, a chunk of so few rows has one group.
        chunk = codec.encode(array[first : first + (1 << group_log2)])
        data = np.frombuffer(chunk, np.uint8)
        header = read_header(memoryview(chunk))
        here, starts = group_table(header, data)
        assert len(starts) == 2
        counts.append(here)
        words.append(data[starts[0] : starts[1]].view(np.uint16))
    words = change(words)
    lengths, joined = np.array([len(group) for group in words]), np.concatenate(counts)
    columns = fast_encode.pack_column(joined), fast_encode.pack_column(lengths)
    payload = np.concatenate(words)
    return build_chunk(codec.decoder.book, array.shape, group_log2, *columns, payload, int(joined.sum()))


@dataclass
class Batch:
    """Coded rows, what decodes them, and what they are."""

    kind: str
    coded: CodedRows
    codecs: list[Any]
    expected: NDArray[Any]

    @property
    def flat(self) -> bytes:
        """The entries of all rows, one behind the other."""
        used = np.arange(SLOTS) < np.diff(self.coded.offsets)[:, None]
        return bytes(self.expected[used].tobytes())


def random_batch(kind: str, seed: int, parts: int = 9, most_log2: int = 1) -> Batch:
    """Rows of chunks of two codebooks and of the exact codec, some read over others, and rows that were never read."""
    generator = np.random.default_rng(seed)
    size = 5 * parts + 3
    target, books = CutRows(size), codecs(kind)
    unused = FORMATS[kind].bits_dtype.type(FORMATS[kind].unused)
    expected = np.full((size, SLOTS), unused)
    for part in range(parts):
        array = array_of(kind, seed + part, int(generator.integers(1, 8)))
        start = int(generator.integers(len(array)))
        stop = int(generator.integers(start, len(array) + 1))
        first = int(generator.integers(size - (stop - start)))
        here = slice(first, first + stop - start)
        choice = int(generator.integers(3))
        if choice < 2:
            chunk = memoryview(chunk_of(books[choice], array, int(generator.integers(most_log2 + 1))))
            target[here].take(books[choice].cut(chunk, len(array), start, stop, verify=True))
            decoded = books[choice].decode(chunk, len(array), use_reference=True)
        else:
            decoded = array
            what: Any = "ids" if kind == "ids" else "values"
            bound = VOCABULARY if kind == "ids" else 0
            chunk = memoryview(encode(array, what, vocab_size=bound))
            decoder = ChunkDecoder(what, array.dtype, SLOTS, bound)
            target[here].take(decoder.cut(chunk, len(array), start, stop, verify=True))
        expected[here] = decoded[start:stop].view(expected.dtype)
    blank = int(generator.integers(size))
    target.blank(blank, blank + 1)
    expected[blank] = unused
    coded = target.joined()
    digests = [] if coded.groups is None else [digest.tobytes() for digest in coded.groups.books]
    by_digest = {codec.decoder.book.digest: codec for codec in books}
    return Batch(kind, coded, [by_digest[digest] for digest in digests], expected)


def has_both(batch: Batch) -> bool:
    """Whether there are rows of both codecs."""
    bits: BitRows | None = batch.coded.bits
    return bits is not None and bool(bits.table[COUNT].any()) and batch.coded.groups is not None
