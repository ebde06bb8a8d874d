"""What a `Store` asks of a container: rows, where documents lie, and their lines in ``documents.jsonl``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from logitstore.container.files import TABLE_BLOCK_BYTES
from logitstore.container.writer import DOCUMENTS_FILE
from logitstore.errors import CorruptDataError, TruncatedDataError
from logitstore.reader.open_files import OpenFiles

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from logitstore.codec import CutRows
    from logitstore.container.files import RandomFile, StoreFiles
    from logitstore.container.manifest import Manifest

__all__ = ["RowFiles", "TableFiles"]


class RowFiles(Protocol):
    """The rows of a store in one container. Picklable, safe to use from threads and after a fork."""

    def offsets(self, start: int, stop: int) -> NDArray[Any]:
        """Return ``(stop - start + 1,)`` int64: first rows of documents ``start:stop`` and the row behind them."""
        ...

    def line(self, document: int) -> tuple[int, int]:
        """Return where a document's line begins in ``documents.jsonl``, and the byte behind it."""
        ...

    def read(self, start: int, stop: int, out: Mapping[str, NDArray[Any] | CutRows]) -> None:
        """Decode rows ``start:stop`` of arrays, by their Zarr names, into as many rows; `CutRows` get them coded."""
        ...

    def close(self) -> None:
        """Close all files."""
        ...


class TableFiles:
    """Tables of a store, opened once: ``documents.jsonl`` and the like.

    Parameters
    ----------
    files, manifest
        The store.
    """

    def __init__(self, files: StoreFiles, manifest: Manifest) -> None:
        self.files = files
        self._sizes = {DOCUMENTS_FILE: manifest.documents_file, "documents.idx": manifest.index_file}
        self._open: OpenFiles[RandomFile] = OpenFiles(4, 1 << 62)

    def read(self, name: str, start: int, stop: int) -> bytes:
        """Return some bytes of a table.

        Raises
        ------
        TruncatedDataError
            The file is missing, or shorter than the manifest says.
        CorruptDataError
            It is longer, or the bytes do not lie within it.
        """
        try:
            file = self._open.get(name, lambda: self.files.open(name, TABLE_BLOCK_BYTES))
        except FileNotFoundError:
            raise TruncatedDataError("the file is missing", path=self.files.place(name)) from None
        record = self._sizes[name]
        size = record.bytes if record else 0
        if file.size != size:
            kind = TruncatedDataError if file.size < size else CorruptDataError
            raise kind(f"the manifest says {size} bytes, the file has {file.size}", path=self.files.place(name))
        if not 0 <= start < stop <= size:
            raise CorruptDataError(f"bytes {start} to {stop} do not lie within {size}", path=self.files.place(name))
        return bytes(file.read(start, stop))

    def close(self) -> None:
        """Close all files."""
        self._open.close()
