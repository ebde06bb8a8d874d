"""`Store`: a path and nothing else."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import operator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, overload

import numpy as np

from logitstore.container.fields import DOCUMENT_FIELDS, metadata_differences
from logitstore.container.manifest import FileRecord, Manifest
from logitstore.container.progress import Progress
from logitstore.container.writer import DOCUMENTS_FILE
from logitstore.errors import CorruptDataError, InvalidArgumentError, TruncatedDataError
from logitstore.layout import SHARD_TABLE_FILE
from logitstore.reader.rows import Document, Rows
from logitstore.reader.shard_cache import ShardCache

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

__all__ = ["RowReader", "Store", "open_store"]

Verify = Literal["none", "lazy", "full"]
Order = Literal["logit", "stored"]


def open_store(path: str | os.PathLike[str], *, verify: Verify = "lazy", order: Order = "logit") -> Store:
    """Open a store for reading. Takes a few small reads, however large the store is.

    Parameters
    ----------
    path
        Directory of the store.
    verify
        ``"lazy"`` checks every chunk when it is first read; ``"full"`` also compares files with their sha256: the
        records of documents and shards at once, each shard when it is first opened; ``"none"`` checks only sizes,
        identities and what decoding itself notices.
    order
        Order of the entries of a row: ``"logit"`` sorts them by falling logit, so that ``ids[:, :8]`` are the eight
        most probable; ``"stored"`` leaves them in ascending order of ids, as plain Zarr gives them, and is faster.

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
    return Store(Path(path), verify=verify, order=order)


