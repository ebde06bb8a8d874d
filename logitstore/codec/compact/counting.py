"""How often ids come in classes, and symbols in contexts: the counts that training needs, in Numba."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from logitstore.codec.compact.bank import gap_context_of
from logitstore.codec.kernels import kernel

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["count_ids", "count_numbers"]


@kernel
def _count_ids(ranked: Any, counts: Any, classes: Any, out: Any) -> None:
    for row in range(len(counts)):
        for slot in range(counts[row]):
            rank = ranked[row, slot]
            if rank >= out.shape[0]:
                break
            out[rank, classes[row]] += 1


def count_ids(
    ranked: NDArray[np.uint32], counts: NDArray[np.int64], classes: NDArray[np.int64], limit: int, width: int
) -> NDArray[np.int32]:
    """Return how often each rank below ``limit`` is in rows of each class, ``(limit, width)``.

    ``ranked`` is ``(R, K)``, ascending in each row.
    """
    out = np.zeros((limit, width), np.int32)
    _count_ids(ranked, counts, classes, out)
    return out


@kernel
def _count_numbers(
    ranks: Any, counts: Any, hits: Any, classes: Any, first_nibble: Any, contexts: Any, listed: Any, nibbles: Any,
    gaps: Any,
) -> None:  # fmt: skip
    for row in range(len(counts)):
        slot = np.int64(0)
        nibble = first_nibble[classes[row]]
        while slot < hits[row]:
            mask = 0
            for i in range(4):
                if slot < hits[row] and listed[4 * nibble + i] == ranks[row, slot]:
                    mask |= 1 << i
                    slot += 1
            nibbles[contexts[nibble], mask] += 1
            nibble += 1
        previous = np.int64(0)
        for left in range(counts[row] - hits[row], 0, -1):
            rank = np.int64(ranks[row, slot])
            gap = rank - previous
            size_gap = np.int64(0)
            while gap >> size_gap:
                size_gap += 1
            symbol = gap if gap < 4 else 2 * size_gap - 2 + ((gap >> (size_gap - 2)) & 1)
            gaps[gap_context_of(left, previous), symbol] += 1
            previous = rank + 1
            slot += 1


def count_numbers(
    ranks: NDArray[np.uint32], counts: NDArray[np.int64], hits: NDArray[np.int64], classes: NDArray[np.int64],
    first_nibble: NDArray[np.int64], contexts: NDArray[np.int64], listed: NDArray[np.uint32],
    gap_contexts: int, gap_symbols: int, nibble_contexts: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:  # fmt: skip
    """Count nibbles ``(X, 16)`` by the context of each, and gaps ``(G, S)`` by theirs, in arranged rows of ranks.

    Gaps are counted in the symbols of `tables.doubling_widths`.
    """
    nibbles = np.zeros((nibble_contexts, 16), np.int64)
    gaps = np.zeros((gap_contexts, gap_symbols), np.int64)
    _count_numbers(ranks, counts, hits, classes, first_nibble, contexts, listed, nibbles, gaps)
    return nibbles, gaps
