"""Best-fit decreasing: pieces of documents into sequences of a fixed length, few and full.

The longest piece goes first, each into the fullest sequence that still has room for it; among equally full ones, into
the one that was filled last. No piece is cut.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from logitstore.codec.kernels import kernel

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["pack", "pack_plainly"]


def pack(lengths: NDArray[np.int64], capacity: int) -> NDArray[np.int64]:
    """Return the number of each piece's sequence.

    Parameters
    ----------
    lengths
        ``(n,)``, each from 1 to the capacity.
    capacity
        Length of a sequence.

    Returns
    -------
    NDArray
        ``(n,)`` int64; sequences are numbered in the order of their first pieces.

    Examples
    --------
    >>> pack(np.array([2, 7, 3, 5, 1]), 8)
    array([0, 1, 2, 2, 1])
    """
    return _numbered_by_first(_pack(lengths, np.argsort(-lengths, kind="stable"), capacity))


def pack_plainly(lengths: NDArray[np.int64], capacity: int) -> NDArray[np.int64]:
    """Return the same as `pack`, said plainly."""
    room: list[int] = []
    filled: list[int] = []  # when each sequence was last filled
    sequences = np.empty(len(lengths), np.int64)
    for turn, piece in enumerate(np.argsort(-lengths, kind="stable").tolist()):
        length = int(lengths[piece])
        fitting = [number for number in range(len(room)) if room[number] >= length]
        if fitting:
            number = min(fitting, key=lambda number: (room[number], -filled[number]))
        else:
            number = len(room)
            room.append(capacity)
            filled.append(turn)
        room[number] -= length
        filled[number] = turn
        sequences[piece] = number
    return _numbered_by_first(sequences)


@kernel
def _pack(lengths: Any, falling: Any, capacity: Any) -> Any:
    # One stack of sequences for each amount of room: `top` holds the last one filled, `below` the one under it.
    top = np.full(capacity + 1, -1, np.int64)
    below = np.empty(len(lengths), np.int64)
    sequences = np.empty(len(lengths), np.int64)
    count = 0
    for turn in range(len(falling)):
        piece = falling[turn]
        length = lengths[piece]
        room = length
        while room < capacity and top[room] < 0:
            room += 1
        if room < capacity:
            number = top[room]
            top[room] = below[number]
        else:
            number = count
            count += 1
        room -= length
        below[number] = top[room]
        top[room] = number
        sequences[piece] = number
    return sequences


def _numbered_by_first(sequences: NDArray[np.int64]) -> NDArray[np.int64]:
    _, first, inverse = np.unique(sequences, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse]
