"""The manifest: what a store is, and the only word on which of its files count.

``manifest.json`` is written when a build starts (``complete: false``) and once more, last of all, when it ends. Its
JSON Schema is ``spec/manifest.schema.json``; `Manifest.from_json` checks the same rules.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from logitstore import layout
from logitstore.container.codec_record import CodecRecord
from logitstore.container.fields import DOCUMENT_FIELDS, DOCUMENTS_PER_SHARD, Field, row_fields
from logitstore.container.file_record import FileRecord
from logitstore.container.files import LocalFiles
from logitstore.container.invariants import Bound
from logitstore.errors import CorruptDataError, TruncatedDataError, UnsupportedVersionError

if TYPE_CHECKING:
    from logitstore.container.fields import BookSource
    from logitstore.container.files import StoreFiles

__all__ = ["Manifest", "is_store"]


def is_store(path: Path) -> bool:
    """Whether ``path`` is the directory of a logitstore, of whatever version, finished or not."""
    try:
        content = json.loads((path / layout.MANIFEST_FILE).read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and content.get("format") == layout.FORMAT_NAME


@dataclass(frozen=True)
class Manifest:
    """Everything ``manifest.json`` says.

    Attributes
    ----------
    store_id
        32 hexadecimal digits; every shard file carries it.
    complete
        False from the start of a build to its end.
    rows, documents, entries
        Totals; 0 while the build is running.
    vocab_size, padded_vocab_size
        Ids are below ``vocab_size``; ``padded_vocab_size`` is the width of the teacher's output before the cut.
    slots
        ``K``, entries a row has room for.
    values
        ``"logprob"`` or ``"logit"``.
    rows_per_shard
        Rows of every shard but the last.
    selection
        Which entries were kept, as `logitstore.select.Selection` writes it.
    temperatures
        Further temperatures whose log-sum-exp is kept in ``lse_T``.
    teacher, tokenizer, corpus, build
        Who said it, in which vocabulary, of what, and how it was run.
    versions
        Versions of the software that wrote the store.
    documents_file, shard_table
        ``documents.jsonl`` and ``shards.jsonl``; None while the build is running.
    record_bytes
        Length of every line of ``shards.jsonl``.
    bytes_by_field
        Sum of the shard files of each array; of its chunks, where shards are tars.
    container
        ``"zarr"`` or ``"webdataset"``.
    shard_bytes, index_file
        Of a WebDataset store: bytes up to which a tar is filled, and ``documents.idx``.
    codec
        How ids, values and counts are coded.
    """

    store_id: str
    complete: bool
    vocab_size: int
    padded_vocab_size: int
    slots: int
    values: str
    rows_per_shard: int
    selection: dict[str, Any]
    teacher: dict[str, Any]
    tokenizer: dict[str, Any]
    corpus: dict[str, Any]
    build: dict[str, Any]
    versions: dict[str, str]
    temperatures: tuple[float, ...] = ()
    has_counts: bool = False
    rows: int = 0
    documents: int = 0
    entries: int = 0
    record_bytes: int = 0
    bytes_by_field: dict[str, int] = field(default_factory=dict)
    documents_file: FileRecord | None = None
    shard_table: FileRecord | None = None
    container: str = "zarr"
    shard_bytes: int = 0
    index_file: FileRecord | None = None
    codec: CodecRecord = field(default_factory=CodecRecord)

    @property
    def format_version(self) -> str:
        """The lowest version of the format that knows the container and the codec."""
        version = max(
            layout.FORMAT_VERSION_OF_CONTAINER[self.container], layout.FORMAT_VERSION_OF_CODEC[self.codec.name]
        )
        return ".".join(map(str, version))

    @property
    def row_fields(self) -> tuple[Field, ...]:
        """Arrays with one row per token."""
        return self.fields_with(None)

    def fields_with(self, books: BookSource | None) -> tuple[Field, ...]:
        """Return the same arrays, ready to decode chunks of the compact codec with these codebooks."""
        return row_fields(
            slots=self.slots,
            vocab_size=self.vocab_size,
            values=self.values,
            counts=self.has_counts,
            temperatures=len(self.temperatures),
            rows_per_shard=self.rows_per_shard,
            codec=self.codec.name,
            books=books,
        )

    @property
    def bound(self) -> Bound:
        """How far values may be from the teacher's: by this store's codec, or by that of the store it was made from."""
        if self.codec.is_lossy or "recoded_from" not in self.build:
            return Bound(self.codec.max_kl, self.codec.max_error)
        source = CodecRecord.from_json(self.build["recoded_from"])
        return Bound(source.max_kl, source.max_error)

    @property
    def row_shards(self) -> int:
        """Shards that hold rows: of each array, or tars."""
        if self.container == "webdataset":
            return self.shard_table.bytes // self.record_bytes if self.shard_table and self.record_bytes else 0
        return -(-self.rows // self.rows_per_shard)

    @property
    def document_shards(self) -> int:
        """Shards of each array with one entry per document."""
        return -(-(self.documents + 1) // DOCUMENTS_PER_SHARD)

    def geometry(self, field: Field) -> tuple[int, int]:
        """Length of an array's first axis, and rows of its shards."""
        return (
            (self.documents + 1, DOCUMENTS_PER_SHARD) if field in DOCUMENT_FIELDS else (self.rows, self.rows_per_shard)
        )

    def record_number(self, field: Field, shard: int) -> int:
        """Line of ``shards.jsonl`` that speaks of a shard."""
        return shard + (self.row_shards if field in DOCUMENT_FIELDS else 0)

    def to_json(self) -> bytes:
        """Return the bytes of ``manifest.json``."""
        content = dataclasses.asdict(self)
        head: dict[str, Any] = {"format": layout.FORMAT_NAME, "format_version": self.format_version}
        if self.container == "zarr":
            for name in _LATER:
                del content[name]
        head["codec"] = self.codec.to_json()
        del content["codec"]
        return (json.dumps({**head, **content}, indent=1, allow_nan=False) + "\n").encode()

    @classmethod
    def read(cls, store: StoreFiles | Path) -> Manifest:
        """Read and check ``manifest.json`` of a store.

        Raises
        ------
        CorruptDataError
            There is no sound manifest. A missing one means that this is no store.
        UnsupportedVersionError
            The store was written by a newer format version or with a codec that is not known.
        """
        files = LocalFiles(store) if isinstance(store, Path) else store
        file = files.place(layout.MANIFEST_FILE)
        try:
            raw = files.read(layout.MANIFEST_FILE, layout.MAX_MANIFEST_BYTES + 1)
        except FileNotFoundError:
            reason = "there is no manifest.json: not a logitstore" if files.exists() else "no such file or directory"
            raise TruncatedDataError(reason, path=files.place()) from None
        if len(raw) > layout.MAX_MANIFEST_BYTES:
            raise CorruptDataError(f"a manifest has at most {layout.MAX_MANIFEST_BYTES} bytes", path=file)
        try:
            return cls.from_json(json.loads(raw))
        except (CorruptDataError, UnsupportedVersionError) as error:
            raise error.at(path=file) from None
        except (ValueError, RecursionError) as error:  # ValueError: no JSON, no UTF-8, or a number of 5,000 digits
            raise CorruptDataError(f"the manifest is not JSON: {error}", path=file) from None

    @classmethod
    def from_json(cls, content: Any) -> Manifest:
        """Check a parsed manifest. Errors as `read`; unknown keys of a newer minor version are passed over."""
        _require(isinstance(content, dict), "a manifest is a JSON object", type(content).__name__)
        _require(content.get("format") == layout.FORMAT_NAME, "format is 'logitstore'", content.get("format"))
        version = content.get("format_version")
        sound = isinstance(version, str) and re.fullmatch(r"[0-9]{1,9}\.[0-9]{1,9}", version)
        _require(bool(sound), "format_version is 'major.minor'", version)
        if int(version.split(".")[0]) > layout.FORMAT_VERSION[0]:
            raise UnsupportedVersionError(
                f"the store has format version {version}, this logitstore reads up to {layout.FORMAT_VERSION[0]}.x"
            )
        codec = CodecRecord.from_json(content.get("codec"))
        container = content.get("container", "zarr")
        _require(isinstance(container, str), "container is a str", container)
        if container not in layout.FORMAT_VERSION_OF_CONTAINER:
            raise UnsupportedVersionError(f"container {container!r} is not known to this logitstore")
        known = {item.name: item for item in dataclasses.fields(cls) if item.name != "codec"}
        values: dict[str, Any] = {"codec": codec}
        for name, item in known.items():
            if name in _LATER and name not in content and container == "zarr":
                continue
            _require(name in content, f"the manifest has {name}", "nothing")
            values[name] = _checked(name, str(item.type), content[name])
        manifest = cls(**values)
        manifest._check()
        return manifest

    def _check(self) -> None:
        _require(_is_hex(self.store_id, 32), "store_id is 32 hexadecimal digits", self.store_id)
        _require(1 <= self.vocab_size <= layout.MAX_VOCAB_SIZE, "vocab_size is 1 to 2^31", self.vocab_size)
        _require(self.padded_vocab_size >= self.vocab_size, "padded_vocab_size >= vocab_size", self.padded_vocab_size)
        _require(1 <= self.slots < layout.MAX_SLOTS, "slots is 1 to 2^31-1", self.slots)
        _require(self.slots <= self.vocab_size, f"slots are at most the {self.vocab_size} ids there are", self.slots)
        _require(self.values in ("logprob", "logit"), "values is 'logprob' or 'logit'", self.values)
        power = self.rows_per_shard
        _require(
            0 < power <= 1 << 30 and power & (power - 1) == 0, "rows_per_shard is a power of two up to 2^30", power
        )
        _require(0 <= self.documents <= self.rows, "documents are at most as many as rows", self.documents)
        _require(0 <= self.entries <= self.rows * self.slots, "entries fit the slots", self.entries)
        _require(0 <= self.record_bytes <= layout.MAX_SHARD_RECORD_BYTES, "record_bytes is in range", self.record_bytes)
        _require(self.codec.max_kl is None or self.values == "logprob", "max_kl bounds log-probabilities", self.values)
        if "recoded_from" in self.build:
            CodecRecord.from_json(self.build["recoded_from"])
        arrays = {field.name for field in self.row_fields if field.kind in ("ids", "values")}
        for books in self.codec.codebooks:
            _require(not books.files or set(books.files) == arrays, f"a set has codebooks for {arrays}", books)
        if self.complete:
            _require(
                bool(self.codec.codebooks) == (self.codec.name == "compact" and self.rows > 0),
                "a complete store of the compact codec has codebooks for row 0", self.codec.codebooks,
            )  # fmt: skip
            for name in ("documents_file", "shard_table"):
                _require(getattr(self, name) is not None, f"a complete store has a {name}", None)
            if self.container == "webdataset":
                self._check_tars()
                return
            table = self.shard_table
            lines = self.row_shards + self.document_shards
            _require(
                table is not None and table.bytes == lines * self.record_bytes,
                f"shards.jsonl has {lines} lines of {self.record_bytes} bytes", table,
            )  # fmt: skip

    def _check_tars(self) -> None:
        table, index = self.shard_table, self.index_file
        size = max(1, self.record_bytes)
        _require(
            table is not None and table.bytes % size == 0 and bool(table.bytes) == bool(self.rows),
            f"shards.jsonl has whole lines of {self.record_bytes} bytes, one per shard", table,
        )  # fmt: skip
        _require(
            index is not None and index.bytes == self.documents * layout.INDEX_RECORD_BYTES,
            f"{layout.INDEX_FILE} has {layout.INDEX_RECORD_BYTES} bytes for each document", index,
        )  # fmt: skip


