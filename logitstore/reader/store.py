"""`Store`: a path and nothing else."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any, Literal, Self, overload

import numpy as np

from logitstore import layout
from logitstore.codec import CutRows
from logitstore.container.codebooks import StoreBooks, books_of
from logitstore.container.fields import DOCUMENT_FIELDS
from logitstore.container.file_record import FileRecord
from logitstore.container.files import LocalFiles, files_at
from logitstore.container.manifest import Manifest
from logitstore.container.progress import Progress
from logitstore.container.writer import DOCUMENTS_FILE
from logitstore.errors import CorruptDataError, InvalidArgumentError, TruncatedDataError
from logitstore.reader.row_files import TableFiles
from logitstore.reader.row_reader import RowReader, position_of
from logitstore.reader.rows import Document, Rows
from logitstore.reader.tar_rows import TarRows
from logitstore.reader.zarr_rows import ZarrRows

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from logitstore.codec import RowFormat
    from logitstore.codec.compact import Codebook, IdCodec, ValueCodec
    from logitstore.container.codec_record import CodebookSet
    from logitstore.container.files import StoreFiles
    from logitstore.reader.row_files import RowFiles

__all__ = ["Store", "open_store"]

Verify = Literal["none", "lazy", "full"]
Order = Literal["logit", "stored"]


def open_store(
    path: str | os.PathLike[str],
    *,
    verify: Verify = "lazy",
    order: Order = "logit",
    cache_bytes: int = 1 << 30,
    storage_options: dict[str, Any] | None = None,
) -> Store:
    """Open a store for reading. Takes a few small reads, however large the store is.

    Parameters
    ----------
    path
        Directory of the store, or a URL that fsspec understands (``s3://``, ``https://``, ``hf://``, …). Remote files
        are read by range, and again after a pause where that fails.
    verify
        ``"lazy"`` checks every chunk when it is first read; ``"full"`` also compares files with their sha256: the
        records of documents and shards at once, each shard when it is first opened; ``"none"`` checks only sizes,
        identities and what decoding itself notices.
    order
        Order of the entries of a row: ``"logit"`` sorts them by falling logit, so that ``ids[:, :8]`` are the eight
        most probable; ``"stored"`` leaves them as they are stored, as plain Zarr gives them, and is faster: in
        ascending order of ids, or, in a store of the ``compact`` codec, in no order that means anything.
    cache_bytes
        Bytes of shards that are mapped, or kept of remote files, at the same time.
    storage_options
        For fsspec, with a URL: credentials, endpoints.

    Raises
    ------
    TruncatedDataError
        There is no store, or its build was not finished.
    CorruptDataError
        The manifest or an array's metadata is broken or was edited.
    UnsupportedVersionError
        The store was written by a newer version.

    Examples
    --------
    >>> store = open_store("teacher.zarr")                          # doctest: +SKIP
    >>> document = store[3]                                         # doctest: +SKIP
    >>> document.tokens.shape, document.ids.shape                   # doctest: +SKIP
    ((211,), (211, 64))
    """
    if verify not in ("none", "lazy", "full"):
        raise InvalidArgumentError(f"verify is 'none', 'lazy' or 'full', found {verify!r}")
    if order not in ("logit", "stored"):
        raise InvalidArgumentError(f"order is 'logit' or 'stored', found {order!r}")
    files = files_at(path, storage_options=storage_options, cache_bytes=cache_bytes)
    return Store(files, verify=verify, order=order, max_bytes=cache_bytes)


class Store:
    """Documents of a store by number, and its rows through `rows`. Use `open_store` to make one.

    Picklable, and safe to use from threads, forked and spawned workers.

    Attributes
    ----------
    path
        Directory or URL of the store.
    manifest
        What ``manifest.json`` says.
    fields
        Arrays with one row per token, ready to decode.
    """

    def __init__(
        self, files: StoreFiles, *, verify: Verify, order: Order, open_files: int = 64, max_bytes: int = 1 << 30
    ) -> None:
        self.path: Path | str = files.path if isinstance(files, LocalFiles) else files.place()
        self.manifest = Manifest.read(files)
        self.order = order
        if not self.manifest.complete:
            raise TruncatedDataError(f"the build of this store was not finished{_how_far(files)}", path=self.path)
        self._files = files
        self._tables = TableFiles(files, self.manifest)
        self._books = books = books_of(files, self.manifest)
        self.fields = self.manifest.fields_with(books)
        self._row_fields = {
            "values" if field.name in ("logprobs", "logits") else field.name: field for field in self.fields
        }
        self._layout = {
            name: (field.name, np.dtype(field.dtype), field.row_shape) for name, field in self._row_fields.items()
        }
        limits: Any = {"verify": verify, "open_files": open_files, "max_bytes": max_bytes}
        self._rows: RowFiles = (
            TarRows(files, self.manifest, self._tables, books, **limits)
            if self.manifest.container == "webdataset"
            else ZarrRows(files, self.manifest, self.fields, **limits)
        )
        if verify == "full":
            self._check_digest(DOCUMENTS_FILE, self.manifest.documents_file)
            self._check_digest(layout.SHARD_TABLE_FILE, self.manifest.shard_table)
            if self.manifest.index_file is not None:
                self._check_digest(layout.INDEX_FILE, self.manifest.index_file)
            for name, file in self.manifest.codec.files.items():
                self._check_digest(name, file)

    def _check_digest(self, name: str, record: FileRecord | None) -> None:
        """Compare a file with what the manifest says of it, which is all that vouches for it."""
        path = self._files.place(name)
        try:
            file = self._files.open(name)
        except FileNotFoundError:
            raise TruncatedDataError("the file is missing", path=path) from None
        found = FileRecord(file.size, file.sha256())
        file.close()
        if found != record:
            kind = TruncatedDataError if record is not None and found.bytes < record.bytes else CorruptDataError
            raise kind(f"the file has {found}, the manifest gives {record}", path=path)

    @property
    def vocab_size(self) -> int:
        """Number of token ids the teacher really has."""
        return self.manifest.vocab_size

    @property
    def k_max(self) -> int:
        """``K``: entries a row has room for."""
        return self.manifest.slots

    @property
    def rows(self) -> RowReader:
        """Rows across documents: ``store.rows[1000:1010]``."""
        return RowReader(self)

    def __len__(self) -> int:
        return self.manifest.documents

    def __repr__(self) -> str:
        m = self.manifest
        return f"<logitstore.Store {str(self.path)!r}: {m.documents} documents, {m.rows} rows, K = {m.slots}>"

    @overload
    def __getitem__(self, index: int | np.integer[Any]) -> Document: ...
    @overload
    def __getitem__(self, index: slice) -> list[Document]: ...
    def __getitem__(self, index: int | np.integer[Any] | slice) -> Document | list[Document]:
        if isinstance(index, slice):
            return [self.document(number) for number in range(*index.indices(len(self)))]
        return self.document(position_of(index, len(self), "document"))

    def __getitems__(self, indices: Sequence[int]) -> list[Document]:
        """Return several documents, in the order asked for."""
        return [self[index] for index in indices]

    def __iter__(self) -> Iterator[Document]:
        return (self.document(number) for number in range(len(self)))

    def document(self, index: int, fields: Sequence[str] | None = None) -> Document:
        """Return a document, or only some fields of it; see `read`."""
        first, last = self.offsets(index, index + 1).tolist()
        about = self.about(index)
        if about["rows"] != last - first:
            raise CorruptDataError(
                f"document {index} has {about['rows']} rows by its line, {last - first} by where it lies",
                path=self._files.place(DOCUMENTS_FILE), row=first,
            )  # fmt: skip
        rows = self.read(first, last, fields)
        parent = about.get("parent")
        return Document(
            **rows.__dict__,
            index=index,
            key=about["key"],
            first_row=first,
            parent=None if parent is None else (parent["key"], parent["first_token"]),
            metadata=about.get("metadata", {}),
        )

    def offsets(self, start: int, stop: int) -> NDArray[np.int64]:
        """Return the first row of documents ``start:stop``, and the row behind the last of them.

        Returns
        -------
        NDArray
            ``(stop - start + 1,)`` int64, rising strictly: ``np.diff`` gives the documents' lengths.
        """
        if not 0 <= start <= stop <= len(self):
            raise InvalidArgumentError(
                f"documents {start}:{stop} are not within the {len(self)} of the store", path=self.path
            )
        offsets = self._rows.offsets(start, stop)
        if offsets[0] < 0 or offsets[-1] > self.manifest.rows or (np.diff(offsets) < 1).any():
            raise CorruptDataError(
                f"the offsets of documents {start} to {stop} rise within the {self.manifest.rows} rows of the store",
                path=self.path,
            )
        return offsets

    def about(self, index: int) -> dict[str, Any]:
        """Return the line of ``documents.jsonl`` about a document: key, rows, parent, metadata."""
        path = self._files.place(DOCUMENTS_FILE)
        line = self._tables.read(DOCUMENTS_FILE, *self._rows.line(index))
        try:
            about = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise CorruptDataError(f"the line of document {index} is not JSON: {error}", path=path) from None
        if not isinstance(about, dict) or type(about.get("rows")) is not int or not isinstance(about.get("key"), str):
            raise CorruptDataError(f"the line of document {index} has a key and a number of rows", path=path)
        parent = about.get("parent")
        if parent is not None and not (isinstance(parent, dict) and {"key", "first_token"} <= set(parent)):
            raise CorruptDataError(f"the parent of document {index} has a key and a first token", path=path)
        return about

    def read(self, start: int, stop: int, fields: Sequence[str] | None = None) -> Rows:
        """Return rows ``start:stop``.

        Parameters
        ----------
        start, stop
            ``0 <= start <= stop <= rows``.
        fields
            Which of ``tokens, ids, values, lse, label_logprob, mask, counts, lse_T`` to read; all by default. The
            others are None.
        """
        if not 0 <= start <= stop <= self.manifest.rows:
            raise InvalidArgumentError(
                f"rows {start}:{stop} are not within the {self.manifest.rows} rows of the store", path=self.path
            )
        wanted = list(self._row_fields) if fields is None else list(fields)
        self._require_fields(wanted)
        # The fields with an entry per slot share one order, which only the values know.
        slotted = {"ids", "values", "counts"} & set(self._row_fields)
        sorts = self.order == "logit" and not slotted.isdisjoint(wanted)
        out = {
            name: np.empty((stop - start, *self._row_fields[name].row_shape), self._row_fields[name].dtype)
            for name in {*wanted, *(slotted if sorts else ())}
        }
        self.read_into(start, stop, out)
        arrays: dict[str, Any] = dict.fromkeys(("tokens", "ids", "values", "lse", "label_logprob", "mask")) | out
        rows = Rows(**arrays, stores=self.manifest.values)
        if sorts:
            unwanted: dict[str, Any] = dict.fromkeys(slotted - set(wanted))
            rows = dataclasses.replace(rows.by_logit(), **unwanted)
        return rows

    def read_into(self, start: int, stop: int, out: Mapping[str, NDArray[Any] | CutRows]) -> None:
        """Decode rows ``start:stop`` into arrays of the caller's, entries in the stored order.

        Parameters
        ----------
        start, stop
            As for `read`.
        out
            Field (as for `read`) → contiguous array with one row per row asked for, of the type and width of `Rows`;
            or, for ids, values and counts, `CutRows` of as many rows, which get them as they are coded.
        """
        if not 0 <= start <= stop <= self.manifest.rows:
            raise InvalidArgumentError(
                f"rows {start}:{stop} are not within the {self.manifest.rows} rows of the store", path=self.path
            )
        arrays: dict[str, NDArray[Any] | CutRows] = {}
        for name, array in out.items():
            if name not in self._layout:
                self._require_fields([name])
            stored, dtype, row_shape = self._layout[name]
            if isinstance(array, CutRows):
                if len(array) != stop - start or len(row_shape) != 1 or name == "lse_T":
                    raise InvalidArgumentError(f"{name} of rows {start}:{stop} is not cut into {len(array)} rows")
            elif array.dtype != dtype or array.shape != (stop - start, *row_shape):
                raise InvalidArgumentError(
                    f"{name} of rows {start}:{stop} is {dtype} of shape {(stop - start, *row_shape)}, found "
                    f"{array.dtype} of shape {array.shape}", path=self.path,
                )  # fmt: skip
            arrays[stored] = array
        self._rows.read(start, stop, arrays)

    def codebooks(self) -> list[tuple[CodebookSet, dict[str, Codebook]]]:
        """Return the sets of codebooks of a store of the ``compact`` codec, and the codebooks of each by array."""
        source = StoreBooks(self._files, self.manifest)
        return [
            (books, {array: source.book(array, file) for array, file in books.files.items()})
            for books in self.manifest.codec.codebooks
        ]

    def row_format(self, name: str) -> RowFormat:
        """Return what rows of ``ids``, ``values`` or ``counts`` hold that `read_into` cuts."""
        self._require_fields([name])
        return self._row_fields[name].row_format

    def codec_of(self, name: str, digest: bytes) -> IdCodec | ValueCodec:
        """Return what decodes rows of ``ids``, ``values`` or ``counts`` that `read_into` cuts, by their codebook.

        Raises
        ------
        CorruptDataError
            The manifest gives no such codebook, or it is missing or broken.
        """
        self._require_fields([name])
        if self._books is None:
            raise CorruptDataError(
                f"rows of {name} were coded with codebook {digest.hex()}, the store has none", path=self.path
            )
        return self._books.codec_of(self._row_fields[name], digest)

    def _require_fields(self, names: Iterable[str]) -> None:
        if unknown := set(names) - set(self._row_fields):
            known = sorted(self._row_fields)
            raise InvalidArgumentError(f"the store has fields {known}, not {sorted(unknown)}", path=self.path)

    def read_field(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Return ``start:stop`` of one array by its Zarr name, as stored.

        A Zarr store has ``doc_offsets`` and ``doc_lines`` as well, whose rows are documents.
        """
        fields = {field.name: field for field in self._row_fields.values()}
        if self.manifest.container == "zarr":
            fields |= {field.name: field for field in DOCUMENT_FIELDS}
        if name not in fields:
            raise InvalidArgumentError(f"the store has arrays {sorted(fields)}, not {name!r}", path=self.path)
        total, _ = self.manifest.geometry(fields[name])
        if not 0 <= start <= stop <= total:
            raise InvalidArgumentError(f"{start}:{stop} is not within the {total} rows of {name}", path=self.path)
        out = np.empty((stop - start, *fields[name].row_shape), fields[name].dtype)
        self._rows.read(start, stop, {name: out})
        return out

    def close(self) -> None:
        """Close all files. Arrays that were handed out stay valid."""
        self._rows.close()
        self._tables.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _how_far(files: StoreFiles) -> str:
    """Say how far an unfinished build has come, where that can be known."""
    if not isinstance(files, LocalFiles):
        return ""
    done = Progress.read(files.path)
    return (
        f": {done.rows} rows of {done.documents} documents are committed in {done.shards} shards; go on with "
        "`logitstore build --resume`"
    )
