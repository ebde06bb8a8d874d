"""The arrays of a store: their types, their chunking, and their Zarr v3 metadata."""

from __future__ import annotations

import json
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from logitstore import layout
from logitstore.codec import ChunkDecoder, CutRows, encode

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from logitstore.codec import RowFormat
    from logitstore.codec.compact import IdCodec, ValueCodec

__all__ = [
    "DOCUMENT_FIELDS",
    "BookSource",
    "Field",
    "array_metadata",
    "group_metadata",
    "metadata_differences",
    "row_fields",
    "rows_per_shard_for",
]

Kind = Literal["ids", "values", "flat", "raw"]

_CHUNK_TARGET_BYTES = 512 << 10
_SHARD_TARGET_BYTES = 64 << 20
_FLAT_CHUNK_ROWS = 16384
_DOCUMENTS_PER_CHUNK = 1 << 10
DOCUMENTS_PER_SHARD = 1 << 16


class BookSource(Protocol):
    """Where a reader finds codebooks."""

    def codec(self, field: Field, chunk: memoryview) -> IdCodec | ValueCodec:
        """Return what decodes a chunk of the ``compact`` codec; errors as for any chunk that is broken."""
        ...


@dataclass(frozen=True)
class Field:
    """One array of a store.

    Attributes
    ----------
    name
        Name of the Zarr array.
    dtype
        NumPy type string, little-endian.
    kind
        How a chunk is coded: ``ids`` and ``values`` by the store's codec, ``flat`` by ``exact``, ``raw`` as plain
        bytes.
    columns
        Length of the second axis, or None for a one-dimensional array.
    chunk_rows
        Rows of a chunk.
    vocab_size
        Bound of the ids; 0 for all other kinds.
    codec
        ``"compact"`` where chunks may be of that codec; their first bytes tell.
    books
        Needed to decode those.
    """

    name: str
    dtype: str
    kind: Kind
    columns: int | None
    chunk_rows: int
    vocab_size: int = 0
    codec: str = "exact"
    books: BookSource | None = dataclass_field(default=None, compare=False, repr=False)

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of one row."""
        return () if self.columns is None else (self.columns,)

    @property
    def chunk_shape(self) -> tuple[int, ...]:
        """Shape of one chunk."""
        return (self.chunk_rows, *self.row_shape)

    @property
    def raw_chunk_bytes(self) -> int:
        """Bytes of a chunk of kind ``raw``."""
        return self.chunk_rows * np.dtype(self.dtype).itemsize + layout.CRC_BYTES

    def file_name(self, shard: int) -> str:
        """Name of a shard's file below the store: its Zarr key."""
        return f"{self.name}/c.{shard}" + ("" if self.columns is None else ".0")

    def unused_rows(self, rows: int) -> NDArray[Any]:
        """Rows that hold nothing; they fill the last chunk."""
        return np.full((rows, *self.row_shape), _FILL[self.name], self.dtype)

    def encode_chunk(self, array: NDArray[Any]) -> bytes:
        """Encode rows with ``exact``, ``chunk_rows`` of them where the chunk is one of a Zarr array."""
        if self.kind == "raw":
            body = array.astype(self.dtype, copy=False).tobytes()
            return body + _crc32c(body).to_bytes(layout.CRC_BYTES, "little")
        return encode(array, self.kind, vocab_size=self.vocab_size)

    def decode_chunk(
        self,
        data: memoryview,
        start: int,
        out: NDArray[Any] | CutRows,
        *,
        rows: int | None = None,
        verify: bool = False,
    ) -> None:
        """Decode rows from ``start`` on into ``out``.

        Parameters
        ----------
        data
            The chunk.
        rows
            Rows of the chunk; ``chunk_rows`` by default.
        verify
            Whether to check the chunk's own checksum; not needed where its frame has been checked.

        `CutRows` get rows of slots as they are coded.
        """
        rows = self.chunk_rows if rows is None else rows
        books = self.books if data[:3] == layout.COMPACT_MAGIC[:3] else None
        if isinstance(out, CutRows):
            decoder = self._decoder if books is None else books.codec(self, data)
            out.take(decoder.cut(data, rows, start, start + len(out), verify=verify))
            return
        if self.kind == "raw":
            # Length was checked against the chunk shape by the caller; crc32c follows the elements.
            out[...] = np.frombuffer(data, self.dtype, rows)[start : start + len(out)]
        elif books is not None:
            books.codec(self, data).decode_into(data, rows, start, out, verify=verify)
        elif self.kind == "flat":
            width = self.columns or 1
            flat = out if self.columns is None else out.reshape(-1)
            self._decoder.decode_into(data, rows * width, start * width, flat, verify=verify)
        else:
            self._decoder.decode_into(data, rows, start, out, verify=verify)

    @property
    def row_format(self) -> RowFormat:
        """What rows hold that are cut."""
        return self._decoder.format

    @cached_property
    def _decoder(self) -> ChunkDecoder:
        assert self.kind != "raw"
        return ChunkDecoder(self.kind, self.dtype, 0 if self.kind == "flat" else self.columns or 0, self.vocab_size)


