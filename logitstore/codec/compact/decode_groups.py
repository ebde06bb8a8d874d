"""Decoding groups that were cut out of chunks, on the CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from logitstore.codec.group_rows import ANSWERS, BOOK, ROW, ROWS, WORD, WORDS, check_groups

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from logitstore.codec.compact.codec import IdCodec, ValueCodec
    from logitstore.codec.group_rows import GroupRows

__all__ = ["decode_groups"]


def decode_groups(
    groups: GroupRows,
    codecs: Sequence[IdCodec | ValueCodec],
    slots: int,
    out: NDArray[Any],
    offsets: NDArray[np.int64] | None = None,
) -> NDArray[np.int32]:
    """Decode groups.

    Parameters
    ----------
    groups, codecs
        The groups, and a codec for each of their codebooks.
    slots
        ``K``.
    out
        ``(P, K)`` of the bits' type, or with offsets flat ``(E,)``. Rows that are in no group are left as they are, and
        so are flat slots without an entry.
    offsets
        ``(P + 1,)``, from 0 on: where the slots of each row begin in ``out``, if it is flat.

    Returns
    -------
    NDArray
        ``(P,)`` int32: 0, or what is wrong with a row, for `broken_row`. Where it is not 0, the rows of that row's
        group are anything.

    Raises
    ------
    CorruptDataError
        The table points outside of words or rows.
    """
    rows = len(out) if offsets is None else len(offsets) - 1
    check_groups(groups, rows, slots, offsets)
    counts, targets = np.where(groups.counts < 0, ~groups.counts, groups.counts).astype(np.int64), groups.targets()
    status = np.zeros(rows, np.int32)
    runs = list(_runs(groups.table))
    while runs:
        run = runs.pop()
        first_row = int(groups.table[ROW, run.start])
        ends = groups.table[:, run.stop - 1]
        here = slice(first_row, int(ends[ROW] + ends[ROWS]))
        base = int(groups.table[WORD, run.start])
        data = groups.words[base : int(ends[WORD] + ends[WORDS])].view(np.uint8)
        starts = 2 * (np.append(groups.table[WORD, run], ends[WORD] + ends[WORDS]).astype(np.int64) - base)
        decoded = np.empty((here.stop - here.start, slots), out.dtype)
        group_log2 = int(groups.table[ROWS, run.start] - 1).bit_length()
        decoder = codecs[int(groups.table[BOOK, run.start])].decoder
        found = decoder.decode(data, starts, counts[here], group_log2, 0, decoded)
        if found < 0:
            wanted = targets[here] >= 0
            into = targets[here][wanted]
            if offsets is None:
                out[into] = decoded[wanted]
            else:
                used = np.arange(slots) < counts[here][wanted][:, None]
                out[(offsets[into][:, None] + np.arange(slots))[used]] = decoded[wanted][used]
        elif run.stop > run.start + 1:
            # The other groups of the run are sound, or have something wrong of their own.
            runs += [slice(group, group + 1) for group in range(run.start, run.stop)]
        else:
            row = int(targets[first_row + found // 8])
            status[row if row >= 0 else groups.table[ANSWERS, run.start]] = 8 * (found % 8)
    return status


def _runs(table: NDArray[np.int32]) -> Iterator[slice]:
    """Yield groups that lie behind each other as in a chunk: of as many rows, a power of two, but for the last."""
    start, columns = 0, table.T.tolist()
    for group in range(1, len(columns) + 1):
        if group < len(columns):
            before, column, size = columns[group - 1], columns[group], columns[start][ROWS]
            follows = all(column[at] == before[at] + before[n] for at, n in ((WORD, WORDS), (ROW, ROWS)))
            full = before[ROWS] == size == 1 << (size - 1).bit_length() and column[ROWS] <= size
            if follows and full and column[BOOK] == before[BOOK]:
                continue
        yield slice(start, group)
        start = group
