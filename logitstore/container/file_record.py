"""Size and sha256 of a file: what a store says of those it consists of."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from logitstore.errors import CorruptDataError

if TYPE_CHECKING:
    from pathlib import Path

    from typing_extensions import Buffer

__all__ = ["FileRecord"]


@dataclass(frozen=True)
class FileRecord:
    """Size and sha256 of a file of the store."""

    bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> FileRecord:
        """Read a local file and describe it."""
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            return cls(file.tell(), digest)

    @classmethod
    def from_json(cls, name: str, value: Any) -> FileRecord:
        """Check what a manifest says of a file that is called ``name`` in errors.

        Raises
        ------
        CorruptDataError
            It is not a size and a digest.
        """
        if (
            isinstance(value, dict)
            and type(value.get("bytes")) is int
            and 0 <= value["bytes"] < 1 << 63
            and isinstance(value.get("sha256"), str)
            and re.fullmatch(r"[0-9a-f]{64}", value["sha256"])
        ):
            return cls(value["bytes"], value["sha256"])
        raise CorruptDataError(f"{name} has bytes and sha256; found {value!r}")

    @classmethod
    def of_bytes(cls, data: Buffer) -> FileRecord:
        """Describe a file that has been read."""
        return cls(memoryview(data).nbytes, hashlib.sha256(data).hexdigest())