_FILL: dict[str, Any] = {
    "tokens": 0,
    "ids": layout.UNUSED_ID,
    "logprobs": -np.inf,
    "logits": -np.inf,
    "counts": 0,
    "lse": np.nan,
    "label_logprob": np.nan,
    "mask": 0,
    "lse_T": np.nan,
    "doc_offsets": 0,
    "doc_lines": 0,
}

DOCUMENT_FIELDS = (
    Field("doc_offsets", "<i8", "raw", None, _DOCUMENTS_PER_CHUNK),
    Field("doc_lines", "<i8", "raw", None, _DOCUMENTS_PER_CHUNK),
)
"""Arrays with one entry per document and one more: first row, and first byte of the line in documents.jsonl."""


def rows_per_shard_for(slots: int) -> int:
    """Rows that make shards of about 64 MiB: a power of two."""
    rows = _SHARD_TARGET_BYTES // max(1, slots * 5 // 2)
    return min(1 << 20, max(1 << 10, _power_of_two_below(rows)))


def row_fields(
    *,
    slots: int,
    vocab_size: int,
    values: str,
    counts: bool,
    temperatures: int,
    rows_per_shard: int,
    codec: str = "exact",
    books: BookSource | None = None,
) -> tuple[Field, ...]:
    """Return the arrays with one row per token, in the order they are written.

    Parameters
    ----------
    slots
        ``K``, the width of a row.
    vocab_size
        The teacher's real vocabulary size.
    values
        ``"logprob"`` or ``"logit"``.
    counts
        Whether draws are counted.
    temperatures
        Number of further temperatures whose log-sum-exp is kept.
    rows_per_shard
        No chunk is longer than a shard.
    codec, books
        Of ids, values and counts.
    """
    coding: dict[str, Any] = {"codec": codec, "books": books}
    wide = min(rows_per_shard, 4096, max(1, _power_of_two_below(_CHUNK_TARGET_BYTES // (4 * slots))))
    flat = min(rows_per_shard, _FLAT_CHUNK_ROWS)
    fields = [
        Field("tokens", "<u4", "flat", None, flat),
        Field("ids", "<u4", "ids", slots, wide, vocab_size, **coding),
        Field("logprobs" if values == "logprob" else "logits", "<f2", "values", slots, wide, **coding),
        Field("lse", "<f4", "flat", None, flat),
        Field("label_logprob", "<f4", "flat", None, flat),
        Field("mask", "|u1", "flat", None, flat),
    ]
    if counts:
        fields.append(Field("counts", "|u1", "values", slots, wide, **coding))
    if temperatures:
        fields.append(Field("lse_T", "<f4", "flat", temperatures, flat))
    return tuple(fields)


def array_metadata(field: Field, rows: int, rows_per_shard: int) -> dict[str, Any]:
    """Return the ``zarr.json`` of an array, as the Zarr v3 specification asks."""
    shape = [rows, *field.row_shape]
    if field.kind == "raw":
        codecs: list[dict[str, Any]] = [_LITTLE_ENDIAN, {"name": "crc32c"}]
    else:
        configuration: dict[str, Any] = {"kind": field.kind, "version": layout.CODEC_VERSION[field.codec]}
        if field.kind == "ids":
            configuration["vocab_size"] = field.vocab_size
        codecs = [{"name": f"logitstore.{field.codec}", "configuration": configuration}]
    sharding = {
        "chunk_shape": list(field.chunk_shape),
        "codecs": codecs,
        "index_codecs": [_LITTLE_ENDIAN, {"name": "crc32c"}],
        "index_location": "end",
    }
    fill = _FILL[field.name]
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": shape,
        "data_type": np.dtype(field.dtype).name,
        "chunk_grid": {
            "name": "regular",
            "configuration": {"chunk_shape": [rows_per_shard, *field.row_shape]},
        },
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "fill_value": {"nan": "NaN", "-inf": "-Infinity"}.get(str(fill), fill),
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        "attributes": {},
        "dimension_names": ["document" if field in DOCUMENT_FIELDS else "row", "slot"][: len(shape)],
    }


def metadata_differences(
    found: dict[str, Any], field: Field, rows: int, rows_per_shard: int
) -> list[tuple[str, Any, Any]]:
    """Compare an array's ``zarr.json`` with what it should be: key, value found and value expected where they differ.

    Attributes are anybody's, and Zarr adds an empty list of storage transformers when it writes them.
    """
    expected = json.loads(json.dumps(array_metadata(field, rows, rows_per_shard)))
    found = {"storage_transformers": [], **found, "attributes": {}}
    expected["storage_transformers"] = []
    return [
        (key, found.get(key), expected.get(key))
        for key in sorted({*expected, *found})
        if found.get(key) != expected.get(key)
    ]


def group_metadata(attributes: dict[str, Any]) -> dict[str, Any]:
    """Return the ``zarr.json`` of the store."""
    return {"zarr_format": 3, "node_type": "group", "attributes": attributes}


_LITTLE_ENDIAN: dict[str, Any] = {"name": "bytes", "configuration": {"endian": "little"}}


def _power_of_two_below(number: int) -> int:
    return 1 << max(0, number.bit_length() - 1)


def _crc32c(data: bytes) -> int:
    import google_crc32c

    return int(google_crc32c.value(data))
