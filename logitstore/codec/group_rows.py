"""Rows of the ``compact`` codec cut out of chunks and still coded, as `bit_rows` are those of the ``exact`` one.

Rows are coded in groups, and a group is decoded from its beginning to its end, whichever of its rows are wanted. So the
groups go along that wanted rows lie in, and of each group the counts of all its rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from logitstore import layout
from logitstore.errors import CorruptDataError, InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = [
    "ANSWERS",
    "BOOK",
    "BROKEN",
    "ROW",
    "ROWS",
    "TARGET",
    "WORD",
    "WORDS",
    "GroupRows",
    "check_groups",
]

WORD, WORDS, ROW, ROWS, TARGET, ANSWERS, BOOK = range(7)
"""Rows of the table: see `GroupRows`."""

BROKEN = {
    1: "does not end where its words do",
    2: "has a class or more misses than there are",
    3: "has other ids of its class than its count says",
    4: "has a rank outside the vocabulary",
    5: "has a level that its codebook does not have",
}
"""What is wrong with a row, as decoders say it."""


class GroupRows(NamedTuple):
    """Coded groups of rows, of any number of chunks.

    Attributes
    ----------
    words
        ``(w,)`` uint16: the groups' words.
    table
        ``(7, G)`` int32, one column per group, ascending by codebook: its first word (WORD) and how many there are
        (WORDS); its first row (ROW) among ``counts`` and how many there are (ROWS); the row of the batch that its first
        row is (TARGET), less than 0 where that lies before the batch; the first row of the batch that is one of its
        (ANSWERS), which is said to be broken where it is not known which one is; and its codebook (BOOK).
    counts
        ``(R,)`` int32: entries of all rows of the groups. Of rows that are not wanted, the complement (``~``).
    books
        ``(B, 16)`` uint8: digests of the codebooks.
    """

    words: NDArray[np.uint16]
    table: NDArray[np.int32]
    counts: NDArray[np.int32]
    books: NDArray[np.uint8]

    @classmethod
    def cut(
        cls, data: NDArray[np.uint8], starts: NDArray[np.int64], counts: NDArray[np.int64], group_log2: int,
        start: int, stop: int, digest: bytes,
    ) -> GroupRows:  # fmt: skip
        """Cut the groups that rows ``start:stop`` lie in out of a checked chunk.

        Parameters
        ----------
        data
            The chunk.
        starts, counts
            Each group's first byte with the end behind, and each row's entries.
        group_log2
            Rows of a group, as a power of two.
        start, stop
            Rows of the chunk.
        digest
            Of its codebook.
        """
        first, past = start >> group_log2, -(-stop >> group_log2) if start < stop else start >> group_log2
        begins = np.arange(first, past) << group_log2
        ends = np.minimum(begins + (1 << group_log2), len(counts))
        base = first << group_log2
        table = np.zeros((7, past - first), np.int32)
        table[WORD] = starts[first:past] - starts[first] >> 1
        table[WORDS] = starts[first + 1 : past + 1] - starts[first:past] >> 1
        table[ROW] = begins - base
        table[ROWS] = ends - begins
        table[TARGET] = begins - start
        table[ANSWERS] = np.maximum(begins - start, 0)
        kept = counts[base : ends[-1] if past > first else base].astype(np.int32)
        kept[: start - base] ^= -1
        kept[stop - base :] ^= -1
        words = data[starts[first] : starts[past]].view("<u2").astype(np.uint16)
        return cls(words, table, kept, np.frombuffer(digest, np.uint8)[None])

    @classmethod
    def laid_out(cls, parts: Sequence[tuple[NDArray[np.bool_], int, GroupRows]]) -> GroupRows:
        """Join groups for a batch.

        Parameters
        ----------
        parts
            Of each part, which of its wanted rows are still wanted, and the row of the batch that the first of them all
            is.

        Raises
        ------
        InvalidArgumentError
            They have more than 2^31 words together.
        """
        if sum(len(part.words) for _, _, part in parts) >= 1 << 31:
            raise InvalidArgumentError("groups of a batch have less than 2^31 words")
        digests: list[bytes] = []
        tables, counts = [], []
        words_before = rows_before = 0
        for still, first, part in parts:
            mine = [row.tobytes() for row in part.books]
            digests += [digest for digest in mine if digest not in digests]
            numbers = np.array([digests.index(digest) for digest in mine], np.int32)
            table, kept = part.table.copy(), part.counts
            table[BOOK] = numbers[table[BOOK]]
            table[TARGET] += first
            table[ANSWERS] += first
            if not still.all():
                table, kept = _without(table, kept, still)
            table[WORD] += words_before
            table[ROW] += rows_before
            tables.append(table)
            counts.append(kept)
            words_before += len(part.words)
            rows_before += len(kept)
        joined = np.concatenate(tables, axis=1)
        return cls(
            np.concatenate([part.words for _, _, part in parts]),
            joined[:, np.argsort(joined[BOOK], kind="stable")],
            np.concatenate(counts),
            np.array([list(digest) for digest in digests], np.uint8),
        )

    @property
    def wanted(self) -> int:
        """Number of wanted rows."""
        return int((self.counts >= 0).sum())

    def targets(self) -> NDArray[np.int64]:
        """``(R,)`` int64: the row of the batch of each row; -1 of those that are not wanted."""
        table = self.table.astype(np.int64)
        rows = np.full(len(self.counts), -1, np.int64)
        within = np.arange(int(table[ROWS].sum())) - np.repeat(np.cumsum(table[ROWS]) - table[ROWS], table[ROWS])
        rows[np.repeat(table[ROW], table[ROWS]) + within] = np.repeat(table[TARGET], table[ROWS]) + within
        return np.where(self.counts >= 0, rows, -1)


def _without(
    table: NDArray[np.int32], counts: NDArray[np.int32], still: NDArray[np.bool_]
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Return table and counts with fewer wanted rows, and without groups that have none left."""
    counts = counts.copy()
    wanted = np.flatnonzero(counts >= 0)
    counts[wanted[~still]] ^= -1
    left = [column for column in table.T if (counts[column[ROW] : column[ROW] + column[ROWS]] >= 0).any()]
    for column in left:
        first = int((counts[column[ROW] : column[ROW] + column[ROWS]] >= 0).argmax())
        column[ANSWERS] = column[TARGET] + first
    return np.array(left, np.int32).reshape(-1, len(table)).T, counts


