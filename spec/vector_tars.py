"""The stores in tar shards of ``vectors/``, and edits that break each rule of FORMAT.md section 12 about them."""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any

import google_crc32c
from craft import reseal
from vector_documents import reseal_document
from vector_stores import write_documents

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["TAR_STORES", "broken_tar_stores", "write_tar_store"]

TAR_STORES: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "plain": (
        {"vocab_size": 97, "padded_vocab_size": 128, "slots": 6, "selection": {"top_p": 0.9, "max_k": 6}},
        (1, 17, 30, 5, 2),
    ),
    "drawn": (
        {
            "vocab_size": 300, "padded_vocab_size": 300, "slots": 5, "values": "logit", "rows_per_shard": 4,
            "selection": {"top_k": 2, "samples": 3, "seed": 0}, "has_counts": True, "temperatures": (0.5, 2.0),
            "build": {"rows": "masked"}, "shard_bytes": 4096,
        },
        (9, 1, 24),
    ),
    "nothing": ({"vocab_size": 9, "padded_vocab_size": 9, "slots": 1, "selection": {"top_k": 1}}, ()),
}  # fmt: skip
"""Settings and the documents' lengths.

``plain`` has shards of several documents; in ``drawn`` documents have several chunks, and one is above ``shard_bytes``.
"""

RECORD = struct.Struct("<IIQQQQIIIIII")
KEYS = (
    "shard", "rows", "first_row", "offset", "size", "line_offset", "line_size", "json_size", "crc", "json_crc", "zero",
)  # fmt: skip
BLOCK = 512


def write_tar_store(path: Path, name: str) -> dict[str, Any]:
    """Write one of `TAR_STORES` and return what its ``NAME.json`` says."""
    settings, lengths = TAR_STORES[name]
    return write_documents(path, name, {"container": "webdataset", "shard_bytes": 8192, **settings}, lengths)


def _crc(data: bytes) -> bytes:
    return struct.pack("<I", google_crc32c.value(data))


Edits = list[dict[str, Any]]


def _one(file: str, **edit: Any) -> Edits:
    return [{"file": file, **edit}]


