"""Rows of ids in the order of their classes. The kernel releases the GIL."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from logitstore.codec.kernels import kernel

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from logitstore.codec.compact.codebook import IdBook

__all__ = ["arrange"]


@kernel
def _arrange(
    ids: Any,
    counts: Any,
    classes: Any,
    first_nibble: Any,
    listed: Any,
    ranks: Any,
    hits: Any,
    order: Any,
    arranged: Any,
) -> Any:
    """Put each row into its class's order; return the first row with an id twice, or -1."""
    there = np.full(len(ranks), -1, np.int64)
    place = np.empty(len(ranks), np.int64)
    for row in range(len(counts)):
        count = counts[row]
        for slot in range(count):
            token = ids[row, slot]
            if there[token] == row:
                return row
            there[token] = row
            place[token] = slot
        filled = np.int64(0)
        for at in range(4 * first_nibble[classes[row]], 4 * first_nibble[classes[row] + 1]):
            token = listed[at]
            if there[token] == row:
                arranged[row, filled] = token
                order[row, filled] = place[token]
                there[token] = -1
                filled += 1
                if filled == count:
                    break
        hits[row] = filled
        for slot in range(count if filled < count else 0):
            token = ids[row, slot]
            if there[token] == row:
                at = filled
                while at > hits[row] and ranks[arranged[row, at - 1]] > ranks[token]:
                    arranged[row, at] = arranged[row, at - 1]
                    order[row, at] = order[row, at - 1]
                    at -= 1
                arranged[row, at] = token
                order[row, at] = slot
                filled += 1
        for slot in range(count, ids.shape[1]):
            arranged[row, slot] = np.uint32(0xFFFFFFFF)
            order[row, slot] = slot
    return -1


def arrange(
    book: IdBook, ids: NDArray[np.uint32], counts: NDArray[np.int64], classes: NDArray[np.int64]
) -> tuple[int, NDArray[np.int64], NDArray[np.int64], NDArray[np.uint32]]:
    """Put rows into the order of their classes.

    Returns
    -------
    tuple
        The first row that has an id twice (or -1), entries of each row that are in its class's list ``(R,)``, slot of
        the input that each slot of the output comes from ``(R, K)``, and the rows ``(R, K)``.
    """
    hits = np.empty(len(ids), np.int64)
    order = np.empty(ids.shape, np.int64)
    arranged = np.empty_like(ids)
    bad = _arrange(ids, counts, classes, book.first_nibble, book.listed_ids, book.ranks, hits, order, arranged)
    return int(bad), hits, order, arranged
