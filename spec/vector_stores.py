"""The stores of ``vectors/``: two small ones, and edits that break each rule of FORMAT.md section 12."""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any

import google_crc32c
import numpy as np
from craft import reseal

from logitstore.container.manifest import Manifest
from logitstore.container.writer import StoreWriter, prepare_directory
from logitstore.records import RowBatch, TokenDocument

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["STORES", "ShardFile", "beginning", "broken_stores", "made_up_rows", "write_documents", "write_store"]

STORES: dict[str, dict[str, Any]] = {
    "logprob": {"vocab_size": 97, "padded_vocab_size": 128, "slots": 6, "selection": {"top_p": 0.9, "max_k": 6}},
    "logit": {
        "vocab_size": 300, "padded_vocab_size": 300, "slots": 5, "selection": {"top_k": 2, "samples": 3, "seed": 0},
        "values": "logit", "has_counts": True, "temperatures": (0.5, 2.0), "build": {"rows": "masked"},
    },
    "wide": {
        "vocab_size": 151_936, "padded_vocab_size": 152_064, "slots": 65_536, "rows_per_shard": 4,
        "selection": {"top_p": 1.0, "max_k": 65_536},
    },
}  # fmt: skip
"""``wide`` has shards of several chunks, and ids of 18 bits."""
LENGTHS = {"logprob": (1, 17, 30, 5), "logit": (9, 1, 24), "wide": (3, 4)}


def _log_sum_exp(x: NDArray[np.float64]) -> NDArray[np.float32]:
    return np.log(np.exp(x).sum(1)).astype(np.float32)


