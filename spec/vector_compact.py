"""Codebooks and chunks of the compact codec for ``vectors/compact/``, valid and invalid.

``NAME.json`` says what ``NAME.bin`` is, and which ``books/BOOK.bin`` it is read with.
"""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import google_crc32c
import numpy as np

from logitstore.codec import fast_encode
from logitstore.codec.compact import IdBook, IdCodec, ValueBook, ValueCodec, train_ids, train_values
from logitstore.codec.compact.chunk import build_chunk
from logitstore.codec.compact.reference import encode_group, encode_number, encode_values
from logitstore.codec.compact.symbols import SymbolCode

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from logitstore.codec.compact import Codebook

NO_ID = 0xFFFFFFFF
SLOTS, VOCABULARY = 10, 200
WIDE_SLOTS, WIDE_VOCABULARY = 140, 100_000


def rows_of_topics(seed: int, number: int) -> tuple[NDArray[np.uint32], NDArray[np.float16]]:
    """Rows whose ids mostly come from one of three topics, of all lengths, and log-probabilities."""
    generator = np.random.default_rng(seed)
    ids = np.full((number, SLOTS), NO_ID, np.uint32)
    values = np.full((number, SLOTS), -np.inf, np.float16)
    for row in range(number):
        count = int(generator.integers(0, SLOTS + 1)) if row % 3 == 0 else SLOTS
        topic = 60 * generator.integers(3) + np.arange(14)
        pool = np.union1d(topic, generator.choice(VOCABULARY, 3, replace=False))
        ids[row, :count] = np.sort(generator.choice(pool, count, replace=False))
        values[row, :count] = -np.abs(generator.normal(4, 2, count))
    return ids, values


def make_books() -> dict[str, Codebook]:
    """Codebooks of all kinds."""
    ids, values = rows_of_topics(1, 400)
    book = train_ids(ids, vocab_size=VOCABULARY, max_classes=3)
    values = np.take_along_axis(values, IdCodec(book, SLOTS).arrange(ids).order, 1)
    counts = np.rint(50 * np.exp(values.astype(np.float64))).clip(0, 255).astype(np.uint8)
    sure = SymbolCode(np.zeros(2, np.uint32), np.zeros(1, np.uint32), np.array([[0, 1024]], np.uint32))
    rare = SymbolCode(np.zeros(2, np.uint32), np.zeros(64, np.uint32), np.array([[1, 1023]], np.uint32))
    return {
        "ids": book,
        "ids_second_table": replace(
            book, class_code=with_a_table_before(book.class_code), miss_code=with_a_table_before(book.miss_code)
        ),
        "rare": ValueBook(2, np.array([7, 9], np.uint32), np.empty(0, np.uint32), sure, rare),
        "lossless": train_values(values),
        "max_kl": train_values(values, max_kl=1e-3),
        "max_error": train_values(values, max_error=0.25),
        "counts": train_values(counts),
        "wide_ids": train_ids(wide_rows(1), vocab_size=WIDE_VOCABULARY, max_classes=2),
    }


def with_a_table_before(code: SymbolCode) -> SymbolCode:
    """Return the same code; its only context has the second of two tables."""
    other = np.roll(code.frequencies, 1, axis=1)
    return SymbolCode(code.widths, np.array([1], np.uint32), np.vstack([other, code.frequencies]))


def wide_rows(seed: int) -> NDArray[np.uint32]:
    """Rows of many ids that are in no list, of all ranks there are."""
    generator = np.random.default_rng(seed)
    counts = [0, 1, 2, 5, 9, 17, 33, 65, 130, WIDE_SLOTS]
    ids = np.full((len(counts), WIDE_SLOTS), NO_ID, np.uint32)
    for row, count in zip(ids, counts, strict=True):
        row[:count] = np.sort(generator.choice(WIDE_VOCABULARY, count, replace=False))
    return ids


