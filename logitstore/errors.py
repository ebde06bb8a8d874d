"""The errors this package raises on purpose.

Four kinds say what is wrong with data or arguments; each message states the rule, the value found and the place
(path, shard, row). All of them survive pickling, so a worker process can hand them to its parent.
"""

from __future__ import annotations

__all__ = [
    "CorruptDataError",
    "InvalidArgumentError",
    "LogitStoreError",
    "TruncatedDataError",
    "UnsupportedVersionError",
]


class LogitStoreError(Exception):
    """Base of every error raised by logitstore.

    Parameters
    ----------
    message
        What rule was broken and what was found instead.
    path
        File or store in question.
    shard
        Number of the shard, counted from 0.
    row
        Number of the row in the store, counted from 0.
    """

    def __init__(self, message: str, *, path: object = None, shard: int | None = None, row: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.path = None if path is None else str(path)
        self.shard = shard
        self.row = row

    def __str__(self) -> str:
        place = [
            f"{name} {value}"
            for name, value in (("file", self.path), ("shard", self.shard), ("row", self.row))
            if value is not None
        ]
        return f"{self.message} [{', '.join(place)}]" if place else self.message

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.message, self.path, self.shard, self.row))

    def at(self, *, path: object = None, shard: int | None = None, row: int | None = None) -> LogitStoreError:
        """Return the same error with the places that were still unknown filled in."""
        return type(self)(
            self.message,
            path=self.path if self.path is not None else path,
            shard=self.shard if self.shard is not None else shard,
            row=self.row if self.row is not None else row,
        )


class CorruptDataError(LogitStoreError, ValueError):
    """Stored bytes break a rule of the format: a checksum, a range, an identity, an invariant."""


class TruncatedDataError(CorruptDataError):
    """Stored bytes end too early: a file is missing, empty or shorter than it says, or a build was not finished."""


class UnsupportedVersionError(LogitStoreError):
    """The data was written by a newer format version, or uses a codec this version does not know."""


class InvalidArgumentError(LogitStoreError, ValueError):
    """The caller asked for something that cannot be done."""


def _rebuild(
    kind: type[LogitStoreError], message: str, path: str | None, shard: int | None, row: int | None
) -> LogitStoreError:
    return kind(message, path=path, shard=shard, row=row)