class _Parts:
    """A store taken apart, to be edited in place with sound checksums."""

    def __init__(self, store: Path) -> None:
        self.store = store
        self.manifest = json.loads((store / "manifest.json").read_bytes())
        self.index_bytes = (store / "documents.idx").read_bytes()
        self.table = (store / "shards.jsonl").read_bytes()
        self.lines = (store / "documents.jsonl").read_bytes()

    def index(self, document: int) -> dict[str, int]:
        """Return a record of the index."""
        return dict(zip(KEYS, RECORD.unpack_from(self.index_bytes, 64 * document)[:-1], strict=True))

    def tar(self, document: int) -> str:
        """Return the name of a document's tar."""
        return f"shard-{self.index(document)['shard']:06d}.tar"

    def in_index(self, document: int, **changes: int) -> Edits:
        """Change a record of the index and its checksum."""
        raw = RECORD.pack(*(self.index(document) | changes).values(), 0)[:-4]
        return _one("documents.idx", offset=64 * document, bytes=(raw + _crc(raw)).hex())

    def in_table(self, old: bytes, new: bytes) -> Edits:
        """Change the first record of the shard table."""
        size = self.manifest["record_bytes"]
        line = self.table[:size].replace(old, new, 1)
        assert line != self.table[:size]
        return _one("shards.jsonl", offset=0, bytes=line.rstrip().ljust(size - 1).hex() + "0a")

    def in_lines(self, old: bytes, new: bytes) -> Edits:
        """Change the lines of documents."""
        assert len(old) == len(new)
        return _one("documents.jsonl", offset=self.lines.index(old), bytes=new.hex())

    def document(self, document: int) -> bytes:
        """Return a document file."""
        index = self.index(document)
        return (self.store / self.tar(document)).read_bytes()[index["offset"] :][: index["size"]]

    def in_document(self, document: int, data: bytes) -> Edits:
        """Replace a document file by one of the same length."""
        assert len(data) == self.index(document)["size"]
        at = self.index(document)["offset"]
        old = self.document(document)
        first = next(i for i, pair in enumerate(zip(old, data, strict=True)) if pair[0] != pair[1])
        last = next(i for i in reversed(range(len(old))) if old[i] != data[i])
        return _one(self.tar(document), offset=at + first, bytes=data[first : last + 1].hex())

    def json_at(self, document: int) -> int:
        """Return the first byte of a document's ``.json`` in its tar."""
        index = self.index(document)
        return index["offset"] - BLOCK - -(-index["json_size"] // BLOCK) * BLOCK

    def in_json(self, document: int, old: bytes, new: bytes) -> Edits:
        """Change what a ``.json`` member says, its length unchanged."""
        assert len(old) == len(new)
        at = self.json_at(document)
        about = (self.store / self.tar(document)).read_bytes()[at:][: self.index(document)["json_size"]]
        return _one(self.tar(document), offset=at + about.index(old), bytes=new.hex())

    def in_header(self, document: int, offset: int, data: bytes) -> Edits:
        """Change the tar header of a document file, and its checksum."""
        at = self.index(document)["offset"] - BLOCK
        head = bytearray((self.store / self.tar(document)).read_bytes()[at:][:BLOCK])
        head[offset : offset + len(data)] = data
        head[148:156] = b" " * 8
        head[148:156] = b"%06o\0 " % sum(head)
        return _one(self.tar(document), offset=at, bytes=head.hex())


def _first_chunk(data: bytes, name: bytes) -> int:
    """Return where the first chunk of an array of a document file begins."""
    position, offset = 64, 64 + struct.unpack_from("<I", data, 56)[0]
    while True:
        found, _, chunks = struct.unpack_from("<16sII", data, position)
        if found.rstrip(b"\0") == name:
            return int(offset)
        sizes = struct.unpack_from(f"<{chunks}I", data, position + 24)
        offset += sum(-(-size // 8) * 8 for size in sizes)
        position += 24 + 4 * chunks


def _manifest_edits(p: _Parts) -> Iterator[tuple[str, str, str, str, Edits]]:
    def one(rule: str, name: str, error: str, **edit: Any) -> tuple[str, str, str, str, Edits]:
        return rule, name, error, "both", _one("manifest.json", **edit)

    bytes_ = p.manifest["index_file"]["bytes"]
    table = p.manifest["shard_table"]
    broken: dict[str, list[Any]] = {
        "container": [7, None], "shard_bytes": [-1, "8192", None],
        "index_file": [None, [], {"bytes": bytes_}, {"bytes": bytes_ + 64, "sha256": "0" * 64}],
        "shard_table": [{**table, "bytes": table["bytes"] + 1}, {**table, "bytes": 0}],
    }  # fmt: skip
    for key, values in broken.items():
        for number, value in enumerate(values):
            yield one("S6", f"{key}_{number}", "corrupt", set={key: value})
    for key in ("container", "shard_bytes", "index_file", "documents", "shard_table"):
        yield one("S6", f"no_{key}", "corrupt", remove=[key])
    yield one("S7", "unfinished", "truncated", set={"complete": False, "index_file": None, "shard_table": None})
    yield one("S25", "other_container", "unsupported", set={"container": "parquet"})
    yield one("S25", "no_container_name", "unsupported", set={"container": ""})


def broken_tar_stores(store: Path) -> Iterator[dict[str, Any]]:
    """Edits of the store ``plain`` that each break one rule; see `vector_stores.broken_stores`.

    ``noticed_by`` says who has to notice: who reads by the ``"index"``, who reads the ``"tars"``, or ``"both"``.
    """
    p = _Parts(store)
    last = len(p.index_bytes) // 64 - 1
    one, index, table, header = _one, p.in_index, p.in_table, p.in_header
    first = p.document(0)
    tar = p.tar(1)
    tar_bytes = (store / tar).stat().st_size
    rows = p.manifest["rows"]
    digest = json.loads(p.table[: p.manifest["record_bytes"]])["files"]["tar"]["sha256"].encode()
    ids = _first_chunk(first, b"ids")
    size = struct.unpack_from("<I", first, 64 + 28 + 24)[0]
    newer = reseal(first[ids : ids + size], magic=b"LGX2")
    bound = reseal(first[ids : ids + size], bound=98)

    def chunk(data: bytes) -> Edits:
        return p.in_document(0, first[:ids] + data + first[ids + size :])

    def whole(document: int) -> bytes:
        return (store / p.tar(document)).read_bytes()

    def exchanged() -> Edits:
        """Exchange both documents of the first shard, which are sound as they are."""
        data, a, b = whole(0), p.json_at(0) - BLOCK, p.json_at(1) - BLOCK
        return one(p.tar(0), offset=0, bytes=(data[b:-1024] + data[a:b]).hex())

    def other(**fields: Any) -> Edits:
        return p.in_document(0, reseal_document(first, **fields))

    edits: list[tuple[str, str, str, str, Edits]] = [
        ("S1", "no_manifest", "truncated", "both", one("manifest.json", delete=True)),
        *_manifest_edits(p),
        ("S10", "no_table", "truncated", "both", one("shards.jsonl", delete=True)),
        ("S10", "short_table", "truncated", "both", one("shards.jsonl", truncate=len(p.table) - 1)),
        ("S11", "not_json", "corrupt", "both", table(b"{", b"[")),
        ("S11", "shard", "corrupt", "both", table(b'"shard":0', b'"shard":1')),
        ("S11", "no_tar", "corrupt", "both", table(b'"tar"', b'"tax"')),
        ("S11", "bytes_is_a_string", "corrupt", "both", table(b'"bytes":6656', b'"bytes":"66"')),
        ("S11", "no_documents", "corrupt", "both", table(b'"documents"', b'"documentz"')),
        ("S11", "first_document", "corrupt", "tars", table(b'"first_document":0', b'"first_document":1')),
        ("S11", "first_row", "corrupt", "tars", table(b'"first_row":0', b'"first_row":1')),
        ("S12", "no_tar", "truncated", "both", one(tar, delete=True)),
        ("S12", "empty", "truncated", "both", one(tar, truncate=0)),
        ("S12", "shorter", "truncated", "both", one(tar, truncate=tar_bytes - 1)),
        ("S13", "longer", "corrupt", "both", one(tar, append="00", times=512)),
        ("S22", "no_documents", "truncated", "index", one("documents.jsonl", delete=True)),
        ("S23", "not_json", "corrupt", "index", p.in_lines(b"{", b"[")),
        ("S23", "no_key", "corrupt", "index", p.in_lines(b'"key"', b'"kez"')),
        ("S23", "parent_without_key", "corrupt", "index", p.in_lines(b'"key":"whole"', b'"kez":"whole"')),
        ("S24", "other_rows", "corrupt", "index", p.in_lines(b'"rows":17', b'"rows":18')),
        ("T1", "no_index", "truncated", "index", one("documents.idx", delete=True)),
        ("T1", "short_index", "truncated", "index", one("documents.idx", truncate=len(p.index_bytes) - 1)),
        ("T1", "empty_index", "truncated", "index", one("documents.idx", truncate=0)),
        ("T1", "short_lines", "truncated", "index", one("documents.jsonl", truncate=len(p.lines) - 1)),
        ("T2", "long_index", "corrupt", "index", one("documents.idx", append="00", times=64)),
        ("T2", "long_lines", "corrupt", "index", one("documents.jsonl", append="0a", times=1)),
        ("T3", "checksum", "corrupt", "index", one("documents.idx", offset=64 + 60, bytes="00")),
        ("T3", "bit", "corrupt", "index", one("documents.idx", offset=64 * 2 + 8, bytes="ff")),
        ("T4", "no_rows", "corrupt", "index", index(1, rows=0)),
        ("T4", "too_many_rows", "corrupt", "index", index(last, rows=p.index(last)["rows"] + 1)),
        ("T4", "too_few_rows", "corrupt", "index", index(last, rows=p.index(last)["rows"] - 1)),
        ("T4", "all_rows", "corrupt", "index", index(0, rows=rows)),
        ("T4", "first_row_of_2_63", "corrupt", "index", index(1, first_row=1 << 63)),
        ("T4", "sum_of_2_64", "corrupt", "index", index(1, first_row=(1 << 64) - 16)),
        ("T5", "line_behind_the_end", "corrupt", "index", index(last, line_size=p.index(last)["line_size"] + 1)),
        ("T5", "line_at_2_64", "corrupt", "index", index(1, line_offset=(1 << 64) - 8)),
        ("T5", "no_line", "corrupt", "index", index(1, line_size=0)),
        ("T6", "shard", "corrupt", "index", index(1, shard=1 << 20)),
        ("T6", "shard_of_2_32", "corrupt", "index", index(1, shard=(1 << 32) - 1)),
        ("T7", "behind_the_tar", "corrupt", "index", index(1, size=tar_bytes)),
        ("T7", "offset_of_2_64", "corrupt", "index", index(1, offset=(1 << 64) - 1)),
        ("T8", "d1", "truncated", "index", index(1, size=63)),
        ("T8", "d2", "corrupt", "index", index(1, offset=p.index(1)["offset"] - BLOCK)),
        ("T8", "d3", "unsupported", "both", other(magic=b"LGTDOC02")),
        ("T8", "d6", "corrupt", "both", p.in_document(0, first[:60] + bytes([first[60] ^ 1]) + first[61:])),
        ("T8", "d11", "truncated", "index", index(1, size=p.index(1)["size"] - 8)),
        ("T8", "d12", "corrupt", "index", index(1, size=p.index(1)["size"] + 8)),
        ("T8", "d13", "corrupt", "both", chunk(first[ids:][: size - 1] + bytes([first[ids + size - 1] ^ 1]))),
        ("T8", "d13_newer", "unsupported", "both", chunk(newer)),
        ("T8", "d13_bound", "corrupt", "both", chunk(bound)),
        ("T9", "store", "corrupt", "both", other(store_id=b"other store's id")),
        ("T9", "document", "corrupt", "both", other(document=1)),
        ("T9", "first_row", "corrupt", "both", other(first_row=1)),
        ("T9", "vocabulary", "corrupt", "both", other(vocab_size=98)),
        ("T9", "slots", "corrupt", "both", other(slots=7)),
        ("T9", "arrays", "corrupt", "both", p.in_document(0, reseal_document(
            first.replace(b"logprobs" + bytes(8), b"logits" + bytes(10))))),
        ("T9", "another_document", "corrupt", "index", index(
            1, **{key: p.index(0)[key] for key in ("shard", "offset", "size", "json_size", "crc", "json_crc")})),
        ("T9", "rows", "corrupt", "index", index(2, rows=p.index(2)["rows"] - 1) + p.in_lines(
            b'"rows":30', b'"rows":29')),
        ("T10", "checksum", "corrupt", "tars", one(p.tar(0), offset=148, bytes=b"7".hex())),
        ("T10", "folder", "corrupt", "tars", header(0, 156, b"5")),
        ("T10", "long_name", "corrupt", "tars", header(0, 156, b"L")),
        ("T10", "old_tar", "corrupt", "tars", header(0, 257, bytes(8))),
        ("T10", "gnu_tar", "corrupt", "tars", header(0, 257, b"ustar  \0")),
        ("T10", "size_in_256s", "corrupt", "tars", header(0, 124, b"\x80" + bytes(9) + b"\2\x80")),
        ("T10", "size_in_words", "corrupt", "tars", header(0, 124, b"many bytes!\0")),
        ("T11", "no_document", "truncated", "tars", one(p.tar(0), offset=0, bytes=bytes(BLOCK).hex())),
        ("T11", "no_second_document", "truncated", "tars", one(
            p.tar(1), offset=p.json_at(1) - BLOCK, bytes=bytes(BLOCK).hex())),
        ("T11", "size_behind_the_end", "truncated", "tars", header(last, 124, b"00000100000\0")),
        ("T12", "key", "corrupt", "tars", header(1, 9, b"2")),
        ("T12", "extension", "corrupt", "tars", header(1, 11, b"lgz")),
        ("T12", "folder", "corrupt", "tars", header(1, 345, b"folder")),
        ("T12", "exchanged", "corrupt", "tars", exchanged()),
        ("T12", "fewer_digits", "corrupt", "tars", header(1, 0, b"1.lgt" + bytes(9))),
        ("T13", "end", "corrupt", "tars", one(tar, offset=tar_bytes - 1, bytes="01")),
        ("T13", "one_document_more", "corrupt", "tars", table(b'"documents":2', b'"documents":1')),
        ("T13", "rows", "corrupt", "tars", table(b'"rows":18', b'"rows":17')),
        ("T14", "sha256", "corrupt", "tars", table(digest, digest[::-1])),
        ("T14", "padding", "corrupt", "tars", one(tar, offset=tar_bytes - 1025, bytes="01")),
        ("T15", "not_json", "corrupt", "tars", p.in_json(1, b"{", b"[")),
        ("T15", "document", "corrupt", "tars", p.in_json(1, b'"document":1', b'"document":2')),
        ("T15", "no_document", "corrupt", "tars", p.in_json(1, b'"document"', b'"documenu"')),
        ("T15", "first_row", "corrupt", "tars", p.in_json(1, b'"first_row":1', b'"first_row":0')),
        ("T15", "rows", "corrupt", "tars", p.in_json(1, b'"rows":17', b'"rows":16')),
        ("T15", "no_key", "corrupt", "tars", p.in_json(1, b'"key"', b'"kez"')),
    ]  # fmt: skip
    for rule, name, error, noticed_by, changes in edits:
        yield {
            "name": f"{rule.lower()}_{name}", "rule": rule, "error": error, "noticed_by": noticed_by,
            "store": "plain", "edits": changes,
        }  # fmt: skip
