"""Where the groups of a chunk lie, for the Numba decoders.

Kernels release the GIL and never read outside the buffer they are given, whatever the bytes say: it has room for the
words of one more row, behind which the position is held; raw bits begin at 0 at the earliest; and a group that ran over
does not end where it should.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from logitstore import layout
from logitstore.codec.fast_chunk import read_column
from logitstore.codec.group_rows import BROKEN
from logitstore.codec.kernels import kernel
from logitstore.errors import CorruptDataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from logitstore.codec.compact.chunk import CompactHeader

__all__ = ["group_table", "raise_if_broken", "words_of_rows"]


@kernel
def _read_table(
    data: Any, count_low: Any, count_width: Any, length_low: Any, length_width: Any, counts: Any, starts: Any
) -> Any:
    """Fill both columns; return entries, most entries of a row, words, and fewest words of a group."""
    position = read_column(data, np.int64(8 * layout.COMPACT_HEADER_BYTES), count_width, count_low, counts)
    position = read_column(data, position, length_width, length_low, starts[1:])
    entries, most, least = np.int64(0), np.int64(0), np.int64(2)
    for count in counts:
        entries += count
        most = max(most, count)
    starts[0] = position >> 3
    for group in range(1, len(starts)):
        least = min(least, starts[group])
        starts[group] = starts[group - 1] + 2 * starts[group]
    return entries, most, (starts[-1] - starts[0]) >> 1, least


def group_table(header: CompactHeader, data: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Read and check the columns: entries of each row, and each group's first byte with the end behind."""
    counts, starts = np.empty(header.rows, np.int64), np.empty(header.groups + 1, np.int64)
    entries, most, words, least = _read_table(
        data, header.counts.minimum, header.counts.width, header.lengths.minimum, header.lengths.width, counts, starts
    )
    if entries != header.entries or most > header.slots:
        raise CorruptDataError(f"the rows' counts give {entries} entries, the header says {header.entries}")
    if words != header.payload_words or least < 2:
        raise CorruptDataError(f"the groups' lengths give {words} words for {header.payload_words}")
    return counts, starts


def words_of_rows(
    data: NDArray[np.uint8], starts: NDArray[np.int64], group_log2: int, start: int, stop: int, symbols: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64], int]:
    """Copy the groups of some rows, with room for a row of so many symbols behind.

    Returns the copy, ``starts`` counted from its beginning, and where a position is held that ran over: a word behind
    the end, so that its group does not end there.
    """
    first, last = starts[start >> group_log2], starts[-(-stop >> group_log2)]
    words = np.zeros(last - first + 2 * symbols + 16, np.uint8)
    words[: last - first] = data[first:last]
    return words, starts - first, int(last - first) + 2


def raise_if_broken(status: int) -> None:
    """Raise what a kernel found: -1 is nothing, else eight times a row plus a key of `group_rows.BROKEN`."""
    if status >= 0:
        raise CorruptDataError(f"row {status // 8} of the chunk {BROKEN[status % 8]}")