def check_groups(groups: GroupRows, rows: int, slots: int, offsets: NDArray[np.int64] | None) -> None:
    """Check that groups lie in the words and their rows in the batch, so that nothing outside of them is touched.

    Parameters
    ----------
    groups
        The groups.
    rows, slots
        Of the batch.
    offsets
        ``(rows + 1,)``: where the slots of each row begin, if they are flat.

    Raises
    ------
    CorruptDataError
        One does not.
    """
    table: NDArray[Any] = groups.table.astype(np.int64)
    bad = (table[WORD] < 0) | (table[WORDS] < 2) | (table[WORDS] > layout.MAX_PAYLOAD_WORDS)
    bad |= table[WORD] + table[WORDS] > len(groups.words)
    bad |= (table[ROW] < 0) | (table[ROWS] < 1) | (table[ROW] + table[ROWS] > len(groups.counts))
    bad |= (table[ANSWERS] < 0) | (table[ANSWERS] >= rows)
    bad |= (table[BOOK] < 0) | (table[BOOK] >= len(groups.books)) | (np.diff(table[BOOK], prepend=0) < 0)
    if not bad.any():
        targets, wanted = groups.targets(), groups.counts >= 0
        out = np.where(wanted, groups.counts, ~groups.counts) > slots
        out |= wanted & ((targets < 0) | (targets >= rows))
        if offsets is not None:
            here = wanted & ~out
            out[here] = groups.counts[here] > np.diff(offsets)[targets[here]]
        if out.any():
            row = int(out.argmax())
            bad = (table[ROW] <= row) & (row < table[ROW] + table[ROWS])
    if bad.any():
        raise CorruptDataError(f"group {int(bad.argmax())} of {len(bad)} lies outside its words or its rows")
