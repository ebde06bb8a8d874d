"""A keyed permutation of ``0 … n-1`` that needs no table: an order that can be entered anywhere.

A Feistel network permutes the smallest power of two that holds all numbers; a number that falls outside is sent through
again until it falls inside (cycle walking), which on average takes less than two passes. A handful of numbers is too
little for such a network, and is sorted by hashes instead. Both rest on 64-bit arithmetic alone, so no version of
NumPy's generators can change them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Permutation", "derive_key"]

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_ROUNDS = 8
_SORTED_SIZE = 64


def derive_key(*parts: int) -> int:
    """Return a 64-bit key that depends on every part and on its place.

    Examples
    --------
    >>> hex(derive_key(1, 2)), derive_key(1, 2) == derive_key(2, 1)
    ('0x2371c8a9b8068eba', False)
    """
    key = len(parts)
    for part in parts:
        key = _mixed(((key ^ (part & _MASK)) + _GOLDEN) & _MASK)
    return key


class Permutation:
    """A bijection of ``range(size)`` that a key chooses.

    Parameters
    ----------
    size
        How many numbers are permuted, up to 2^63.
    key
        64 bits, as from `derive_key`.

    Examples
    --------
    >>> permutation = Permutation(8, key=1)
    >>> permutation(np.arange(8))
    array([3, 5, 1, 7, 6, 4, 0, 2])
    >>> permutation.inverse(permutation(np.arange(8)))
    array([0, 1, 2, 3, 4, 5, 6, 7])
    """

    def __init__(self, size: int, key: int) -> None:
        self.size = size
        bits = max(2, (size - 1).bit_length())
        self._low_bits = np.uint64(bits // 2)
        self._low = np.uint64((1 << bits // 2) - 1)
        self._high = np.uint64((1 << bits - bits // 2) - 1)
        self._keys = [np.uint64(_mixed((key + _GOLDEN * (number + 1)) & _MASK)) for number in range(_ROUNDS)]
        self._few: NDArray[np.int64] | None = None
        if size <= _SORTED_SIZE:
            # Hashes of 32 bits are seldom equal, and a stable sort is the same everywhere if they are.
            hashes = _hashed(np.arange(size, dtype=np.uint64) * np.uint64(_GOLDEN), self._keys[0])
            self._few = np.argsort(hashes, kind="stable")

    def __call__(self, positions: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
        """Return where each position is sent, ``(n,)`` int64; positions are within the size."""
        if self._few is not None:
            return np.take(self._few, positions)
        return self._walk(positions, list(enumerate(self._keys)))

    def inverse(self, values: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
        """Return the positions that are sent to the values, ``(n,)`` int64."""
        if self._few is not None:
            return np.take(np.argsort(self._few), values)
        return self._walk(values, list(enumerate(self._keys))[::-1])

    def _walk(self, numbers: NDArray[np.integer[Any]], rounds: list[tuple[int, np.uint64]]) -> NDArray[np.int64]:
        out = self._pass(np.asarray(numbers).astype(np.uint64), rounds)
        outside = np.flatnonzero(out >= self.size)
        while outside.size:
            out[outside] = self._pass(out[outside], rounds)
            outside = outside[out[outside] >= self.size]
        return out.astype(np.int64)

    def _pass(self, numbers: NDArray[np.uint64], rounds: list[tuple[int, np.uint64]]) -> NDArray[np.uint64]:
        """Send numbers through the network. A round changes one half by the other, so it undoes itself."""
        low, high = numbers & self._low, numbers >> self._low_bits
        for number, key in rounds:
            if number % 2:
                low ^= _hashed(high, key) & self._low
            else:
                high ^= _hashed(low, key) & self._high
        joined: NDArray[np.uint64] = (high << self._low_bits) | low
        return joined


def _mixed(number: int) -> int:
    """Mix 64 bits as SplitMix64 does."""
    number = ((number ^ (number >> 30)) * _MULTIPLIERS[0]) & _MASK
    number = ((number ^ (number >> 27)) * _MULTIPLIERS[1]) & _MASK
    return number ^ (number >> 31)


def _hashed(half: NDArray[np.uint64], key: np.uint64) -> NDArray[np.uint64]:
    """Return the upper 32 bits of `_mixed`, of each element."""
    mixed = half + key
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(_MULTIPLIERS[0])
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(_MULTIPLIERS[1])
    return (mixed ^ (mixed >> np.uint64(31))) >> np.uint64(32)
