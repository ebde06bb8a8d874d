"""The arrays of a codebook file: their sizes, and one ``flat`` chunk of the exact codec with all of them."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import google_crc32c
import numpy as np

from logitstore import layout
from logitstore.codec import exact
from logitstore.codec.compact.symbols import SymbolCode
from logitstore.errors import CorruptDataError, LogitStoreError, TruncatedDataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["Sections", "gaps_of_runs", "runs_of_gaps", "write_file"]


class Sections:
    """The arrays of a codebook file, read in order.

    Parameters
    ----------
    data
        The file, of which the header and the checksum have been seen to.
    sections
        Number of its arrays.
    """

    def __init__(self, data: bytes, sections: int) -> None:
        first = layout.CODEBOOK_HEADER_BYTES + 4 * sections
        if sections > layout.CODEBOOK_MAX_SECTIONS or first + layout.CRC_BYTES > len(data):
            raise TruncatedDataError(f"a codebook ends before the sizes of its {sections} arrays")
        self._sizes = list(struct.unpack_from(f"<{sections}I", data, layout.CODEBOOK_HEADER_BYTES))
        self._sizes.reverse()
        chunk = memoryview(data)[first : -layout.CRC_BYTES]
        total = sum(self._sizes)
        # A group of 256 equal numbers takes no bits; a lossless codebook has 2^16 of them, and no book has many more.
        if total > (1 << 18) + 64 * len(chunk):
            raise CorruptDataError(f"the arrays of a codebook have {total} numbers in {len(chunk)} bytes")
        try:
            self._numbers = exact.decode(chunk, "flat", shape=(total,), dtype=np.dtype("u4"))
        except LogitStoreError as error:
            raise CorruptDataError(f"the arrays of a codebook cannot be decoded: {error.message}") from None
        self._position = 0

    def take(self, count: int | None, limit: int) -> NDArray[np.uint32]:
        """Return the next array; of ``count`` numbers, or of at most ``limit`` if that is None."""
        if not self._sizes:
            raise CorruptDataError("a codebook has too few arrays")
        found = self._sizes.pop()
        if found != count if count is not None else found > limit:
            raise CorruptDataError(f"an array of a codebook has {found} numbers, expected {count or limit}")
        self._position += found
        return self._numbers[self._position - found : self._position]

    def code(self) -> SymbolCode:
        """Return the next code."""
        widths = self.take(None, layout.SYMBOLS_MAX)
        contexts = self.take(None, 1024)
        frequencies = self.take(None, layout.TABLES_MAX * layout.SYMBOLS_MAX)
        if not len(widths) or len(frequencies) % len(widths):
            raise CorruptDataError(f"{len(frequencies)} frequencies are not tables of {len(widths)} symbols")
        return SymbolCode(widths, contexts, frequencies.reshape(-1, len(widths)))

    def finish(self) -> None:
        """Raise where something is left."""
        if self._sizes:
            raise CorruptDataError(f"a codebook has {len(self._sizes)} arrays too many")


def write_file(
    kind: int, dtype: int, numbers: tuple[int, int, int], sections: Sequence[NDArray[Any]], bounds: tuple[float, float]
) -> bytes:
    """Put a codebook's header, arrays and checksum together; ``numbers`` and ``bounds`` are the header's."""
    header = struct.pack(
        layout.CODEBOOK_HEADER, layout.CODEBOOK_MAGIC, kind, dtype, 0, *numbers, len(sections), *bounds
    )
    flat = [np.ascontiguousarray(section, np.uint32).reshape(-1) for section in sections]
    sizes = struct.pack(f"<{len(flat)}I", *[len(array) for array in flat])
    body = header + sizes + exact.encode(np.concatenate(flat), "flat")
    checksum: int = google_crc32c.value(body)
    return body + checksum.to_bytes(layout.CRC_BYTES, "little")


def gaps_of_runs(values: NDArray[np.uint32], sizes: NDArray[Any]) -> NDArray[np.uint32]:
    """Differences less one within runs of ascending numbers; the first of a run as it is."""
    wide = values.astype(np.int64)
    gaps = np.diff(wide, prepend=-1) - 1
    starts = (np.cumsum(sizes, dtype=np.int64) - sizes)[np.asarray(sizes) > 0]
    gaps[starts] = wide[starts]
    return gaps.astype(np.uint32)


def runs_of_gaps(gaps: NDArray[np.uint32], sizes: NDArray[Any], bound: int, what: str) -> NDArray[np.uint32]:
    """Inverse of `gaps_of_runs`."""
    sizes = np.asarray(sizes, np.int64)
    ends = np.cumsum(gaps.astype(np.int64) + 1)
    starts = np.cumsum(sizes) - sizes
    before = np.concatenate([[0], ends])[starts[sizes > 0]]
    values = ends - 1 - np.repeat(before, sizes[sizes > 0])
    if len(values) and int(values.max()) >= bound:
        raise CorruptDataError(f"{what} is below {bound}, found {values.max()}")
    return np.asarray(values, np.uint32)
