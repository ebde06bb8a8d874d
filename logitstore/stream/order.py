"""The order in which an epoch visits the documents: a pure function of seed and epoch.

Two levels, so that reading stays near one place of the store for a while: blocks of consecutive documents, about a
shard each, are shuffled; then each window of consecutive positions is shuffled. Ranks, workers and containers play no
part in it, and any position can be asked for without those before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from logitstore.stream.permutation import Permutation, derive_key

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["DocumentOrder", "block_documents"]

_BLOCKS, _WINDOW, _SEQUENCES = range(3)  # what a key is for
_LEAST_BLOCKS = 256


def block_documents(documents: int, rows: int, rows_per_shard: int) -> int:
    """Return how many documents a shuffled block has: as many as a shard holds on average.

    Stores of few shards are cut finer, into at least 256 blocks, or else they would hardly be shuffled at all.

    Examples
    --------
    >>> block_documents(1_000_000, 500_000_000, 1 << 18), block_documents(1000, 500_000, 1 << 18)
    (524, 3)
    """
    shard = documents * rows_per_shard // max(1, rows)
    return max(1, min(shard, documents // _LEAST_BLOCKS))


@dataclass(frozen=True)
class DocumentOrder:
    """Which document stands at which position of an epoch.

    Attributes
    ----------
    documents
        How many there are.
    window_size
        Positions that are shuffled among themselves, at least 1.
    block
        Consecutive documents that the first level keeps together, at least 1.
    seed, epoch
        Choose the order.
    shuffle
        Whether there is one; else documents come as they are stored.

    Examples
    --------
    >>> order = DocumentOrder(6, window_size=4, block=2, seed=0, epoch=0)
    >>> [order.window(number).tolist() for number in range(order.windows)]
    [[4, 0, 1, 5], [3, 2]]
    """

    documents: int
    window_size: int
    block: int
    seed: int
    epoch: int
    shuffle: bool = True

    @property
    def name(self) -> str:
        """Name and version of the algorithm: a state of another one means other documents."""
        return "feistel-blocks-1" if self.shuffle else "stored-1"

    @property
    def windows(self) -> int:
        """Number of windows; the last one may be short."""
        return -(-self.documents // self.window_size)

    def size(self, window: int) -> int:
        """Return the number of positions of a window."""
        return min(self.window_size, self.documents - window * self.window_size)

    def window(self, number: int) -> NDArray[np.int64]:
        """Return the documents of a window in the order they are visited, ``(size,)`` int64."""
        first = number * self.window_size
        positions = np.arange(self.size(number), dtype=np.int64)
        if not self.shuffle:
            return first + positions
        within = Permutation(len(positions), derive_key(self.seed, self.epoch, _WINDOW, number))
        return self._in_blocks(first + within(positions))

    def sequences(self, window: int, count: int) -> NDArray[np.int64]:
        """Return the order of the sequences that were packed out of a window, ``(count,)`` int64."""
        positions = np.arange(count, dtype=np.int64)
        if not self.shuffle:
            return positions
        return Permutation(count, derive_key(self.seed, self.epoch, _SEQUENCES, window))(positions)

    def _in_blocks(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the documents at positions of the sequence of shuffled blocks."""
        blocks = -(-self.documents // self.block)
        permutation = Permutation(blocks, derive_key(self.seed, self.epoch, _BLOCKS))
        # The last block may be short and may stand anywhere: positions behind it are counted as if it were full.
        short = int(permutation.inverse(np.array([blocks - 1]))[0])
        missing = blocks * self.block - self.documents
        counted = np.where(positions < (short + 1) * self.block - missing, positions, positions + missing)
        documents: NDArray[np.int64] = permutation(counted // self.block) * self.block + counted % self.block
        return documents