class Store:
    """Documents of a store by number, and its rows through `rows`. Use `open_store` to make one.

    Picklable, and safe to use from threads, forked and spawned workers.

    Attributes
    ----------
    path
        Directory of the store.
    manifest
        What ``manifest.json`` says.
    """

    def __init__(self, path: Path, *, verify: Verify, order: Order, open_files: int = 64) -> None:
        self.path = path
        self.manifest = Manifest.read(path)
        self.order = order
        if not self.manifest.complete:
            done = Progress.read(path)
            raise TruncatedDataError(
                f"the build of this store was not finished: {done.rows} rows of {done.documents} documents are "
                f"committed in {done.shards} shards; go on with `logitstore build --resume`",
                path=path,
            )
        self._row_fields = self.manifest.row_fields
        self._fields = {field.name: field for field in (*self._row_fields, *DOCUMENT_FIELDS)}
        self._check_arrays()
        if verify == "full":
            self._check_digest(DOCUMENTS_FILE, self.manifest.documents_file)
            self._check_digest(SHARD_TABLE_FILE, self.manifest.shard_table)
        self._shards = ShardCache(path, self.manifest, verify=verify, capacity=open_files)

    def _check_arrays(self) -> None:
        """Compare each array's Zarr metadata with the manifest: an edited shape must not change what is read."""
        for field in self._fields.values():
            path = self.path / field.name / "zarr.json"
            try:
                found = json.loads(path.read_bytes())
            except FileNotFoundError:
                raise TruncatedDataError("the array's metadata is missing", path=path) from None
            except (ValueError, RecursionError) as error:
                raise CorruptDataError(f"the array's metadata is not JSON: {error}", path=path) from None
            if not isinstance(found, dict):
                raise CorruptDataError("the array's metadata is an object", path=path)
            for key, value, expected in metadata_differences(found, field, *self.manifest.geometry(field)):
                raise CorruptDataError(f"the array's {key} is {value}, the manifest gives {expected}", path=path)

    def _check_digest(self, name: str, record: FileRecord | None) -> None:
        """Compare a file with what the manifest says of it, which is all that vouches for it."""
        path = self.path / name
        try:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                found = FileRecord(file.tell(), digest)
        except FileNotFoundError:
            raise TruncatedDataError("the file is missing", path=path) from None
        if found != record:
            raise CorruptDataError(f"the file has {found}, the manifest gives {record}", path=path)

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
        return self.document(_position(index, len(self), "document"))

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
                f"document {index} has {about['rows']} rows, doc_offsets gives {last - first}",
                path=self.path / DOCUMENTS_FILE, row=first,
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
        offsets: NDArray[np.int64] = self.read_field("doc_offsets", start, stop + 1)
        if offsets[0] < 0 or offsets[-1] > self.manifest.rows or (np.diff(offsets) < 1).any():
            raise CorruptDataError(
                f"the offsets of documents {start} to {stop} rise within the {self.manifest.rows} rows of the store",
                path=self.path / "doc_offsets",
            )
        return offsets

    def about(self, index: int) -> dict[str, Any]:
        """Return the line of ``documents.jsonl`` about a document: key, rows, parent, metadata."""
        path = self.path / DOCUMENTS_FILE
        first, last = (int(byte) for byte in self.read_field("doc_lines", index, index + 2))
        size = self.manifest.documents_file.bytes if self.manifest.documents_file else 0
        if not 0 <= first < last <= size:
            raise CorruptDataError(f"document {index} has bytes {first} to {last} of {size}", path=path)
        try:
            with path.open("rb") as file:
                file.seek(first)
                line = file.read(last - first)
            about = json.loads(line)
        except FileNotFoundError:
            raise TruncatedDataError("the record of documents is missing", path=path) from None
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
        stored = self._array_name("values")
        names = {("values" if field.name == stored else field.name): field.name for field in self._row_fields}
        wanted = list(names) if fields is None else list(fields)
        if unknown := set(wanted) - set(names):
            raise InvalidArgumentError(f"the store has fields {sorted(names)}, not {sorted(unknown)}", path=self.path)
        arrays: dict[str, Any] = dict.fromkeys(("tokens", "ids", "values", "lse", "label_logprob", "mask"))
        # The fields with an entry per slot share one order, which only the values know.
        slotted = {"ids", "values", "counts"} & set(names)
        sorts = self.order == "logit" and not slotted.isdisjoint(wanted)
        for name in {*wanted, *slotted} if sorts else wanted:
            arrays[name] = self.read_field(names[name], start, stop)
        rows = Rows(**arrays, stores=self.manifest.values)
        if sorts:
            unwanted: dict[str, Any] = dict.fromkeys(slotted - set(wanted))
            rows = dataclasses.replace(rows.by_logit(), **unwanted)
        return rows

    def read_into(self, start: int, stop: int, out: dict[str, NDArray[Any]]) -> None:
        """Decode rows ``start:stop`` into arrays of the caller's, entries in the stored order.

        Parameters
        ----------
        start, stop
            As for `read`.
        out
            Field (as for `read`) → contiguous array with one row per row asked for, of the type and width of `Rows`.
        """
        for name, array in out.items():
            self.read_field(self._array_name(name), start, stop, array)

    def _array_name(self, name: str) -> str:
        """Return the Zarr name of a field of `Rows`."""
        if name == "values":
            return "logprobs" if self.manifest.values == "logprob" else "logits"
        return name

    def read_field(self, name: str, start: int, stop: int, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Return ``start:stop`` of one array by its Zarr name, as stored; in ``out`` if it is given."""
        if name not in self._fields:
            raise InvalidArgumentError(f"the store has arrays {sorted(self._fields)}, not {name!r}", path=self.path)
        field = self._fields[name]
        total, rows_per_shard = self.manifest.geometry(field)
        if not 0 <= start <= stop <= total:
            raise InvalidArgumentError(f"{start}:{stop} is not within the {total} rows of {name}", path=self.path)
        if out is None:
            out = np.empty((stop - start, *field.row_shape), field.dtype)
        elif len(out) != stop - start:
            raise InvalidArgumentError(f"{stop - start} rows do not fit an array of {len(out)}", path=self.path)
        for shard in range(start // rows_per_shard, -(-stop // rows_per_shard)):
            base = shard * rows_per_shard
            low, high = max(start, base), min(stop, base + rows_per_shard)
            self._shards.get(field, shard).read(low - base, high - base, out[low - start : high - start])
        return out

    def close(self) -> None:
        """Close all files. Arrays that were handed out stay valid."""
        self._shards.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class RowReader:
    """Rows of a store, whatever document they belong to.

    ``rows[i]`` is one row (arrays without the first axis), ``rows[a:b]`` and ``rows[[5, 2, 9]]`` are several, in the
    order asked for.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def __len__(self) -> int:
        return self._store.manifest.rows

    def __getitem__(self, index: int | slice | Sequence[int] | NDArray[np.integer[Any]]) -> Rows:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step == 1:
                return self._store.read(start, max(start, stop))
            return self[np.arange(start, stop, step)]
        if isinstance(index, (list, tuple, np.ndarray)):
            return self._gather(np.asarray(index))
        position = _position(index, len(self), "row")
        return self._store.read(position, position + 1).select(0)

    def _gather(self, index: NDArray[Any]) -> Rows:
        if index.ndim != 1 or not (np.issubdtype(index.dtype, np.integer) or not index.size):
            raise InvalidArgumentError(f"row numbers are a one-dimensional array of integers, found {index!r}")
        if not index.size:
            return self._store.read(0, 0)
        positions = np.array([_position(number, len(self), "row") for number in index])
        # One read per run of consecutive rows, each row once.
        unique, inverse = np.unique(positions, return_inverse=True)
        breaks = np.flatnonzero(np.diff(unique) != 1) + 1
        runs = [self._store.read(int(run[0]), int(run[-1]) + 1) for run in np.split(unique, breaks)]
        return _concatenate(runs).select(inverse)


def _concatenate(runs: list[Rows]) -> Rows:
    if len(runs) == 1:
        return runs[0]
    names = [name for name, value in runs[0].__dict__.items() if isinstance(value, np.ndarray)]
    arrays = {name: np.concatenate([getattr(run, name) for run in runs]) for name in names}
    return Rows(**{**runs[0].__dict__, **arrays})


def _position(index: Any, length: int, what: str) -> int:
    try:
        position = operator.index(index)
    except TypeError:
        raise InvalidArgumentError(f"a {what} is named by an integer or a slice, found {index!r}") from None
    if not -length <= position < length:
        raise IndexError(f"{what} {position} of {length}")
    return position % length
