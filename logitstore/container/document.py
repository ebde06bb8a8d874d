"""One document's rows in one piece: the ``.lgt`` member of a tar shard.

``header | table of arrays and chunk sizes | chunks``, each chunk padded to 8 bytes; see ``spec/FORMAT.md``, "Document
file". Chunks are those of the codec, and carry their own checksums; the header's covers header and table.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

import google_crc32c
import numpy as np

from logitstore import layout
from logitstore.container.fields import row_fields
from logitstore.container.row_coder import RowCoder, array_of
from logitstore.errors import (
    CorruptDataError,
    InvalidArgumentError,
    LogitStoreError,
    TruncatedDataError,
    UnsupportedVersionError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from logitstore.codec import CutRows
    from logitstore.container.fields import BookSource, Field
    from logitstore.container.loss_meter import LossMeter
    from logitstore.records import RowBatch

__all__ = ["DocumentFile", "DocumentHeader", "EncodedDocument", "encode_document"]

_ORDER = ("tokens", "ids", "logprobs", "logits", "lse", "label_logprob", "mask", "counts", "lse_T")


class DocumentHeader(NamedTuple):
    """What a document file says of itself before its arrays.

    Attributes
    ----------
    store_id
        16 bytes that name the store.
    document, first_row, rows
        Number of the document, its first row in the store, and its number of rows.
    slots, vocab_size
        ``K``, and the bound of the ids.
    temperatures
        Columns of ``lse_T``; 0 if there is none.
    """

    store_id: bytes
    document: int
    first_row: int
    rows: int
    slots: int
    vocab_size: int
    temperatures: int

    def pack(self, arrays: int, table: bytes) -> bytes:
        """Return the header of a file with this table, padded, of so many arrays."""
        head = struct.pack(
            layout.DOCUMENT_HEADER, layout.DOCUMENT_MAGIC, self.store_id, self.document, self.first_row, self.rows,
            self.slots, self.vocab_size, self.temperatures, arrays, len(table), 0,
        )[:-4]  # fmt: skip
        return head + struct.pack("<I", google_crc32c.extend(google_crc32c.value(head), table))


@dataclass(frozen=True)
class EncodedDocument:
    """The bytes of a document file, how many of them are chunks of each array, and what quantising lost."""

    data: bytes
    bytes_by_field: dict[str, int]
    losses: list[LossMeter]


def encode_document(
    header: DocumentHeader,
    fields: Sequence[Field],
    rows: RowBatch,
    coder: RowCoder,
    coded: Mapping[str, Sequence[bytes]] | None = None,
) -> EncodedDocument:
    """Encode all rows of a document.

    Parameters
    ----------
    header
        What the file says of itself; its ``rows`` are those of the batch.
    fields
        The store's arrays, as `row_fields` gives them.
    rows
        The rows.
    coder
        Codes ids, values and counts.
    coded
        Chunks of these by array, if they are coded already.

    Raises
    ------
    InvalidArgumentError
        The document has so many rows that its table of chunks does not fit, or more temperatures than fit.
    """
    table: list[bytes] = []
    chunks: list[bytes] = []
    sizes: dict[str, int] = {}
    losses: list[LossMeter] = []
    if coded is None:
        # The document as a whole belongs to the codebooks of its first row.
        found = [
            coder.encode(header.first_row, {field.name: array_of(rows, field.name)[part] for field in coder.fields})
            for part in _slices(len(rows), coder.fields[0].chunk_rows)
        ]
        coded = {field.name: [part.chunks[field.name] for part in found] for field in coder.fields}
        losses = [part.loss for part in found if part.loss is not None]
    for field in fields:
        if field in coder.fields:
            parts = list(coded[field.name])
        else:
            array = array_of(rows, field.name)
            parts = [field.encode_chunk(array[part]) for part in _slices(len(array), field.chunk_rows)]
        table.append(struct.pack(layout.ARRAY_ENTRY, field.name.encode(), field.chunk_rows, len(parts)))
        table.append(struct.pack(f"<{len(parts)}I", *map(len, parts)))
        sizes[field.name] = sum(map(len, parts))
        for part in parts:
            chunks += [part, bytes(-len(part) % layout.CHUNK_ALIGNMENT)]
    packed = b"".join(table)
    packed += bytes(-len(packed) % layout.CHUNK_ALIGNMENT)
    if len(packed) > layout.MAX_DOCUMENT_TABLE_BYTES or header.temperatures > layout.MAX_DOCUMENT_TEMPERATURES:
        raise InvalidArgumentError(
            f"{header.rows} rows and {header.temperatures} temperatures do not fit a document file: use a smaller "
            "seq_len or fewer temperatures"
        )
    return EncodedDocument(b"".join([header.pack(len(fields), packed), packed, *chunks]), sizes, losses)


def _slices(rows: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, rows, size)]


class _Array(NamedTuple):
    """An array of a document file: its type, and where its chunks lie; the last offset is where the next array does."""

    field: Field
    chunk_rows: int
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]


class DocumentFile:
    """A document file, checked when it is opened; chunks are read and checked when they are decoded.

    Parameters
    ----------
    read
        Gives bytes ``start:stop`` of the file.
    size
        Bytes of the file.
    books
        Where codebooks are found, if chunks may be of the compact codec.

    Raises
    ------
    TruncatedDataError, CorruptDataError
        The file is shorter than it says, or header and table break a rule.
    UnsupportedVersionError
        A newer version wrote it.
    """

    def __init__(self, read: Callable[[int, int], memoryview], size: int, books: BookSource | None = None) -> None:
        self._read = read
        self._books = books
        if size < layout.DOCUMENT_HEADER_BYTES:
            raise TruncatedDataError(f"a document file has at least {layout.DOCUMENT_HEADER_BYTES} bytes, found {size}")
        head = bytes(read(0, layout.DOCUMENT_HEADER_BYTES))
        magic, store_id, *numbers = struct.unpack(layout.DOCUMENT_HEADER, head)
        if magic != layout.DOCUMENT_MAGIC:
            if magic[:6] == layout.DOCUMENT_MAGIC[:6]:
                raise UnsupportedVersionError(
                    f"document file version {magic[6:]!r} is newer than b'01', which this reads"
                )
            raise CorruptDataError(f"a document file starts with {layout.DOCUMENT_MAGIC!r}, found {magic!r}")
        document, first_row, rows, slots, vocab_size, temperatures, arrays, table_bytes, crc = numbers
        end = layout.DOCUMENT_HEADER_BYTES + table_bytes
        if table_bytes > layout.MAX_DOCUMENT_TABLE_BYTES:
            raise CorruptDataError(f"a table has at most {layout.MAX_DOCUMENT_TABLE_BYTES} bytes, found {table_bytes}")
        if size < end:
            raise TruncatedDataError(f"the table ends at byte {end}, the file has {size}")
        table = bytes(read(layout.DOCUMENT_HEADER_BYTES, end))
        if crc != google_crc32c.extend(google_crc32c.value(head[:-4]), table):
            raise CorruptDataError("the checksum of the document file's header does not fit its bytes")
        self.header = DocumentHeader(store_id, document, first_row, rows, slots, vocab_size, temperatures)
        self._check_header()
        self._arrays = dict(self._parse(table, arrays, end))
        expected = max((array.offsets[-1] for array in self._arrays.values()), default=end)
        if size != expected:
            kind = TruncatedDataError if size < expected else CorruptDataError
            raise kind(f"the table says {expected} bytes, the document file has {size}")
        missing = {"tokens", "ids", "lse", "label_logprob", "mask"} - set(self._arrays)
        if missing or ("logprobs" in self._arrays) == ("logits" in self._arrays):
            raise CorruptDataError(f"a document file has all arrays of a store, found {sorted(self._arrays)}")
        if ("lse_T" in self._arrays) != (self.header.temperatures > 0):
            raise CorruptDataError(f"lse_T has {self.header.temperatures} columns, found {sorted(self._arrays)}")

    def _check_header(self) -> None:
        header = self.header
        for name, found, largest in (
            ("rows", header.rows, layout.MAX_CHUNK_ROWS),
            ("slots", header.slots, layout.MAX_SLOTS - 1),
            ("vocab_size", header.vocab_size, layout.MAX_VOCAB_SIZE),
        ):
            if not 1 <= found <= largest:
                raise CorruptDataError(f"{name} of a document file is 1 to {largest}, found {found}")
        if header.slots > header.vocab_size:
            raise CorruptDataError(f"slots are at most the {header.vocab_size} ids there are, found {header.slots}")

    def _parse(self, table: bytes, arrays: int, end: int) -> Iterator[tuple[str, _Array]]:
        header = self.header
        known = _fields_of(header.slots, header.vocab_size, header.temperatures, self._books)  # type: ignore[arg-type]  # a protocol's objects hash by identity
        position, offset, last = 0, end, -1
        for _ in range(arrays):
            if position + layout.ARRAY_ENTRY_BYTES > len(table):
                raise CorruptDataError("the table of arrays ends inside an entry")
            raw, chunk_rows, chunks = struct.unpack_from(layout.ARRAY_ENTRY, table, position)
            position += layout.ARRAY_ENTRY_BYTES
            place, field = known.get(raw, (-1, None))
            name = raw.rstrip(b"\0").decode("ascii", "replace") if field is None else field.name
            if field is None or place <= last:
                raise CorruptDataError(f"arrays stand in the order {', '.join(_ORDER)}, found {name!r}")
            last = place
            if not 1 <= chunk_rows <= layout.MAX_CHUNK_ROWS or chunks != -(-header.rows // chunk_rows):
                raise CorruptDataError(
                    f"{name} has {chunks} chunks of {chunk_rows} rows, which is not what {header.rows} rows take"
                )
            if position + 4 * chunks > len(table):
                raise CorruptDataError("the table of arrays ends inside an entry")
            sizes = struct.unpack_from(f"<{chunks}I", table, position)
            position += 4 * chunks
            offsets = tuple(accumulate(map(_padded, sizes), initial=offset))
            offset = offsets[-1]
            yield name, _Array(field, chunk_rows, offsets, sizes)
        if len(table) != -(-position // layout.CHUNK_ALIGNMENT) * layout.CHUNK_ALIGNMENT:
            raise CorruptDataError(f"the table of arrays has {position} bytes and padding, found {len(table)}")

    @property
    def names(self) -> tuple[str, ...]:
        """Zarr names of the arrays, in their order."""
        return tuple(self._arrays)

    def decode(self, start: int, stop: int, out: Mapping[str, NDArray[Any] | CutRows], *, verify: bool = True) -> None:
        """Decode rows ``start:stop`` of some arrays, by their Zarr names, into arrays of the caller's.

        Raises
        ------
        CorruptDataError
            A chunk breaks a rule; ``row`` counts from the first row of the document.
        """
        for name, target in out.items():
            array = self._arrays[name]
            step = array.chunk_rows
            for number in range(start // step, -(-stop // step)):
                base = number * step
                low, high = max(start - base, 0), min(stop - base, step)
                data = self._read(array.offsets[number], array.offsets[number] + array.sizes[number])
                rows = min(step, self.header.rows - base)
                try:
                    part = target[base + low - start : base + high - start]
                    array.field.decode_chunk(data, low, part, rows=rows, verify=verify)
                except LogitStoreError as error:
                    place = type(error)(f"{name}, chunk {number}: {error.message}", path=error.path, row=base + low)
                    raise place from None

    @property
    def row_bytes(self) -> int:
        """Bytes of a decoded row."""
        return sum(np.dtype(array.field.dtype).itemsize * (array.field.columns or 1) for array in self._arrays.values())

    def empty(self, rows: int) -> dict[str, NDArray[Any]]:
        """Return an array of so many rows for every array of the file."""
        return {
            name: np.empty((rows, *array.field.row_shape), array.field.dtype) for name, array in self._arrays.items()
        }


@lru_cache(8)
def _fields_of(
    slots: int, vocab_size: int, temperatures: int, books: BookSource | None
) -> dict[bytes, tuple[int, Field]]:
    """Every array a document may have, and its place among them, by its name as it stands in the table.

    How many rows its chunks have is for the file's own table to say.
    """
    fields: dict[bytes, tuple[int, Field]] = {}
    for values in ("logprob", "logit"):
        for field in row_fields(
            slots=slots, vocab_size=vocab_size, values=values, counts=True, temperatures=temperatures,
            rows_per_shard=1, codec="exact" if books is None else "compact", books=books,
        ):  # fmt: skip
            fields[field.name.encode().ljust(16, b"\0")] = _ORDER.index(field.name), field
    return fields


def _padded(size: int) -> int:
    return -(-size // layout.CHUNK_ALIGNMENT) * layout.CHUNK_ALIGNMENT