def made_up_rows(manifest: Manifest, length: int, number: int) -> tuple[TokenDocument, RowBatch]:
    """Rows of a made-up teacher; of every second document the first third is a prompt."""
    generator = np.random.default_rng([manifest.vocab_size, number])
    V, K, drawn = manifest.vocab_size, manifest.slots, manifest.has_counts
    tokens = generator.integers(0, V, length).astype(np.uint32)
    logits = generator.normal(0, 3, (length, V)).astype(np.float32)
    if drawn:  # a bfloat16 teacher
        logits = (logits.view(np.uint32) & 0xFFFF0000).view(np.float32)
    exact = logits.astype(np.float64)
    lse = _log_sum_exp(exact)
    logprobs = exact - lse[:, None]
    mask = np.ones(length, np.uint8)
    mask[-1] = 0
    mask[: length // 3 if number % 2 else 0] = 0
    asked = (mask == 1) | (manifest.build.get("rows") != "masked")
    label = np.full(length, np.nan, np.float32)
    label[:-1] = logprobs[np.arange(length - 1), tokens[1:]]
    ids = np.full((length, K), 0xFFFFFFFF, np.uint32)
    values = np.full((length, K), -np.inf, np.float16)
    counts = np.zeros((length, K), np.uint8)
    lse_T = np.stack([_log_sum_exp(exact / T) for T in manifest.temperatures], 1) if drawn else None
    for row in np.flatnonzero(asked):
        kept = np.sort(np.argsort(-logits[row], kind="stable")[: generator.integers(2, min(K, 8) + 1)])
        ids[row, : len(kept)] = kept
        values[row, : len(kept)] = (logits if drawn else logprobs)[row, kept]
        counts[row, : len(kept)] = np.bincount(generator.integers(0, len(kept), 3), minlength=len(kept))
    for array in (lse, label, lse_T):
        if array is not None:
            array[~asked] = np.nan
    metadata = {"title": "Ünïcode ✓", "position": number} if number else {}
    parent = ("whole", 0) if number == 2 else None
    document = TokenDocument(f"document-{number}", tokens, mask, parent, metadata)
    return document, RowBatch(tokens, ids, values, lse, label, mask, counts if drawn else None, lse_T)


def write_store(path: Path, name: str) -> dict[str, Any]:
    """Write one of `STORES`; see `write_documents`."""
    return write_documents(path, name, STORES[name], LENGTHS[name])


def beginning(name: str, settings: dict[str, Any]) -> Manifest:
    """Return the manifest that a store starts with."""
    settings = {"values": "logprob", "rows_per_shard": 16, "build": {"rows": "all"}, **settings}
    return Manifest(
        store_id=name.encode().hex().ljust(32, "0"), complete=False, teacher={"id": "made up"}, tokenizer={},
        corpus={}, versions={"logitstore": "0.1.0"}, **settings,
    )  # fmt: skip


def write_documents(
    path: Path, name: str, settings: dict[str, Any], lengths: Sequence[int], codebooks: Any = None
) -> dict[str, Any]:
    """Write a store and return what its ``NAME.json`` says: all documents, and the bits of all used elements."""
    manifest = beginning(name, settings)
    prepare_directory(path)
    documents = []
    arrays: dict[str, dict[str, Any]] = {}
    with StoreWriter(path, manifest, codebooks=codebooks) as writer:
        for number, length in enumerate(lengths):
            document, rows = made_up_rows(manifest, length, number)
            writer.append(document, rows)
            about: dict[str, Any] = {"key": document.key, "rows": length, "metadata": document.metadata}
            about["parent"] = document.parent and {"key": document.parent[0], "first_token": document.parent[1]}
            documents.append({k: v for k, v in about.items() if v})
            used = (rows.ids != 0xFFFFFFFF).sum(1)
            for field in manifest.row_fields:
                array = rows.values if field.name in ("logprobs", "logits") else getattr(rows, field.name)
                bits = array.view(f"u{array.dtype.itemsize}").tolist()
                if field.kind in ("ids", "values"):
                    bits = [row[:n] for row, n in zip(bits, used, strict=True)]
                about = {"type": array.dtype.name, "columns": field.columns, "elements": []}
                arrays.setdefault(field.name, about)["elements"] += bits
        writer.finish()
    return {"documents": documents, "arrays": arrays}


def _crc(data: bytes) -> bytes:
    return struct.pack("<I", google_crc32c.value(data))


class ShardFile:
    """A shard file taken apart, to be edited in place with sound checksums."""

    def __init__(self, store: Path, name: str) -> None:
        self.name = name
        self.data = (store / name).read_bytes()

    def put(self, offset: int, data: bytes) -> list[dict[str, Any]]:
        """Write bytes."""
        return [{"file": self.name, "offset": offset, "bytes": data.hex()}]

    def header(self, offset: int, data: bytes) -> list[dict[str, Any]]:
        """Change the shard header and its checksum."""
        head = self.data[:offset] + data + self.data[offset + len(data) : 56]
        return self.put(0, head + _crc(head))

    def frame(self, offset: int, data: bytes, at: int = 64) -> list[dict[str, Any]]:
        """Change a frame header and its checksum."""
        frame = self.data[at : at + 32]
        frame = frame[:offset] + data + frame[offset + len(data) : 28]
        return self.put(at, frame + _crc(frame))

    def index(self, chunks: int, offset: int, data: bytes) -> list[dict[str, Any]]:
        """Change the index and its checksum."""
        start = len(self.data) - 16 * chunks - 4
        index = self.data[start:-4]
        index = index[:offset] + data + index[offset + len(data) :]
        return self.put(start, index + _crc(index))

    def chunk(self, chunk: bytes) -> list[dict[str, Any]]:
        """Replace the first chunk by one of the same length, and its checksum in the frame."""
        return self.frame(24, _crc(chunk)) + self.put(96, chunk)

    @property
    def first_chunk(self) -> bytes:
        """Bytes of the first chunk."""
        return self.data[96 : 96 + struct.unpack_from("<I", self.data, 76)[0]]


def _u32(number: int) -> bytes:
    return struct.pack("<I", number)


def _u64(number: int) -> bytes:
    return struct.pack("<Q", number)


def _manifest_edits() -> Iterator[tuple[str, str, dict[str, Any]]]:
    yield "S3", "other_format", {"format": "parquet"}
    for name, version in {
        "one_number": "1",
        "three_numbers": "1.0.0",
        "words": "one.zero",
        "number": 1.0,
        "arabic_digits": "١.٠",
    }.items():
        yield "S3", f"version_{name}", {"format_version": version}
    yield "S4", "major_2", {"format_version": "2.0"}
    yield "S5", "other_codec", {"codec": {"name": "logitstore.compact", "version": 1}}
    yield "S5", "newer_codec", {"codec": {"name": "logitstore.exact", "version": 2}}
    broken: dict[str, list[Any]] = {
        "codec": ["logitstore.exact"], "store_id": ["ab", "A" * 32, 7], "complete": [1],
        "vocab_size": [0, (1 << 31) + 1, -1, "97", 97.5],
        "padded_vocab_size": [96], "slots": [0, 1 << 31, True], "values": ["probability", None],
        "rows_per_shard": [0, 24, 1 << 31], "selection": [[]], "temperatures": [[0], [-1.0], ["1"], {}, [True]],
        "has_counts": [0], "rows": [-1, 1 << 63], "documents": [54], "entries": [319], "record_bytes": [65537, 511],
        "bytes_by_field": [[], {"ids": -1}], "documents_file": [None, {"bytes": 1}, {"bytes": -1, "sha256": "0" * 64}],
        "shard_table": [None, {"bytes": 1, "sha256": "0" * 64}], "teacher": [None], "tokenizer": ["gpt2"],
        "corpus": [[]], "build": [1], "versions": [{"logitstore": 1}],
    }  # fmt: skip
    for key, values in broken.items():
        for number, value in enumerate(values):
            yield "S6", f"{key}_{number}", {key: value}
    yield "S7", "unfinished", {"complete": False, "documents_file": None, "shard_table": None}


def broken_stores(store: Path) -> Iterator[dict[str, Any]]:
    """Edits of the store ``logprob`` that each break one rule.

    An edit has a ``file`` and one of: ``delete``; ``truncate`` (bytes to keep); ``append`` (hexadecimal) so many
    ``times``; ``offset`` and ``bytes`` (hexadecimal) to write there; ``set`` and ``remove``, keys of a JSON object.
    """
    ids, offsets = ShardFile(store, "ids/c.0.0"), ShardFile(store, "doc_offsets/c.0")
    lines = ShardFile(store, "doc_lines/c.0")
    table, documents = (store / "shards.jsonl").read_bytes(), (store / "documents.jsonl").read_bytes()
    record = json.loads((store / "manifest.json").read_bytes())["record_bytes"]
    size = len(ids.data)

    def one(file: str, **edit: Any) -> list[dict[str, Any]]:
        return [{"file": file, **edit}]

    def in_table(old: bytes, new: bytes) -> list[dict[str, Any]]:
        line = table[:record].replace(old, new, 1)
        assert line != table[:record]
        line = line.rstrip().ljust(record - 1) + b"\n"
        return one("shards.jsonl", offset=0, bytes=line[:record].hex())

    def in_documents(old: bytes, new: bytes) -> list[dict[str, Any]]:
        assert len(old) == len(new)
        return one("documents.jsonl", offset=documents.index(old), bytes=new.hex())

    def raw(file: ShardFile, number: int, value: int) -> list[dict[str, Any]]:
        body = file.first_chunk[:-4]
        body = body[: 8 * number] + _u64(value) + body[8 * number + 8 :]
        return file.chunk(body + _crc(body))

    end = size - 16 - 4
    edits: list[tuple[str, str, str, list[dict[str, Any]]]] = [
        ("S1", "no_manifest", "truncated", one("manifest.json", delete=True)),
        ("S2", "not_json", "corrupt", one("manifest.json", truncate=100)),
        ("S2", "above_16_mib", "corrupt", one("manifest.json", append="20", times=16 << 20)),
        ("S8", "no_array_metadata", "truncated", one("ids/zarr.json", delete=True)),
        ("S9", "not_json", "corrupt", one("lse/zarr.json", truncate=20)),
        ("S9", "shape", "corrupt", one("ids/zarr.json", set={"shape": [52, 6]})),
        ("S9", "document_shape", "corrupt", one("doc_offsets/zarr.json", set={"shape": [4]})),
        ("S9", "fill_value", "corrupt", one("lse/zarr.json", set={"fill_value": 0.0})),
        ("S9", "missing_key", "corrupt", one("mask/zarr.json", remove=["codecs"])),
        ("S9", "more", "corrupt", one("mask/zarr.json", set={"extra": 1})),
        ("S10", "no_table", "truncated", one("shards.jsonl", delete=True)),
        ("S10", "short_table", "truncated", one("shards.jsonl", truncate=len(table) - 1)),
        ("S11", "not_json", "corrupt", in_table(b"{", b"[")),
        ("S11", "rows", "corrupt", in_table(b'"rows":16', b'"rows":15')),
        ("S11", "shard", "corrupt", in_table(b'"shard":0', b'"shard":1')),
        ("S11", "first_row", "corrupt", in_table(b'"first_row":0', b'"first_row":16')),
        ("S11", "array_is_missing", "corrupt", in_table(b'"ids"', b'"idz"')),
        ("S11", "files_is_missing", "corrupt", in_table(b'"files"', b'"filez"')),
        ("S12", "no_file", "truncated", one(ids.name, delete=True)),
        ("S12", "empty", "truncated", one(ids.name, truncate=0)),
        ("S12", "shorter", "truncated", one(ids.name, truncate=size - 1)),
        ("S13", "longer", "corrupt", one(ids.name, append="00", times=1)),
        ("S14", "magic", "corrupt", ids.header(0, b"LGSHARD2")),
        ("S14", "checksum", "corrupt", ids.put(50, b"\1")),
        ("S15", "store", "corrupt", ids.header(8, b"other store's id")),
        ("S15", "array", "corrupt", ids.header(24, b"tokens")),
        ("S15", "shard", "corrupt", ids.header(40, _u32(1))),
        ("S15", "rows", "corrupt", ids.header(44, _u32(15))),
        ("S15", "first_row", "corrupt", ids.header(48, _u64(16))),
        ("S16", "index_checksum", "corrupt", ids.put(end + 1, b"\xff")),
        ("S17", "before_the_frames", "corrupt", ids.index(1, 0, _u64(8))),
        ("S17", "behind_the_frames", "corrupt", ids.index(1, 8, _u64(size))),
        ("S17", "offset_of_2_63", "corrupt", ids.index(1, 0, _u64(1 << 63))),
        ("S17", "sum_of_2_64", "corrupt", ids.index(1, 0, _u64((1 << 64) - 96) + _u64(192))),
        ("S17", "no_chunk", "corrupt", ids.index(1, 0, b"\xff" * 16)),
        ("S17", "chunk_behind_the_end", "corrupt", offsets.index(64, 16, _u64(96) + _u64(60))),
        ("S18", "magic", "corrupt", ids.frame(0, b"LGFS")),
        ("S18", "checksum", "corrupt", ids.put(64 + 17, b"\1")),
        ("S18", "shard", "corrupt", ids.frame(4, _u32(1))),
        ("S18", "chunk", "corrupt", ids.frame(8, _u32(1))),
        ("S18", "bytes", "corrupt", ids.frame(12, _u32(60))),
        ("S18", "first_row", "corrupt", ids.frame(16, _u64(1))),
        ("S19", "chunk_bit", "corrupt", ids.put(160, bytes([ids.data[160] ^ 4]))),
        ("S20", "raw_chunk", "corrupt", offsets.frame(12, _u32(8192) + _u64(0) + _crc(offsets.first_chunk[:8192]))
         + offsets.index(64, 8, _u64(8192))),
        ("S21", "c8", "corrupt", ids.chunk(reseal(ids.first_chunk, shifts_width=6))),
        ("S21", "c3", "unsupported", ids.chunk(reseal(ids.first_chunk, magic=b"LGX2"))),
        ("S21", "c19", "corrupt", ids.chunk(reseal(ids.first_chunk, bound=98))),
        ("S22", "no_documents", "truncated", one("documents.jsonl", delete=True)),
        ("S23", "not_json", "corrupt", in_documents(b"{", b"[")),
        ("S23", "no_key", "corrupt", in_documents(b'"key"', b'"kez"')),
        ("S23", "no_rows", "corrupt", in_documents(b'"rows"', b'"rowz"')),
        ("S23", "rows_is_a_string", "corrupt", in_documents(b'"rows":17', b'"rows":"]')),
        ("S23", "parent_without_key", "corrupt", in_documents(b'"key":"whole"', b'"kez":"whole"')),
        ("S23", "metadata", "corrupt", in_documents(b'{"position":2,', b'["position",2,')),
        ("S24", "other_rows", "corrupt", in_documents(b'"rows":17', b'"rows":18')),
        ("S24", "offsets_fall", "corrupt", raw(offsets, 2, 0)),
        ("S24", "offset_outside", "corrupt", raw(offsets, 4, 1 << 40)),
        ("S24", "negative_offset", "corrupt", raw(offsets, 0, (1 << 64) - 1)),
        ("S24", "lines_fall", "corrupt", raw(lines, 2, 0)),
        ("S24", "line_outside", "corrupt", raw(lines, 4, 1 << 40)),
    ]  # fmt: skip
    kinds = {"S4": "unsupported", "S5": "unsupported", "S7": "truncated"}
    edits += [
        (rule, name, kinds.get(rule, "corrupt"), one("manifest.json", set=keys))
        for rule, name, keys in _manifest_edits()
    ]
    missing = (
        key for key in json.loads((store / "manifest.json").read_bytes()) if not key.startswith(("format", "codec"))
    )
    edits += [("S6", f"no_{key}", "corrupt", one("manifest.json", remove=[key])) for key in missing]
    for rule, name, error, changes in edits:
        yield {"name": f"{rule.lower()}_{name}", "rule": rule, "error": error, "store": "logprob", "edits": changes}