def valid_chunks(books: dict[str, Any]) -> Iterator[tuple[str, str, bytes, NDArray[Any]]]:
    """Name, codebook, bytes and elements of chunks that every decoder reads."""
    codec = IdCodec(books["ids"], SLOTS)
    ids, values = rows_of_topics(2, 24)
    far = np.full((3, SLOTS), NO_ID, np.uint32)
    far[0], far[2, :3] = np.arange(190, 200), [199, 0, 140]
    for name, rows in (("ids", ids), ("ids_no_rows", ids[:0]), ("ids_empty_rows", far[1:2]), ("ids_misses", far)):
        arranged = codec.arrange(rows)
        yield name, "ids", codec.encode(arranged), arranged.ids
    second = IdCodec(books["ids_second_table"], SLOTS)
    yield "ids_second_table", "ids_second_table", second.encode(second.arrange(ids)), second.arrange(ids).ids
    many = codec.arrange(np.tile(ids, (10, 1)))
    yield "ids_groups", "ids", codec.encode(many), many.ids
    wide = IdCodec(books["wide_ids"], WIDE_SLOTS)
    rows = wide.arrange(wide_rows(2))
    yield "ids_wide", "wide_ids", wide.encode(rows), rows.ids
    values = np.take_along_axis(values, codec.arrange(ids).order, 1)
    special = values[:3].copy()
    special.view(np.uint16)[1, :8] = [0x0000, 0x8000, 0x0001, 0x7C00, 0xFC00, 0x7E01, 0xFBFF, 0x3C00]
    for kind in ("lossless", "max_kl", "max_error"):
        coder = ValueCodec(books[kind], SLOTS)
        for name, array in (("", values), ("_special", special), ("_no_rows", values[:0])):
            chunk = coder.encode(array)
            yield f"{kind}{name}", kind, chunk, coder.decode(chunk, len(array))
    counts = np.rint(50 * np.exp(values.astype(np.float64))).clip(0, 255).astype(np.uint8)
    yield "counts", "counts", ValueCodec(books["counts"], SLOTS).encode(counts), counts


def reseal(data: bytes, edits: dict[int, bytes]) -> bytes:
    """Overwrite bytes and set the checksum right."""
    body = bytearray(data[:-4])
    for offset, new in edits.items():
        body[offset : offset + len(new)] = new
    return bytes(body) + google_crc32c.value(bytes(body)).to_bytes(4, "little")


def by_hand(book: Codebook, count: int, numbers: Sequence[tuple[Any, int, int]], extra: Sequence[int] = ()) -> bytes:
    """Make a chunk of one row from numbers ``(code, context, number)``, with words too many."""
    coded = [encode_number(*number) for number in numbers]
    parts = [number[0] for number in coded if number]
    raws = [number[1] for number in coded if number and number[1][1]]
    words = np.array([*encode_group(parts, raws), *extra], np.uint16)
    columns = [fast_encode.pack_column(np.array([number])) for number in (count, len(words))]
    return build_chunk(book, (1, SLOTS), 0, columns[0], columns[1], words, count)


def invalid_chunks(books: dict[str, Any]) -> Iterator[tuple[str, str, str, str, bytes, list[int]]]:
    """Rule, error, name, codebook, bytes and expected shape of chunks that every decoder refuses."""
    ids, values = books["ids"], books["max_error"]
    good = IdCodec(ids, SLOTS).encode(IdCodec(ids, SLOTS).arrange(rows_of_topics(2, 24)[0]))
    shape = [24, SLOTS]
    u32 = struct.Struct("<I").pack
    yield "K1", "truncated", "67_bytes", "ids", good[:67], shape
    yield "K2", "corrupt", "magic", "ids", reseal(good, {0: b"LGX1"}), shape
    yield "K3", "unsupported", "newer", "ids", reseal(good, {0: b"LGC2"}), shape
    headers = {
        "kind": {4: b"\3"}, "type": {5: b"\2"}, "group_log2": {6: b"\13"}, "rows": {8: u32((1 << 30) + 1)},
        "slots": {12: u32(0)}, "bound": {16: u32(0)}, "counts_width": {44: b"\41"}, "payload": {48: u32(1)},
    }  # fmt: skip
    for name, edits in headers.items():
        yield "K4", "corrupt", name, "ids", reseal(good, edits), shape
    yield "K5", "truncated", "one_byte_short", "ids", good[:-1], shape
    yield "K5", "corrupt", "one_byte_more", "ids", good + b"\0", shape
    yield "K6", "corrupt", "flipped_bit", "ids", good[:70] + bytes([good[70] ^ 1]) + good[71:], shape
    yield "K7", "corrupt", "other_rows", "ids", good, [25, SLOTS]
    yield "K7", "corrupt", "other_kind", "lossless", good, shape
    yield "K8", "corrupt", "other_codebook", "ids", reseal(good, {20: bytes(16)}), shape
    yield "K9", "corrupt", "entries", "ids", reseal(good, {52: u32(1)}), shape
    yield "K9", "corrupt", "lengths", "ids", reseal(good, {40: u32(1)}), shape
    one = [(ids.class_code, 0, 0), (ids.miss_code, 0, 1), (ids.gap_code, 0, 5)]
    yield "K10", "corrupt", "a_word_more", "ids", by_hand(ids, 1, one, [0]), [1, SLOTS]
    yield "K10", "corrupt", "another_state", "ids", by_hand(ids, 1, [*one, (ids.miss_code, 0, 0)]), [1, SLOTS]
    # The word that is left out is 0; the row without entries that follows takes no bits.
    numbers = encode_values(books["rare"], [0, 0], [7, 7])
    words = np.array(encode_group([number[0] for number in numbers if number], [])[:-1], np.uint16)
    columns = [fast_encode.pack_column(np.array(column)) for column in ([2, 0], [len(words)])]
    chunk = build_chunk(books["rare"], (2, 2), 1, columns[0], columns[1], words, 2)
    yield "K10", "corrupt", "without_its_last_word", "rare", chunk, [2, 2]
    rows = {
        "class": (1, [(ids.class_code, 0, ids.classes), *one[1:]]),
        "misses": (1, [(ids.class_code, 0, 0), (ids.miss_code, 0, 2)]),
        "rank": (1, [*one[:2], (ids.gap_code, 0, VOCABULARY)]),
        "ids": (1, [(ids.class_code, 0, 0), (ids.miss_code, 0, 0), (ids.nibble_code, 0, 15)]),
    }
    for name, (count, numbers) in rows.items():
        yield "K11", "corrupt", name, "ids", by_hand(ids, count, numbers), [1, SLOTS]
    level = [(values.base_code, 0, len(values.levels)), (values.delta_code, 64 * len(values.bounds), 1)]
    yield "K12", "corrupt", "level", "max_error", by_hand(values, 1, level), [1, SLOTS]


