"""Stores in tar shards inside WebDataset pipelines. Importing this is all it takes for ``.decode()`` to know ``.lgt``.

>>> import webdataset as wds, logitstore.wds                                   # doctest: +SKIP
>>> urls = logitstore.wds.urls("teacher.wds")                                  # doctest: +SKIP
>>> for sample in wds.WebDataset(urls, shardshuffle=False).decode():           # doctest: +SKIP
...     sample["json"]["key"], sample["lgt"].logprobs.shape
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from logitstore import layout
from logitstore.container.codebooks import RegisteredBooks, StoreBooks, register_codebooks
from logitstore.container.document import DocumentFile
from logitstore.container.files import files_at
from logitstore.container.manifest import Manifest
from logitstore.container.shard_table import ShardTable
from logitstore.container.tar_index import shard_name, tar_key
from logitstore.errors import CorruptDataError, InvalidArgumentError, TruncatedDataError
from logitstore.reader.rows import Document

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from typing_extensions import Buffer

    from logitstore.container.fields import BookSource
    from logitstore.container.shard_table import ShardRecord

__all__ = ["Handler", "decode_lgt", "handler", "urls", "whole_shards"]

Order = Literal["logit", "stored"]
DEFAULT_MAX_BYTES = 16 << 30
_REGISTERED = RegisteredBooks()


def decode_lgt(
    data: Buffer,
    *,
    order: Order = "logit",
    verify: bool = True,
    max_bytes: int = DEFAULT_MAX_BYTES,
    books: BookSource | None = None,
) -> Document:
    """Decode the content of a ``.lgt`` member.

    Parameters
    ----------
    data
        All its bytes.
    order
        As for `logitstore.open`: entries by falling logit, or as they are stored, which is faster.
    verify
        Whether to check checksums.
    max_bytes
        Bytes that the decoded rows may take: a few bytes from a stranger can stand for a billion rows.
    books
        Where codebooks of the ``compact`` codec are found; those that this process has loaded, if None. `urls` loads
        the store's; a `Handler` that knows the store loads them in any process.

    Returns
    -------
    Document
        Its rows, with the document's number and first row. Key, parent and metadata are in the ``.json`` member.

    Raises
    ------
    CorruptDataError, TruncatedDataError, UnsupportedVersionError
        The bytes are not a sound document file, or stand for more than ``max_bytes``.
    """
    view = memoryview(data).cast("B").toreadonly()
    file = DocumentFile(lambda start, stop: view[start:stop], len(view), books or _REGISTERED)
    header = file.header
    if header.rows * file.row_bytes > max_bytes:
        raise CorruptDataError(f"{header.rows} rows of {file.row_bytes} bytes are more than max_bytes, {max_bytes}")
    arrays: dict[str, Any] = file.empty(header.rows)
    file.decode(0, header.rows, arrays, verify=verify)
    stores = "logprob" if "logprobs" in arrays else "logit"
    arrays["values"] = arrays.pop(f"{stores}s")
    document = Document(**arrays, stores=stores, index=header.document, first_row=header.first_row)
    return document.by_logit() if order == "logit" else document


@dataclass(frozen=True)
class Handler:
    """A handler for ``.decode(...)``: decodes what ends in ``.lgt`` and leaves everything else to others.

    Attributes
    ----------
    order, verify, max_bytes
        As for `decode_lgt`.
    store
        Directory or URL of the store that documents are from. Needed where they are of the ``compact`` codec and the
        process that decodes them was not forked from one that has called `urls`.

    Examples
    --------
    >>> Handler(order="stored")(".txt", b"not ours") is None
    True
    """

    order: Order = "logit"
    verify: bool = True
    max_bytes: int = DEFAULT_MAX_BYTES
    store: str | os.PathLike[str] | None = None

    def __call__(self, key: str, data: bytes) -> Document | None:
        """Decode a member; ``key`` is its extension with a leading dot."""
        if not key.endswith(".lgt"):
            return None
        books = None if self.store is None else _books_at(os.fspath(self.store))
        return decode_lgt(data, order=self.order, verify=self.verify, max_bytes=self.max_bytes, books=books)


@lru_cache(8)
def _books_at(store: str) -> StoreBooks:
    files = files_at(store)
    return StoreBooks(files, Manifest.read(files))


handler = Handler()
"""For ``.decode(logitstore.wds.handler)``."""


def urls(store: str | os.PathLike[str], *, storage_options: dict[str, Any] | None = None) -> list[str]:
    """Return the tars of a store, in order, and load its codebooks, if it has any.

    Raises
    ------
    InvalidArgumentError
        The store is not one of tar shards.
    TruncatedDataError
        It is not complete.
    """
    files = files_at(store, storage_options=storage_options)
    tars = [files.place(shard_name(record.shard)) for record in _records(store, storage_options)]
    register_codebooks(files)
    return tars


def whole_shards(
    store: str | os.PathLike[str], *, storage_options: dict[str, Any] | None = None
) -> Callable[[Iterable[dict[str, Any]]], Iterator[dict[str, Any]]]:
    """Return a stage for a pipeline that passes samples on and raises where a shard gave fewer, or others.

    A tar that was cut between two members looks like a shorter tar to WebDataset. Put this behind the tars are opened
    and before anything shuffles.

    Examples
    --------
    >>> wds.WebDataset(urls(path)).compose(whole_shards(path)).decode().shuffle(100)      # doctest: +SKIP

    Raises
    ------
    TruncatedDataError
        From the stage: samples are missing at the end of a shard.
    CorruptDataError
        From the stage: a shard holds another sample than the store says.
    """
    return _WholeShards({shard_name(record.shard): record for record in _records(store, storage_options)})


@dataclass(frozen=True)
class _WholeShards:
    records: dict[str, ShardRecord]

    def __call__(self, samples: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        url, seen = None, 0
        for sample in samples:
            if sample["__url__"] != url:
                self._check_end(url, seen)
                url, seen = sample["__url__"], 0
            record = self._record(url)
            expected = tar_key((record.first_document or 0) + seen)
            if seen >= (record.documents or 0) or sample["__key__"] != expected:
                raise CorruptDataError(
                    f"sample {seen} is {sample['__key__']}, the store has {record.documents} samples from "
                    f"{tar_key(record.first_document or 0)} on here", path=url, shard=record.shard,
                )  # fmt: skip
            seen += 1
            yield sample
        self._check_end(url, seen)

    def _record(self, url: str | None) -> ShardRecord:
        name = str(url).rsplit("/", maxsplit=1)[-1]
        if name not in self.records:
            raise InvalidArgumentError(f"the store has no shard {name}", path=url)
        return self.records[name]

    def _check_end(self, url: str | None, seen: int) -> None:
        if url is not None and seen != (record := self._record(url)).documents:
            raise TruncatedDataError(
                f"the tar ended after {seen} of {record.documents} samples", path=url, shard=record.shard
            )


def _records(store: str | os.PathLike[str], storage_options: dict[str, Any] | None) -> list[ShardRecord]:
    files = files_at(store, storage_options=storage_options)
    manifest = Manifest.read(files)
    if manifest.container != "webdataset":
        raise InvalidArgumentError(
            "the store has no tar shards; `logitstore convert --to webdataset` makes them", path=files.place()
        )
    if not manifest.complete:
        raise TruncatedDataError("the build of this store was not finished", path=files.place(layout.MANIFEST_FILE))
    table = ShardTable(files, manifest.record_bytes, manifest.row_shards)
    return [table.record(shard) for shard in range(manifest.row_shards)]


def _register() -> None:
    import webdataset.autodecode

    webdataset.autodecode.decoders.setdefault("lgt", decode_lgt)


_register()
