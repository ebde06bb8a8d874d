"""Rows of a layout's pieces, decoded into their places in as few reads as there are runs of consecutive rows."""

from __future__ import annotations

import logging
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from logitstore.errors import CorruptDataError
from logitstore.stream.batch_fields import PADDING

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from logitstore.codec import CutRows
    from logitstore.reader import Store
    from logitstore.stream.plan import Layout

__all__ = ["PieceReader"]

_LOGGER = logging.getLogger("logitstore")


class PieceReader:
    """Reads the pieces of one layout.

    Parameters
    ----------
    layout
        The pieces.
    columns
        T: rows of a sequence.
    arrays
        Field → array of ``sequences * columns`` rows, as `Store.read_into` takes them.
    cut
        Field → the same for fields that stay coded.

    Attributes
    ----------
    starts
        ``(n,)`` int64: the flattened row at which each piece begins.
    documents
        ``(n,)`` int64: each piece's document, -1 where it is left blank.
    following
        ``(n,)`` uint32: the token behind each piece, 0 where its document ends.
    """

    def __init__(self, layout: Layout, columns: int, arrays: dict[str, NDArray[Any]], cut: dict[str, CutRows]) -> None:
        self.layout = layout
        self.arrays = arrays
        self.cut = cut
        self.starts = layout.sequence * columns + layout.columns
        self.documents = layout.documents.copy()
        self.following = np.zeros(len(self.starts), np.uint32)
        self._rows = layout.sequences * columns

    @property
    def skipped(self) -> int:
        """How many pieces could not be read."""
        return int(((self.documents < 0) & (self.layout.documents >= 0)).sum())

    def read(self, store: Store, *, skip_corrupt: bool) -> None:
        """Fill the arrays: pieces from the store, padding everywhere else.

        Raises
        ------
        CorruptDataError
            A piece cannot be read, unless those are left blank.
        """
        for first, last in self._runs():
            self._read(store, first, last, skip_corrupt)
        self._fill_gaps()

    def _runs(self) -> list[tuple[int, int]]:
        """Return pieces that are consecutive in the store and in the batch, as ``(first, last)``; blank ones in none.

        They come in the order of the store, so that what lies together is read together.
        """
        layout, starts, present = self.layout, self.starts, self.documents >= 0
        joins = (starts[:-1] + layout.rows[:-1] == starts[1:]) & present[:-1] & present[1:]
        joins &= layout.first_rows[:-1] + layout.rows[:-1] == layout.first_rows[1:]
        edges = [0, *(np.flatnonzero(~joins) + 1).tolist(), len(starts)]
        runs = [run for run in pairwise(edges) if present[run[0]]]
        return sorted(runs, key=lambda run: int(layout.first_rows[run[0]]))

    def _read(self, store: Store, first: int, last: int, skip_corrupt: bool) -> None:
        """Read pieces ``first:last``, which are one run, and the token behind them."""
        row, start = int(self.layout.first_rows[first]), int(self.starts[first])
        rows = int(self.layout.rows[first:last].sum())
        try:
            targets: dict[str, NDArray[Any] | CutRows] = {**self.arrays, **self.cut}
            store.read_into(row, row + rows, {name: a[start : start + rows] for name, a in targets.items()})
            if self.layout.follows[last - 1]:
                store.read_into(row + rows, row + rows + 1, {"tokens": self.following[last - 1 : last]})
        except CorruptDataError as error:
            if not skip_corrupt:
                raise
            if last - first == 1:
                _LOGGER.warning("left out rows %d:%d, document %d: %s", row, row + rows, self.documents[first], error)
                self.documents[first] = -1
                return
            for piece in range(first, last):
                self._read(store, piece, piece + 1, skip_corrupt)
            return
        # Within the run, the token behind a piece is the first of the next one.
        self.following[first : last - 1] = self.arrays["tokens"][self.starts[first + 1 : last]]

    def _fill_gaps(self) -> None:
        read = self.documents >= 0
        begins = [0, *(self.starts + self.layout.rows)[read].tolist()]
        ends = [*self.starts[read].tolist(), self._rows]
        for begin, end in zip(begins, ends, strict=True):
            if begin < end:
                for name, array in self.arrays.items():
                    array[begin:end] = PADDING.get(name, 0)
                for coded in self.cut.values():
                    coded.blank(begin, end)
