"""The document files of ``vectors/``: what an encoder writes, what only a hand would write, what breaks each rule."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import google_crc32c
import numpy as np
from craft import reseal

from logitstore.codec import encode
from logitstore.container.document import DocumentHeader, encode_document
from logitstore.container.fields import row_fields
from logitstore.container.row_coder import RowCoder
from logitstore.records import RowBatch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

__all__ = ["invalid_documents", "reseal_document", "spell_document", "valid_documents"]

HEADER = struct.Struct("<8s16sQQIIIHHI")
FIELDS = (
    "magic", "store_id", "document", "first_row", "rows", "slots", "vocab_size", "temperatures", "arrays",
    "table_bytes",
)  # fmt: skip
CODINGS: dict[str, Any] = {
    "tokens": "flat", "ids": "ids", "logprobs": "values", "logits": "values", "lse": "flat", "label_logprob": "flat",
    "mask": "flat", "counts": "values", "lse_T": "flat",
}  # fmt: skip
NO_ID = 0xFFFFFFFF
Chunks = list[tuple[str, int, list[bytes]]]
"""Of each array: its name, rows of a chunk, and chunks."""


@dataclass
class DocumentVector:
    """A document file and what ``NAME.json`` says about it."""

    name: str
    data: bytes
    about: dict[str, Any]


def spell_document(chunks: Chunks, *, table: bytes | None = None, **header: Any) -> bytes:
    """Spell out a document file with a sound checksum; ``table`` and ``header`` replace what belongs there."""
    if table is None:
        entries = (
            struct.pack(f"<16sII{len(parts)}I", name.encode(), chunk_rows, len(parts), *map(len, parts))
            for name, chunk_rows, parts in chunks
        )
        table = b"".join(entries)
        table += bytes(-len(table) % 8)
    fields = {"magic": b"LGTDOC01", "arrays": len(chunks), "table_bytes": len(table)} | header
    head = HEADER.pack(*(fields[name] for name in FIELDS))
    crc = google_crc32c.extend(google_crc32c.value(head), table)
    body = [part + bytes(-len(part) % 8) for _, _, parts in chunks for part in parts]
    return b"".join([head, struct.pack("<I", crc), table, *body])


def reseal_document(data: bytes, **header: Any) -> bytes:
    """Replace header fields of a document file, and its checksum."""
    fields = dict(zip(FIELDS, HEADER.unpack_from(data), strict=True))
    end = HEADER.size + 4 + fields["table_bytes"]
    head = HEADER.pack(*(fields | header).values())
    crc = google_crc32c.extend(google_crc32c.value(head), data[HEADER.size + 4 : end])
    return head + struct.pack("<I", crc) + data[HEADER.size + 4 :]


def _chunks(arrays: dict[str, NDArray[Any]], vocab_size: int, chunk_rows: dict[str, int]) -> Chunks:
    chunks: Chunks = []
    for name, array in arrays.items():
        step, kind = chunk_rows[name], CODINGS[name]
        parts = [array[first : first + step] for first in range(0, len(array), step)]
        bound = vocab_size if kind == "ids" else 0
        chunks.append((name, step, [encode(part, kind, vocab_size=bound) for part in parts]))
    return chunks


def _arrays(
    tokens: Sequence[int], ids: Sequence[Sequence[int]], slots: int, *, values: str = "logprobs", counts: bool = False,
    temperatures: int = 0,
) -> dict[str, NDArray[Any]]:  # fmt: skip
    """Rows with these ids, and made-up numbers that are sums of powers of two."""
    rows = len(tokens)
    used = np.arange(slots) < np.array([len(row) for row in ids])[:, None]
    asked = used[:, 0]
    steps = np.arange(rows * slots).reshape(rows, slots)
    arrays: dict[str, NDArray[Any]] = {
        "tokens": np.array(tokens, np.uint32),
        "ids": np.array([[*row, *[NO_ID] * (slots - len(row))] for row in ids], np.uint32),
        values: np.where(used, -1.5 - steps % 7 / 8, -np.inf).astype(np.float16),
        "lse": np.where(asked, 4 + np.arange(rows) / 4, np.nan).astype(np.float32),
        "label_logprob": np.where(asked & (np.arange(rows) < rows - 1), -1.75, np.nan).astype(np.float32),
        "mask": (asked & (np.arange(rows) < rows - 1)).astype(np.uint8),
    }
    if counts:
        arrays["counts"] = np.where(used, 1 + steps % 3, 0).astype(np.uint8)
    if temperatures:
        scaled = np.arange(rows)[:, None] + np.arange(temperatures) / 2
        arrays["lse_T"] = np.where(asked[:, None], scaled, np.nan).astype(np.float32)
    return arrays


def _about(header: DocumentHeader, arrays: dict[str, NDArray[Any]], why: str) -> dict[str, Any]:
    return {
        "description": why,
        "header": {**header._asdict(), "store_id": header.store_id.hex()},
        "arrays": {
            name: {
                "type": array.dtype.name,
                "columns": array.shape[1] if array.ndim == 2 else None,
                "elements": array.view(f"u{array.itemsize}").tolist(),
            }
            for name, array in arrays.items()
        },
    }


def _encoded(
    name: str, header: DocumentHeader, arrays: dict[str, NDArray[Any]], rows_per_shard: int, why: str
) -> DocumentVector:
    values = "logprobs" if "logprobs" in arrays else "logits"
    fields = row_fields(
        slots=header.slots, vocab_size=header.vocab_size, values=values[:-1], counts="counts" in arrays,
        temperatures=header.temperatures, rows_per_shard=rows_per_shard,
    )  # fmt: skip
    given: dict[str, Any] = {"values" if key == values else key: array for key, array in arrays.items()}
    data = encode_document(header, fields, RowBatch(**given), RowCoder(fields)).data
    return DocumentVector(name, data, {**_about(header, arrays, why), "rows_per_shard": rows_per_shard})


STORE = bytes.fromhex("0123456789abcdef" * 2)
EXAMPLE = DocumentHeader(STORE, 7, 1000, 2, 2, 8, 0)


def _example() -> dict[str, NDArray[Any]]:
    return _arrays([3, 5], [[1, 5], [6]], 2)


def valid_documents() -> Iterator[DocumentVector]:
    """Document files that every reader reads."""
    yield _encoded("worked_example", EXAMPLE, _example(), 262_144, "FORMAT.md section 16")
    smallest = _arrays([0], [[0]], 1)
    yield _encoded("smallest", DocumentHeader(bytes(16), 0, 0, 1, 1, 1, 0), smallest, 1, "one row, one slot, one id")
    rows = [[0, 1, 2], [], [4], [90, 96], [], [1, 95, 96]]
    every = _arrays([96, 0, 4, 9, 9, 1], rows, 3, values="logits", counts=True, temperatures=2)
    about = DocumentHeader(STORE, 1, 5, 6, 3, 97, 2)
    yield _encoded("every_array", about, every, 4, "logits, counts, two temperatures, rows without entries, two chunks")
    masked = _arrays([5, 6, 7], [[], [], []], 4)
    yield _encoded("no_entries", DocumentHeader(STORE, 0, 0, 3, 4, 10, 0), masked, 16, "the teacher was not asked")
    big = _arrays([(1 << 31) - 1], [[151_643, (1 << 31) - 1]], 2)
    largest = DocumentHeader(b"\xff" * 16, (1 << 63) - 1, (1 << 63) - 2, 1, 2, 1 << 31, 0)
    yield _encoded("largest_numbers", largest, big, 1 << 30, "numbers at their limits")

    sizes = {"tokens": 5, "ids": 3, "logits": 2, "lse": 1, "label_logprob": 6, "mask": 1 << 30, "counts": 4, "lse_T": 7}
    data = spell_document(_chunks(every, 97, sizes), **about._asdict())
    why = "chunks of as many rows as nobody would choose, which is allowed"
    yield DocumentVector("other_chunks", data, {**_about(about, every, why), "by_hand": True})


def invalid_documents() -> Iterator[DocumentVector]:
    """Document files that every reader refuses; each breaks the rule it is named after and, if possible, no other."""
    arrays = _example()
    sizes = dict.fromkeys(CODINGS, 2)
    about = EXAMPLE._asdict()
    chunks = _chunks(arrays, 8, sizes)
    sound = spell_document(chunks, **about)
    names = [name for name, _, _ in chunks]

    def spell(changed: Chunks, **header: Any) -> bytes:
        return spell_document(changed, **about | header)

    def without(*absent: str) -> bytes:
        return spell([array for array in chunks if array[0] not in absent])

    def replaced(name: str, *by: tuple[str, int, list[bytes]]) -> bytes:
        at = names.index(name)
        return spell([*chunks[:at], *by, *chunks[at + 1 :]])

    table = sound[64 : 64 + struct.unpack_from("<I", sound, 56)[0]]
    parts = {name: part for name, _, (part,) in chunks}
    logits = _chunks({"logits": arrays["logprobs"]}, 8, sizes)
    lse_T = _chunks({"lse_T": np.zeros((2, 1), np.float32)}, 8, sizes)
    other_rows = encode(np.zeros(3, np.uint32), "flat")
    narrow = encode(np.zeros((2, 1), np.uint32), "ids", vocab_size=8)
    small = encode(np.array([[1, 5], [6, NO_ID]], np.uint32), "ids", vocab_size=7)

    vectors: list[tuple[str, str, bytes, str]] = [
        ("D1", "no_bytes", b"", "nothing"),
        ("D1", "63_bytes", sound[:63], "one byte less than a header"),
        ("D2", "other_magic", reseal_document(sound, magic=b"LGTDOX01"), "another file's magic"),
        ("D2", "a_shard", reseal_document(sound, magic=b"LGSHARD1"), "a shard file of a Zarr store"),
        ("D3", "newer", reseal_document(sound, magic=b"LGTDOC02"), "the next version"),
        ("D4", "table_above_64_mib", reseal_document(sound, table_bytes=(1 << 26) + 8), "a table that is too long"),
        ("D4", "table_of_2_32", reseal_document(sound, table_bytes=(1 << 32) - 8), "a table that is far too long"),
        ("D5", "no_table", sound[:64], "the header alone"),
        ("D5", "short_table", sound[: 64 + len(table) - 1], "one byte of the table is missing"),
        ("D6", "checksum", sound[:60] + bytes([sound[60] ^ 1]) + sound[61:], "a flipped bit of the checksum"),
        ("D6", "header_bit", sound[:24] + bytes([sound[24] ^ 1]) + sound[25:], "a flipped bit of the header"),
        ("D6", "table_bit", sound[:88] + bytes([sound[88] ^ 8]) + sound[89:], "a flipped bit of the table"),
        ("D7", "no_rows", spell([(n, r, []) for n, r, _ in chunks], rows=0), "a document without rows"),
        ("D7", "rows", reseal_document(sound, rows=(1 << 30) + 1), "2^30 + 1 rows"),
        ("D7", "no_slots", reseal_document(sound, slots=0), "no slots"),
        ("D7", "slots_2_31", reseal_document(sound, slots=1 << 31, vocab_size=1 << 31), "2^31 slots"),
        ("D7", "slots_above_vocabulary", reseal_document(sound, slots=9), "9 slots for 8 ids"),
        ("D7", "no_vocabulary", reseal_document(sound, vocab_size=0), "no ids"),
        ("D7", "vocabulary", reseal_document(sound, vocab_size=(1 << 31) + 1), "2^31 + 1 ids"),
        ("D8", "seven_arrays", reseal_document(sound, arrays=7), "a seventh entry is missing"),
        ("D8", "array_of_2_16", reseal_document(sound, arrays=(1 << 16) - 1), "65,529 entries are missing"),
        ("D8", "ends_in_an_entry", spell_document(chunks, table=table[:-8], **about), "the last entry is cut"),
        ("D8", "ends_in_sizes", spell_document([(n, 1, [c, c]) for n, _, (c,) in chunks], table=b"".join(
            struct.pack("<16sIIII", name.encode(), 1, 2, 8, 8) for name in names)[:-4], **about), "a size is cut"),
        ("D8", "longer", spell_document(chunks, table=table + bytes(8), **about), "eight bytes too many"),
        ("D8", "no_padding", spell_document(chunks[:5], table=table[:140], **about), "entries without padding"),
        ("D9", "unknown_array", replaced("mask", ("masks", 2, [parts["mask"]])), "an array that there is not"),
        ("D9", "not_ascii", replaced("mask", ("mäsk", 2, [parts["mask"]])), "a name that is not ASCII"),
        ("D9", "order", spell([chunks[1], chunks[0], *chunks[2:]]), "ids before tokens"),
        ("D9", "twice", replaced("mask", chunks[-1], chunks[-1]), "an array twice"),
        *(("D9", f"no_{name}", without(name), f"no {name}") for name in names),
        ("D9", "both_values", replaced("logprobs", chunks[2], *logits), "log-probabilities and logits"),
        ("D9", "no_arrays", spell([]), "no arrays"),
        ("D9", "no_lse_t", reseal_document(sound, temperatures=1), "a column of lse_T that there is not"),
        ("D9", "lse_t_without_columns", spell([*chunks, *lse_T]), "lse_T where the header says no column"),
        ("D10", "no_chunk_rows", replaced("lse", ("lse", 0, [parts["lse"]])), "chunks of no rows"),
        ("D10", "chunk_rows", replaced("lse", ("lse", (1 << 30) + 1, [parts["lse"]])), "chunks of 2^30 + 1 rows"),
        ("D10", "more_chunks", replaced("lse", ("lse", 2, [parts["lse"]] * 2)), "two chunks of two rows for two rows"),
        ("D10", "fewer_chunks", replaced("lse", ("lse", 1, [parts["lse"]])), "one chunk of one row for two rows"),
        ("D10", "no_chunk", replaced("lse", ("lse", 2, [])), "no chunk for two rows"),
        ("D11", "one_byte_short", sound[:-1], "the last byte is missing"),
        ("D11", "no_chunks", sound[: 64 + len(table)], "all chunks are missing"),
        ("D12", "one_byte_more", sound + b"\0", "a byte too many"),
        ("D13", "empty_chunk", replaced("mask", ("mask", 2, [b""])), "a chunk of no bytes: C1"),
        ("D13", "newer_chunk", replaced("ids", ("ids", 2, [reseal(parts["ids"], magic=b"LGX2")])), "C3"),
        ("D13", "size_of_a_chunk", replaced("mask", ("mask", 2, [parts["mask"] + b"\0"])), "C17"),
        ("D13", "chunk_bit", sound[:-4] + bytes([sound[-4] ^ 1]) + sound[-3:], "C18"),
        ("D13", "rows_of_a_chunk", replaced("tokens", ("tokens", 2, [other_rows])), "three tokens of two: C19"),
        ("D13", "slots_of_a_chunk", replaced("ids", ("ids", 2, [narrow])), "one slot of two: C19"),
        ("D13", "bound_of_a_chunk", replaced("ids", ("ids", 2, [small])), "another vocabulary: C19"),
        ("D13", "other_array", replaced("lse", ("lse", 2, [parts["tokens"]])), "uint32 instead of float32: C19"),
    ]  # fmt: skip
    errors = {"D1": "truncated", "D3": "unsupported", "D5": "truncated", "D11": "truncated"}
    chunk_errors = {"empty_chunk": "truncated", "newer_chunk": "unsupported"}
    for rule, name, data, why in vectors:
        error = errors.get(rule) or chunk_errors.get(name, "corrupt")
        yield DocumentVector(f"{rule.lower()}_{name}", data, {"description": why, "rule": rule, "error": error})
