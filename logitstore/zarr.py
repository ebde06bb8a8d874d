"""Stores for plain Zarr: `open` gives a group of arrays that decode themselves.

A store of the ``exact`` codec needs nothing but `zarr.open_group`. Chunks of the ``compact`` codec name a codebook,
which Zarr does not know of; `open` loads the store's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from logitstore.container.codebooks import register_codebooks
from logitstore.container.files import files_at
from logitstore.errors import InvalidArgumentError

if TYPE_CHECKING:
    import os

    import zarr

__all__ = ["open"]


def open(  # noqa: A001 - as zarr calls it
    path: str | os.PathLike[str], *, storage_options: dict[str, Any] | None = None
) -> zarr.Group:
    """Open a store as a read-only Zarr group, codebooks included.

    Parameters
    ----------
    path
        Directory or URL of a complete Zarr store.
    storage_options
        For fsspec, with a URL.

    Raises
    ------
    InvalidArgumentError
        The store consists of tars.
    TruncatedDataError, CorruptDataError
        It is not complete, or a codebook is missing, another one, or broken.

    Examples
    --------
    >>> group = logitstore.zarr.open("teacher.zarr")                    # doctest: +SKIP
    >>> group["ids"][:10], group["logprobs"][:10]                       # doctest: +SKIP
    """
    import os

    import zarr

    manifest = register_codebooks(files_at(path, storage_options=storage_options))
    if manifest.container != "zarr":
        raise InvalidArgumentError("the store consists of tars, which Zarr does not read", path=path)
    return zarr.open_group(os.fspath(path), mode="r", storage_options=storage_options)
