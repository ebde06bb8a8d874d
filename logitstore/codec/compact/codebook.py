"""Codebooks of the ``compact`` codec: what was learnt from the first rows, as a file that chunks name by its digest.

An `IdBook` codes one array of ids, a `ValueBook` one array of values. Both are immutable, and the same bytes always
give the same book; `parse` reads it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from logitstore import layout
from logitstore.codec.compact.sections import gaps_of_runs, write_file
from logitstore.codec.compact.symbols import SymbolCode

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from logitstore.codec.compact.symbols import SymbolCode

__all__ = ["GAP_CONTEXTS", "Codebook", "IdBook", "ValueBook", "column_context", "gap_context"]

GAP_CONTEXTS = 48
COLUMN_CONTEXTS = 64


def gap_context(left: int, previous: int) -> int:
    """Context of a gap: how many entries are left (this one included), and the rank before it plus one."""
    return (min(left.bit_length(), 8) - 1) * 6 + min(previous.bit_length() // 3, 5)


def column_context(column: int) -> int:
    """Context of a column, counted from 0: two for each doubling."""
    high = (column + 1).bit_length() - 1
    return 2 * high + ((column + 1) >> (high - 1) & 1 if high else 0)


@dataclass(frozen=True)
class IdBook:
    """What codes ids.

    Parameters
    ----------
    vocab_size
        ``V``.
    order
        ``(V,)`` uint32: all ids, likely ones first; an id's place is its *rank*.
    order_sizes
        ``(B,)`` uint32: ``order`` is as many runs of ascending ids, of these sizes, and one of all others.
    nibbles
        ``(C, X)`` uint32: nibbles of each class in each context.
    listed
        ``(4 · sum(nibbles),)`` uint32: ranks of the classes' ids, ascending within a class and context.
    class_code, miss_code, gap_code, nibble_code
        Codes of a row's class, of how many ids are not in the class's list, of the gaps between the ranks of those,
        and of which of four ids are there.
    """

    vocab_size: int
    order: NDArray[np.uint32]
    order_sizes: NDArray[np.uint32]
    nibbles: NDArray[np.uint32]
    listed: NDArray[np.uint32]
    class_code: SymbolCode
    miss_code: SymbolCode
    gap_code: SymbolCode
    nibble_code: SymbolCode

    kind = layout.KIND_IDS
    dtype = layout.DTYPE_UINT32

    @property
    def classes(self) -> int:
        """Number of classes; at least 1, of which the list may be empty."""
        return len(self.nibbles)

    @cached_property
    def listed_ids(self) -> NDArray[np.uint32]:
        """Ids of the classes' lists, with four more so that a nibble can be loaded at the very end."""
        return np.concatenate([self.order[self.listed], np.zeros(layout.NIBBLE, np.uint32)])

    @cached_property
    def ranks(self) -> NDArray[np.uint32]:
        """``(V,)`` place of each id in the order."""
        ranks = np.empty(self.vocab_size, np.uint32)
        ranks[self.order] = np.arange(self.vocab_size, dtype=np.uint32)
        return ranks

    @cached_property
    def short_ranks(self) -> NDArray[np.unsignedinteger]:
        """`ranks` in as few bytes as they need."""
        return self.ranks.astype(np.uint16 if self.vocab_size <= 1 << 16 else np.uint32)

    @cached_property
    def short_listed(self) -> NDArray[np.unsignedinteger]:
        """`listed` in as few bytes as it needs, and 64 more so that as many can be loaded at the very end."""
        dtype = np.uint16 if self.vocab_size <= 1 << 16 else np.uint32
        return np.concatenate([self.listed, np.zeros(64, np.uint32)]).astype(dtype)

    @cached_property
    def longest(self) -> int:
        """Nibbles of the longest class."""
        return int(np.diff(self.first_nibble).max())

    @cached_property
    def first_nibble(self) -> NDArray[np.int64]:
        """``(C + 1,)``: where each class's nibbles begin."""
        return np.concatenate([[0], np.cumsum(self.nibbles.sum(1, dtype=np.int64))])

    @cached_property
    def blob(self) -> bytes:
        """The codebook as a file."""
        codes = (self.class_code, self.miss_code, self.gap_code, self.nibble_code)
        listed = self.order_sizes.sum(dtype=np.int64)
        sections = [
            self.order_sizes,
            gaps_of_runs(self.order[:listed], self.order_sizes),
            self.nibbles,
            gaps_of_runs(self.listed, self.nibbles.reshape(-1) * layout.NIBBLE),
            *[array for code in codes for array in code.arrays],
        ]
        return write_file(
            self.kind, self.dtype, (self.vocab_size, self.classes, self.nibbles.shape[1]), sections, (0.0, 0.0)
        )

    @cached_property
    def digest(self) -> bytes:
        """First 16 bytes of the SHA-256 of the file."""
        return digest_of(self.blob)


@dataclass(frozen=True)
class ValueBook:
    """What codes values.

    Parameters
    ----------
    dtype
        `layout.DTYPE_FLOAT16` or `layout.DTYPE_UINT8`.
    levels
        ``(Q,)`` uint32: keys that a value can have, ascending (see `logitstore.codec.transform` for keys).
    bounds
        ``(A,)`` uint32: levels at which the context of a row's smallest level changes.
    base_code, delta_code
        Codes of the row's smallest level (plus 1; 0 is a row that is kept as it is) and of the distance to it.
        Contexts of the latter are ``(A + 1) · 64``: bounds not above the base, and the column.
    max_error, max_kl
        What an encoder promised: the largest error of a value, and the largest generalised KL of a row. Infinite where
        nothing was promised, 0 where values are kept bit for bit.
    """

    dtype: int
    levels: NDArray[np.uint32]
    bounds: NDArray[np.uint32]
    base_code: SymbolCode
    delta_code: SymbolCode
    max_error: float = 0.0
    max_kl: float = 0.0

    kind = layout.KIND_VALUES

    @cached_property
    def blob(self) -> bytes:
        """The codebook as a file."""
        sections = [
            gaps_of_runs(self.levels, np.array([len(self.levels)])),
            self.bounds,
            *self.base_code.arrays,
            *self.delta_code.arrays,
        ]
        return write_file(
            self.kind, self.dtype, (0, len(self.levels), len(self.bounds)), sections, (self.max_error, self.max_kl)
        )

    @cached_property
    def digest(self) -> bytes:
        """First 16 bytes of the SHA-256 of the file."""
        return digest_of(self.blob)


Codebook = IdBook | ValueBook


def digest_of(data: bytes) -> bytes:
    """Return the digest by which chunks name the codebook of these bytes."""
    return hashlib.sha256(data).digest()[: layout.CODEBOOK_DIGEST_BYTES]
