"""Other ways to store the same rows, behind one interface: arrays in, bytes in memory, arrays out.

``columns`` maps names of fields to arrays with one row per token. Sizes count all bytes that would be on disk,
metadata of the container included. Everything runs in one thread.
"""

# ruff: noqa: D102 - `Peer` says once what the methods do.
from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import blosc2
import numcodecs
import numcodecs.blosc
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zarr
from pcodec import ChunkConfig, standalone
from zarr.storage import MemoryStore

from logitstore.codec import decode, encode

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from zarr.codecs import BloscCodec, ZstdCodec

    from logitstore.container.fields import Field

    Columns = dict[str, NDArray[Any]]

blosc2.set_nthreads(1)
numcodecs.blosc.set_nthreads(1)
pa.set_cpu_count(1)
pa.set_io_thread_count(1)

CHUNK_BYTES = 2 << 20
"""Decoded bytes of a chunk: enough for Zarr, which is slow below 512 KB, and more to compress than our chunks hold."""


class Peer(Protocol):
    """A way to store columns."""

    @property
    def name(self) -> str: ...
    def encode(self, columns: Columns) -> Any: ...
    def decode(self, encoded: Any) -> Any: ...
    def size(self, encoded: Any) -> int: ...


def chunk_rows(array: NDArray[Any]) -> int:
    return max(1, CHUNK_BYTES // (array.nbytes // len(array)))


@dataclass(frozen=True)
class Ours:
    """The ``exact`` codec in the chunks that a store has, checksums verified."""

    fields: tuple[Field, ...]
    name: str = "logitstore exact"

    def encode(self, columns: Columns) -> list[tuple[Field, int, list[bytes]]]:
        return [
            (field, len(array), [self._encode(field, array[i : i + field.chunk_rows]) for i in _starts(array, field)])
            for field in self.fields
            if (array := columns.get("values" if field.kind == "values" else field.name)) is not None
        ]

    @staticmethod
    def _encode(field: Field, array: NDArray[Any]) -> bytes:
        assert field.kind != "raw"
        return encode(array, field.kind, vocab_size=field.vocab_size)

    def decode(self, encoded: list[tuple[Field, int, list[bytes]]]) -> None:
        for field, rows, chunks in encoded:
            assert field.kind != "raw"
            for number, chunk in enumerate(chunks):
                shape = (min(field.chunk_rows, rows - number * field.chunk_rows), *field.row_shape)
                decode(chunk, field.kind, shape=shape, dtype=field.dtype, vocab_size=field.vocab_size)

    def size(self, encoded: list[tuple[Field, int, list[bytes]]]) -> int:
        return sum(len(chunk) for _, _, chunks in encoded for chunk in chunks)


@dataclass(frozen=True)
class Raw:
    """The arrays' bytes: uint32 ids and float16 values."""

    name: str = "raw uint32 + fp16"

    def encode(self, columns: Columns) -> list[NDArray[Any]]:
        return [array.copy() for array in columns.values()]

    def decode(self, encoded: list[NDArray[Any]]) -> list[NDArray[Any]]:
        return [array.copy() for array in encoded]

    def size(self, encoded: list[NDArray[Any]]) -> int:
        return sum(array.nbytes for array in encoded)


@dataclass(frozen=True)
class Zarr:
    """Plain Zarr v3 arrays with a codec of its own.

    One chunk of CHUNK_BYTES per file, which is what Zarr is fastest with; or, given ``layout``, chunks and shards of so
    many rows.
    """

    name: str
    codec: BloscCodec | ZstdCodec
    layout: tuple[int, int] | None = None

    def encode(self, columns: Columns) -> zarr.Group:
        group = zarr.create_group(MemoryStore())
        for name, array in columns.items():
            rows, shard = self.layout or (min(len(array), chunk_rows(array)), None)
            created = group.create_array(
                name,
                shape=array.shape,
                dtype=array.dtype,
                chunks=(rows, *array.shape[1:]),
                shards=None if shard is None else (shard, *array.shape[1:]),
                compressors=[self.codec],
            )
            created[...] = array
        return group

    def decode(self, encoded: zarr.Group) -> None:
        for name in encoded:
            encoded[name][...]  # type: ignore[index]

    def size(self, encoded: zarr.Group) -> int:
        return sum(len(value.to_bytes()) for value in encoded.store._store_dict.values())  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Zstd:
    """zstd from numcodecs on the bytes of chunks, with no container around it."""

    level: int = 3

    @property
    def name(self) -> str:
        return f"bare zstd {self.level}"

    def encode(self, columns: Columns) -> list[bytes]:
        codec = numcodecs.Zstd(self.level)
        return [
            codec.encode(array[i : i + chunk_rows(array)])
            for array in columns.values()
            for i in range(0, len(array), chunk_rows(array))
        ]

    def decode(self, encoded: list[bytes]) -> None:
        codec = numcodecs.Zstd(self.level)
        for chunk in encoded:
            codec.decode(chunk)

    def size(self, encoded: list[bytes]) -> int:
        return sum(len(chunk) for chunk in encoded)


@dataclass(frozen=True)
class Parquet:
    """Parquet with zstd 3: lists of fixed length for ids and values, plain columns for the rest.

    ``encodings`` are those of the elements; with none, Parquet chooses (dictionary where that is small).
    """

    name: str
    encodings: tuple[tuple[str, str], ...] = ()

    def encode(self, columns: Columns) -> bytes:
        table = arrow_table(columns)
        paths = {f"{name}.list.element": encoding for name, encoding in self.encodings if name in columns}
        sink = io.BytesIO()
        pq.write_table(
            table, sink, compression="zstd", compression_level=3, use_dictionary=not paths,
            column_encoding=paths or None, row_group_size=min(map(chunk_rows, columns.values())),
        )  # fmt: skip
        return sink.getvalue()

    def decode(self, encoded: bytes) -> list[NDArray[Any]]:
        table = pq.read_table(pa.BufferReader(encoded), use_threads=False)
        return [
            (chunk.flatten() if pa.types.is_fixed_size_list(chunk.type) else chunk).to_numpy(zero_copy_only=False)
            for column in table.columns
            for chunk in column.chunks
        ]

    def size(self, encoded: bytes) -> int:
        return len(encoded)


@dataclass(frozen=True)
class Blosc2:
    """Blosc2 arrays with zstd, level 5, behind one or two of its filters."""

    name: str
    filters: tuple[blosc2.Filter, ...]

    def encode(self, columns: Columns) -> list[blosc2.NDArray]:
        return [
            blosc2.asarray(
                array,
                chunks=(min(len(array), chunk_rows(array)), *array.shape[1:]),
                cparams=blosc2.CParams(codec=blosc2.Codec.ZSTD, clevel=5, filters=list(self.filters), nthreads=1),
                dparams=blosc2.DParams(nthreads=1),
            )
            for array in columns.values()
        ]

    def decode(self, encoded: list[blosc2.NDArray]) -> list[NDArray[Any]]:
        return [array[...] for array in encoded]

    def size(self, encoded: list[blosc2.NDArray]) -> int:
        return sum(len(array.to_cframe()) for array in encoded)


@dataclass(frozen=True)
class Pcodec:
    """pcodec, level 8. ``gaps`` hands it the distances between ascending ids, which it cannot find by itself."""

    gaps: bool = False

    @property
    def name(self) -> str:
        return "pcodec, ids as gaps" if self.gaps else "pcodec"

    def encode(self, columns: Columns) -> dict[str, tuple[int, bytes]]:
        return {name: (len(array), self._compress(name, array)) for name, array in columns.items()}

    def _compress(self, name: str, array: NDArray[Any]) -> bytes:
        if name == "ids" and self.gaps:
            array = np.diff(array, axis=1, prepend=np.uint32(0))
        elif array.dtype == np.uint8:
            array = array.astype(np.uint16)  # pcodec refuses bytes
        return standalone.simple_compress(array.ravel(), ChunkConfig())

    def decode(self, encoded: dict[str, tuple[int, bytes]]) -> dict[str, NDArray[Any]]:
        arrays = {name: standalone.simple_decompress(data).reshape(rows, -1) for name, (rows, data) in encoded.items()}
        if self.gaps:
            arrays["ids"] = np.cumsum(arrays["ids"], axis=1, dtype=np.uint32)
        return arrays

    def size(self, encoded: dict[str, tuple[int, bytes]]) -> int:
        return sum(len(data) for _, data in encoded.values())


def arrow_table(columns: Columns) -> pa.Table:
    """Return the columns as an Arrow table; rows of several entries become lists of fixed length."""
    return pa.table(
        {
            name: array
            if array.ndim == 1
            else pa.FixedSizeListArray.from_arrays(pa.array(array.ravel()), array.shape[1])
            for name, array in columns.items()
        }
    )


def _starts(array: NDArray[Any], field: Field) -> range:
    return range(0, len(array), field.chunk_rows)
