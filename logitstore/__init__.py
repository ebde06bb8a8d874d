"""logitstore: a teacher's logits on disk, checked, and read back into any training loop.

>>> import logitstore
>>> store = logitstore.open("teacher.zarr")     # doctest: +SKIP
>>> store[3].logprobs                           # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import (
    CorruptDataError,
    InvalidArgumentError,
    LogitStoreError,
    TruncatedDataError,
    UnsupportedVersionError,
)
from .version import __version__

if TYPE_CHECKING:
    from .reader import Document, Rows, Store
    from .reader import open_store as open  # noqa: A004 - `logitstore.open` reads as it should

__all__ = [
    "CorruptDataError",
    "Document",
    "InvalidArgumentError",
    "LogitStoreError",
    "Rows",
    "Store",
    "TruncatedDataError",
    "UnsupportedVersionError",
    "__version__",
    "open",
]

_READER = {"Document": "Document", "Rows": "Rows", "Store": "Store", "open": "open_store"}


def __getattr__(name: str) -> Any:
    # The reader loads numpy and Numba; importing the package alone does not.
    if name in _READER:
        from . import reader

        return getattr(reader, _READER[name])
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