def invalid_books(books: dict[str, Any]) -> Iterator[tuple[str, str, str, bytes]]:
    """Rule, error, name and bytes of codebooks that every reader refuses."""
    ids: IdBook = books["ids"]
    values: ValueBook = books["max_kl"]
    blob, code = ids.blob, ids.nibble_code
    yield "K1", "truncated", "47_bytes", blob[:47]
    yield "K2", "corrupt", "magic", reseal(blob, {0: b"LGSHARD1"})
    yield "K3", "unsupported", "newer", reseal(blob, {7: b"2"})
    yield "K6", "corrupt", "flipped_bit", blob[:90] + bytes([blob[90] ^ 1]) + blob[91:]
    yield "K4", "corrupt", "kind", reseal(blob, {8: b"\3"})
    yield "K4", "corrupt", "vocabulary", reseal(blob, {12: struct.pack("<I", 0)})
    yield "K4", "corrupt", "classes", reseal(blob, {16: struct.pack("<I", 0)})
    yield "K13", "corrupt", "sizes", reseal(blob, {44: struct.pack("<I", 65)})
    yield "K13", "corrupt", "other_vocabulary", reseal(blob, {12: struct.pack("<I", 20)})
    listed = ids.listed.copy()
    listed[-1] = VOCABULARY
    yield "K13", "corrupt", "rank", replace(ids, listed=listed).blob
    twice = ids.order.copy()
    sizes = np.array([1, 1], np.uint32)
    twice[:2] = 7
    yield "K13", "corrupt", "twice_in_order", replace(ids, order=twice, order_sizes=sizes).blob
    wrong = code.frequencies.copy()
    wrong[0, 0] += 1
    yield "K13", "corrupt", "sum", replace(ids, nibble_code=replace(code, frequencies=wrong)).blob
    contexts = code.contexts.copy()
    contexts[0] = len(code.frequencies)
    yield "K13", "corrupt", "table", replace(ids, nibble_code=replace(code, contexts=contexts)).blob
    widths = code.widths.copy()
    widths[3] = 1
    yield "K13", "corrupt", "nibble", replace(ids, nibble_code=replace(code, widths=widths)).blob
    widths = values.delta_code.widths.copy()
    widths[0] = 33
    yield "K13", "corrupt", "escape_first", replace(values, delta_code=replace(values.delta_code, widths=widths)).blob
    yield "K13", "corrupt", "bounds", replace(values, bounds=values.bounds[::-1].copy()).blob


def compact_files() -> Iterator[tuple[str, bytes]]:
    """Yield name and content of every file of ``vectors/compact/``."""

    def files(place: str, data: bytes, about: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
        yield f"{place}.bin", data
        lines = ",\n".join(f" {json.dumps(key)}: {json.dumps(value)}" for key, value in about.items())
        yield f"{place}.json", f"{{\n{lines}\n}}\n".encode()

    books = make_books()
    for name, book in books.items():
        about = {"kind": book.kind, "type": book.dtype, "digest": book.digest.hex()}
        yield from files(f"books/{name}", book.blob, about)
    for name, used, chunk, elements in valid_chunks(books):
        bits = np.ascontiguousarray(elements).view(f"u{elements.itemsize}")
        yield from files(f"valid/{name}", chunk, {"book": used, "shape": list(bits.shape), "elements": bits.tolist()})
    for rule, error, name, used, chunk, shape in invalid_chunks(books):
        about = {"rule": rule, "error": error, "book": used, "shape": shape}
        yield from files(f"invalid/{rule.lower()}_{name}", chunk, about)
    for rule, error, name, data in invalid_books(books):
        yield from files(f"invalid_books/{rule.lower()}_{name}", data, {"rule": rule, "error": error})