_LATER = ("container", "shard_bytes", "index_file")
"""Keys that a store of format 1.0 does not have."""


def _checked(name: str, annotation: str, value: Any) -> Any:
    if annotation == "int":
        _require(_is_whole(value), f"{name} is a whole number", value)
    elif annotation in ("bool", "str"):
        _require(type(value).__name__ == annotation, f"{name} is a {annotation}", value)
    elif annotation.startswith("FileRecord"):
        return None if value is None else FileRecord.from_json(name, value)
    elif annotation.startswith("tuple"):
        sound = isinstance(value, list) and all(
            type(number) in (int, float) and 0 < number <= sys.float_info.max for number in value
        )
        _require(sound, f"{name} is a list of positive numbers", value)
        return tuple(float(number) for number in value)
    else:
        _require(isinstance(value, dict), f"{name} is an object", value)
        if annotation == "dict[str, int]":
            _require(all(map(_is_whole, value.values())), f"{name} holds whole numbers", value)
        elif annotation == "dict[str, str]":
            _require(all(isinstance(item, str) for item in value.values()), f"{name} holds strings", value)
    return value


def _is_whole(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _is_hex(value: Any, digits: int) -> bool:
    return isinstance(value, str) and len(value) == digits and set(value) <= set("0123456789abcdef")


def _require(condition: bool, rule: str, found: object) -> None:
    if not condition:
        raise CorruptDataError(f"{rule}; found {found!r}")
