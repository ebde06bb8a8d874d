"""Which rows make which batch: the epoch as one sequence of batches, whoever takes them.

An epoch is a sequence of windows, a window a list of sequences, a sequence a few pieces of documents; batches are cut
from the sequences of all windows. A plan looks at a window at a time and reads where documents begin, never their rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from logitstore.stream.packing import pack

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from logitstore.reader import Store
    from logitstore.stream.order import DocumentOrder

__all__ = ["Layout", "Place", "Plan"]

_WINDOWS_KEPT = 16


class Place(NamedTuple):
    """A place between two batches of an epoch.

    Attributes
    ----------
    batches
        Batches before it.
    window, sequence
        What comes next: a sequence of a window. With it a plan goes on here without looking at earlier windows.
    """

    batches: int = 0
    window: int = 0
    sequence: int = 0


@dataclass(frozen=True)
class Layout:
    """Pieces of documents and where they stand, in the order of their places.

    Attributes
    ----------
    sequences
        Number of sequences.
    documents, first_rows, rows
        ``(n,)`` int64: each piece's document, its first row in the store and its number of rows.
    follows
        ``(n,)`` bool: whether the document goes on behind the piece.
    sequence, columns
        ``(n,)`` int64: the sequence each piece stands in, rising, and its first column there.
    """

    sequences: int
    documents: NDArray[np.int64]
    first_rows: NDArray[np.int64]
    rows: NDArray[np.int64]
    follows: NDArray[np.bool_]
    sequence: NDArray[np.int64]
    columns: NDArray[np.int64]

    @property
    def longest(self) -> int:
        """Rows of the longest sequence."""
        return int((self.columns + self.rows).max(initial=0))

    @classmethod
    def blank(cls) -> Layout:
        """Return one sequence with a row of no document."""
        none, one = np.full(1, -1, np.int64), np.ones(1, np.int64)
        return cls(1, none, none, one, np.zeros(1, np.bool_), one - 1, one - 1)

    @classmethod
    def of(cls, pieces: _Pieces, sequence: NDArray[np.int64], sequences: int) -> Layout:
        """Put pieces one behind the other in the sequences they are given, which rise."""
        before = np.cumsum(pieces.rows) - pieces.rows
        first = np.searchsorted(sequence, np.arange(sequences))
        return cls(sequences, *pieces, sequence, before - before[first[sequence]])


class _Pieces(NamedTuple):
    documents: NDArray[np.int64]
    first_rows: NDArray[np.int64]
    rows: NDArray[np.int64]
    follows: NDArray[np.bool_]

    def at(self, index: NDArray[np.int64] | slice) -> _Pieces:
        return _Pieces(self.documents[index], self.first_rows[index], self.rows[index], self.follows[index])


class _Window(NamedTuple):
    """Sequence ``i`` is pieces ``starts[i]:starts[i + 1]``."""

    pieces: _Pieces
    starts: NDArray[np.int64]


class Plan:
    """The batches of an epoch.

    Parameters
    ----------
    store
        Where the documents are.
    order
        In which order they are visited.
    batch_size
        Sequences of a batch.
    seq_len
        Longer documents are cut into pieces of so many rows; None leaves them whole.
    pack
        Whether a sequence holds several pieces, up to `seq_len` rows; else each piece is a sequence.
    """

    def __init__(self, store: Store, order: DocumentOrder, batch_size: int, seq_len: int | None, pack: bool) -> None:
        self._store = store
        self._order = order
        self._batch_size = batch_size
        self._seq_len = seq_len
        self._pack = pack
        self._counts: dict[int, int] = {}
        self._window = lru_cache(_WINDOWS_KEPT)(self._make_window)

    @property
    def sequences(self) -> int:
        """Sequences of the whole epoch; unless documents stay whole, this looks at all windows once."""
        if self._seq_len is None:
            return self._order.documents
        return sum(self._count(number) for number in range(self._order.windows))

    @property
    def batches(self) -> int:
        """Batches of the whole epoch, the last one may be short."""
        return -(-self.sequences // self._batch_size)

    @property
    def full_batches(self) -> int:
        """Batches of the whole epoch that are not short."""
        return self.sequences // self._batch_size

    def is_full(self, sequences: int, batches: int) -> bool:
        """Whether so many sequences fill so many batches."""
        return sequences == batches * self._batch_size

    def has(self, place: Place) -> bool:
        """Whether there may be such a place: exact where documents stay whole, within its window otherwise."""
        if min(place) < 0:
            return False
        if self._seq_len is None:
            return self.advance(Place(), place.batches)[0] == place
        if place.window >= self._order.windows:
            return place.window == self._order.windows and not place.sequence
        return place.sequence < self._count(place.window)

    def advance(self, place: Place, batches: int) -> tuple[Place, int]:
        """Return the place some batches later, or the end of the epoch, and how many sequences lie between."""
        wanted = batches * self._batch_size
        if self._seq_len is None:
            size = self._order.window_size
            start = place.window * size + place.sequence
            stop = max(start, min(start + wanted, self._order.documents))
            # Windows are full but for the last one; the end lies behind them all.
            window, sequence = divmod(stop, size) if stop < self._order.documents else (self._order.windows, 0)
            moved = stop - start
        else:
            window, sequence, moved = place.window, place.sequence, 0
            while moved < wanted and window < self._order.windows:
                step = min(wanted - moved, self._count(window) - sequence)
                moved += step
                sequence += step
                if sequence == self._count(window):
                    window, sequence = window + 1, 0
        return Place(place.batches + -(-moved // self._batch_size), window, sequence), moved

    def layout(self, place: Place) -> Layout:
        """Return the batch that begins at a place; it has no sequences at the end of the epoch."""
        parts: list[_Pieces] = []
        sequence_parts: list[NDArray[np.int64]] = []
        found, window, sequence = 0, place.window, place.sequence
        while found < self._batch_size and window < self._order.windows:
            pieces, starts = self._window(window)
            stop = min(sequence + self._batch_size - found, len(starts) - 1)
            parts.append(pieces.at(slice(int(starts[sequence]), int(starts[stop]))))
            sequence_parts.append(np.repeat(np.arange(stop - sequence) + found, np.diff(starts[sequence : stop + 1])))
            found += stop - sequence
            window, sequence = window + 1, 0
        if not parts:
            parts, sequence_parts = [_NO_PIECES], [np.empty(0, np.int64)]
        joined = _Pieces(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
        return Layout.of(joined, np.concatenate(sequence_parts), found)

    def _count(self, window: int) -> int:
        """Return the number of sequences of a window."""
        if self._seq_len is None:
            return self._order.size(window)
        count = self._counts.get(window)
        if count is None:
            count = self._counts[window] = len(self._window(window).starts) - 1
        return count

    def _make_window(self, number: int) -> _Window:
        documents = self._order.window(number)
        pieces = _cut(documents, *_extents(self._store, documents), self._seq_len)
        if not self._pack or self._seq_len is None:
            return _Window(pieces, np.arange(len(pieces.rows) + 1))
        packed = pack(pieces.rows, self._seq_len)
        count = int(packed.max(initial=-1)) + 1
        placed = np.argsort(self._order.sequences(number, count))[packed]
        # Stable: within a sequence, pieces stand in the order in which the epoch visits their documents.
        return _Window(
            pieces.at(np.argsort(placed, kind="stable")),
            np.concatenate([np.zeros(1, np.int64), np.cumsum(np.bincount(placed, minlength=count))]),
        )


_NO_PIECES = _Pieces(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.bool_))


def _extents(store: Store, documents: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return documents' first rows and lengths; each run of consecutive documents is one read."""
    sorting = np.argsort(documents)
    rising = documents[sorting]
    first_rows, lengths = np.empty_like(documents), np.empty_like(documents)
    for run in np.split(np.arange(len(rising)), np.flatnonzero(np.diff(rising) != 1) + 1):
        offsets = store.offsets(int(rising[run[0]]), int(rising[run[-1]]) + 1)
        first_rows[sorting[run]] = offsets[:-1]
        lengths[sorting[run]] = np.diff(offsets)
    return first_rows, lengths


def _cut(
    documents: NDArray[np.int64], first_rows: NDArray[np.int64], lengths: NDArray[np.int64], seq_len: int | None
) -> _Pieces:
    if seq_len is None:
        return _Pieces(documents, first_rows, lengths, np.zeros(len(documents), np.bool_))
    count = -(-lengths // seq_len)
    document = np.repeat(np.arange(len(documents)), count)
    begin = (np.arange(len(document)) - (np.cumsum(count) - count)[document]) * seq_len
    rows = np.minimum(lengths[document] - begin, seq_len)
    return _Pieces(documents[document], first_rows[document] + begin, rows, begin + rows < lengths[document])
