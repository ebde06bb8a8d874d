"""Where rows go that are read but not to be decoded yet, whichever codec they are of."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from logitstore.codec.bit_rows import COUNT, LENGTH, BitRows
from logitstore.codec.group_rows import GroupRows

__all__ = ["CodedRows", "CutRows"]


class CodedRows(NamedTuple):
    """Rows of a batch, still coded. Rows in neither part have no entries.

    Attributes
    ----------
    rows
        How many there are.
    bits
        All of them as rows of the ``exact`` codec, those of groups without entries; None if that is all of them.
    groups
        Rows of the ``compact`` codec; None if there are none.
    """

    rows: int
    bits: BitRows | None
    groups: GroupRows | None

    @property
    def offsets(self) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """``(rows + 1,)`` int64: where the entries of each row begin if nothing lies between them."""
        counts = np.zeros(self.rows + 1, np.int64)
        if self.bits is not None:
            counts[1:] = self.bits.table[COUNT]
        if self.groups is not None:
            targets = self.groups.targets()
            counts[1 + targets[targets >= 0]] = self.groups.counts[targets >= 0]
        return np.cumsum(counts)


class CutRows:
    """Stands for an array of rows that rows are read into, where they are not to be decoded: coded ones are kept.

    Attributes
    ----------
    parts
        First row and rows of all that was read, in that order: what comes later counts.

    Examples
    --------
    >>> target = CutRows(8)
    >>> target[2:5].take(BitRows(np.zeros(2, np.uint32), np.zeros((5, 3), np.uint32)))
    >>> target.joined().bits.table.shape
    (5, 8)
    """

    def __init__(self, rows: int) -> None:
        self.parts: list[tuple[int, BitRows | GroupRows]] = []
        self._first = 0
        self._rows = rows

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, rows: slice) -> CutRows:
        start, stop, _ = rows.indices(self._rows)
        view = CutRows(max(0, stop - start))
        view.parts, view._first = self.parts, self._first + start
        return view

    def blank(self, start: int, stop: int) -> None:
        """Make rows ``start:stop`` ones without entries."""
        self[start:stop].take(BitRows.laid_out([], stop - start))

    def take(self, rows: BitRows | GroupRows) -> None:
        """Keep coded rows, as many as these are."""
        self.parts.append((self._first, rows))

    def joined(self) -> CodedRows:
        """Return all rows; those that were never read have no entries."""
        groups = self._groups()
        # Rows of groups are none of the others', even where others were read before.
        bits = [
            (first, part if isinstance(part, BitRows) else BitRows.laid_out([], part.wanted))
            for first, part in self.parts
        ]
        plain = groups is None or any(part.table[[LENGTH, COUNT]].any() for _, part in bits)
        return CodedRows(self._rows, BitRows.laid_out(bits, self._rows) if plain else None, groups)

    def _groups(self) -> GroupRows | None:
        """Return the rows of groups that nothing was read over."""
        owner = np.full(self._rows, -1)
        extents = []
        for number, (first, part) in enumerate(self.parts):
            stop = first + (part.table.shape[1] if isinstance(part, BitRows) else part.wanted)
            owner[first:stop] = number
            extents.append((first, stop))
        parts = []
        for number, (first, part) in enumerate(self.parts):
            still = owner[slice(*extents[number])] == number
            if isinstance(part, GroupRows) and still.any():
                parts.append((still, first, part))
        return GroupRows.laid_out(parts) if parts else None
