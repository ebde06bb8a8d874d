"""Codebooks that this process has loaded, by digest, for those who only have a chunk in their hands.

A store's reader knows its codebooks. Zarr, which hands chunks to a codec one by one, does not: it finds here what was
loaded before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from logitstore.codec.compact.chunk import read_header
from logitstore.codec.compact.parse import parse
from logitstore.errors import TruncatedDataError

if TYPE_CHECKING:
    from logitstore.codec.compact.codebook import Codebook

__all__ = ["codebook_of", "find", "register"]

_BOOKS: dict[bytes, Codebook] = {}


def register(book: Codebook | bytes) -> Codebook:
    """Make a codebook, or the bytes of its file, known to this process, and return it.

    Raises
    ------
    CorruptDataError
        The bytes are not a codebook.
    """
    parsed = parse(book) if isinstance(book, bytes) else book
    return _BOOKS.setdefault(parsed.digest, parsed)


def find(digest: bytes) -> Codebook:
    """Return the codebook of a digest.

    Raises
    ------
    TruncatedDataError
        It was not loaded.
    """
    try:
        return _BOOKS[digest]
    except KeyError:
        raise TruncatedDataError(
            f"codebook {digest.hex()} is not loaded: open the store it lies in with logitstore.zarr.open (a store in "
            "tars with logitstore.wds.urls), or hand its file to logitstore.codec.compact.register"
        ) from None


def codebook_of(chunk: memoryview) -> Codebook:
    """Return the codebook that a chunk was coded with. Errors as `find`, and as for any chunk."""
    return find(read_header(chunk, verify=False).digest)
