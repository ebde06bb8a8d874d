"""Codebooks for readers: loaded when the first chunk needs them, and no others than the manifest's."""

from __future__ import annotations

import threading
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from logitstore import layout
from logitstore.codec.compact import (
    Codebook,
    IdBook,
    IdCodec,
    ValueBook,
    ValueCodec,
    codebook_of,
    find,
    parse,
    register,
)
from logitstore.codec.compact.chunk import read_header
from logitstore.container.codec_record import codebook_name
from logitstore.container.file_record import FileRecord
from logitstore.container.manifest import Manifest
from logitstore.errors import CorruptDataError, LogitStoreError, TruncatedDataError

if TYPE_CHECKING:
    from logitstore.container.fields import Field
    from logitstore.container.files import StoreFiles

__all__ = ["RegisteredBooks", "StoreBooks", "books_of", "fields_of", "register_codebooks", "registered_codec"]

_DIGEST = slice(20, 20 + layout.CODEBOOK_DIGEST_BYTES)
"""Where a chunk names its codebook."""


class StoreBooks:
    """The codebooks of a store; see `BookSource`. Picklable, safe to use from threads.

    Parameters
    ----------
    files, manifest
        The store.
    """

    def __init__(self, files: StoreFiles, manifest: Manifest) -> None:
        self._files = files
        self._records = {
            (name, bytes.fromhex(file.sha256)[: layout.CODEBOOK_DIGEST_BYTES]): file
            for books in manifest.codec.codebooks
            for name, file in books.files.items()
        }
        self._vocab_size = manifest.vocab_size
        self._codecs: dict[tuple[str, bytes], IdCodec | ValueCodec] = {}
        self._lock = threading.Lock()

    def codec(self, field: Field, chunk: memoryview) -> IdCodec | ValueCodec:
        """See `BookSource`."""
        digest = bytes(chunk[_DIGEST])
        if (field.name, digest) not in self._records:
            read_header(chunk)  # a broken chunk is no reason to speak of codebooks
        return self.codec_of(field, digest)

    def codec_of(self, field: Field, digest: bytes) -> IdCodec | ValueCodec:
        """Return what decodes chunks of a field that name this codebook.

        Raises
        ------
        CorruptDataError
            The manifest gives no such codebook for the field, or it is broken.
        """
        key = field.name, digest
        codec = self._codecs.get(key)
        if codec is None:
            if key not in self._records:
                raise CorruptDataError(
                    f"the chunk was coded with codebook {digest.hex()}, which is not one that the manifest gives for "
                    f"{field.name}"
                )
            with self._lock:
                codec = self._codecs.get(key) or _codec_of(self.book(field.name, self._records[key]), field)
                self._codecs[key] = codec
        return codec

    def book(self, array: str, file: FileRecord) -> Codebook:
        """Read a codebook and check that it is the one the manifest speaks of, and of the array's kind.

        Raises
        ------
        TruncatedDataError
            The file is missing or too short.
        CorruptDataError
            It is another one, or broken.
        """
        name = codebook_name(file)
        path = self._files.place(name)
        try:
            data = self._files.read(name, layout.CODEBOOK_MAX_BYTES + 1)
        except FileNotFoundError:
            raise TruncatedDataError(f"the codebook of {array} is missing", path=path) from None
        found = FileRecord.of_bytes(data)
        if found != file:
            kind = TruncatedDataError if found.bytes < file.bytes else CorruptDataError
            raise kind(f"the codebook of {array} has {found}, the manifest gives {file}", path=path)
        try:
            book = parse(data)
        except LogitStoreError as error:
            raise error.at(path=path) from None
        kinds = (IdBook, self._vocab_size) if array == "ids" else (ValueBook, 0)
        if (type(book), getattr(book, "vocab_size", 0)) != kinds:
            raise CorruptDataError(f"the codebook is not one of {array} of this store", path=path)
        return book

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_codecs": {}, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()


class RegisteredBooks:
    """Codebooks that this process has loaded, for chunks that come without their store; see `BookSource`."""

    def codec(self, field: Field, chunk: memoryview) -> IdCodec | ValueCodec:
        """See `BookSource`."""
        codec = registered_codec(codebook_of(chunk).digest, field.columns or 0)
        if isinstance(codec, IdCodec) != (field.kind == "ids"):
            raise CorruptDataError(f"the chunk names a codebook of another kind than {field.name}")
        return codec


@lru_cache(64)
def registered_codec(digest: bytes, slots: int) -> IdCodec | ValueCodec:
    """Return what decodes chunks of a codebook that this process has loaded; errors as `find`."""
    book = find(digest)
    return IdCodec(book, slots) if isinstance(book, IdBook) else ValueCodec(book, slots)


def _codec_of(book: Codebook, field: Field) -> IdCodec | ValueCodec:
    slots = field.columns or 0
    return IdCodec(book, slots) if isinstance(book, IdBook) else ValueCodec(book, slots)


def fields_of(files: StoreFiles, manifest: Manifest) -> tuple[Field, ...]:
    """Return a store's arrays with one row per token, ready to decode."""
    return manifest.fields_with(books_of(files, manifest))


def books_of(files: StoreFiles, manifest: Manifest) -> StoreBooks | None:
    """Return a store's codebooks; None where no chunk needs any."""
    return StoreBooks(files, manifest) if manifest.codec.name == "compact" else None


def register_codebooks(files: StoreFiles) -> Manifest:
    """Make the codebooks of a store known to this process, for chunks that come without it; return its manifest.

    Raises
    ------
    TruncatedDataError, CorruptDataError
        The store is not complete, or a codebook is missing, another one, or broken.
    """
    manifest = Manifest.read(files)
    if not manifest.complete:
        raise TruncatedDataError("the build of this store was not finished", path=files.place())
    source = StoreBooks(files, manifest)
    for books in manifest.codec.codebooks:
        for array, file in books.files.items():
            register(source.book(array, file))
    return manifest
