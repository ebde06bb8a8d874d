"""From array elements to the unsigned integers the coder sees, and back; and how many slots of a row are used.

A float is mapped to a *key* that grows with the float, so that values close together have keys close together. Where
every element of a row has ``shift`` trailing zero bits (a bfloat16 teacher's logits in float16 have three, unless they
are tiny) they are cut off first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from logitstore import layout

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["BITS_DTYPE", "NATIVE_DTYPE", "UNUSED", "bits_from_keys", "keys_from_bits", "row_shifts", "shifts_of_zeros"]

NATIVE_DTYPE: dict[int, np.dtype[Any]] = {
    layout.DTYPE_UINT8: np.dtype("<u1"),
    layout.DTYPE_FLOAT16: np.dtype("<f2"),
    layout.DTYPE_UINT32: np.dtype("<u4"),
    layout.DTYPE_FLOAT32: np.dtype("<f4"),
}
BITS_DTYPE: dict[int, np.dtype[Any]] = {
    layout.DTYPE_UINT8: np.dtype("<u1"),
    layout.DTYPE_FLOAT16: np.dtype("<u2"),
    layout.DTYPE_UINT32: np.dtype("<u4"),
    layout.DTYPE_FLOAT32: np.dtype("<u4"),
}
"""Unsigned integers as wide as each type."""

UNUSED: dict[int, int] = {
    layout.DTYPE_UINT8: 0,
    layout.DTYPE_FLOAT16: 0xFC00,  # -inf
    layout.DTYPE_UINT32: layout.UNUSED_ID,
}
"""Bits of an unused slot, for the types that have rows of slots."""

_SHIFT_COST_BITS = 32
"""What a row pays where rows differ: its shift, and a base out of a wider range."""

_FLOATS = (layout.DTYPE_FLOAT16, layout.DTYPE_FLOAT32)


def row_shifts(bits: NDArray[Any], dtype: int) -> NDArray[np.int64]:
    """Low zero bits that are cut off each row of ``(rows, slots)`` elements; ``(rows,)``, 0 for integer types.

    Most rows of a chunk can do with the same shift, that of all but the tenth of rows with the fewest common zero bits;
    where it saves more than it costs, those get it, and the others what they all share.
    """
    shifts = np.zeros(len(bits), np.int64)
    if dtype not in _FLOATS or not bits.size:
        return shifts
    # The sign and exponent stay: cutting them would leave nothing to order by. -inf in unused slots has no low bits.
    limit = 10 if dtype == layout.DTYPE_FLOAT16 else 23
    union = np.bitwise_or.reduce(bits, axis=1).astype(np.int64) | 1 << limit
    zeros = np.log2(union & -union).astype(np.int64)
    return shifts_of_zeros(zeros, bits.shape[1])


def shifts_of_zeros(zeros: NDArray[np.int64], slots: int) -> NDArray[np.int64]:
    """Return the shift of each row, of at least one, by the low zero bits that its elements share, ``(rows,)``."""
    tenth = len(zeros) // 10
    common, usual = int(zeros.min()), int(np.partition(zeros, tenth)[tenth])
    if (usual - common) * slots <= _SHIFT_COST_BITS:
        usual = common
    return np.where(zeros >= usual, usual, common)


def keys_from_bits(bits: NDArray[Any], dtype: int, shift: int) -> NDArray[np.uint32]:
    """Return ``uint32`` keys of the elements whose bits are given; same shape."""
    keys = bits.astype(np.uint32) >> np.uint32(shift)
    if dtype not in _FLOATS:
        return keys
    half = np.uint32(1 << (8 * bits.dtype.itemsize - 1 - shift))
    return np.where(keys & half, half + (half - np.uint32(1)) - keys, keys | half)


def bits_from_keys(keys: NDArray[np.uint32], dtype: int, shift: int) -> NDArray[Any]:
    """Inverse of `keys_from_bits`."""
    target = BITS_DTYPE[dtype]
    if dtype in _FLOATS:
        half = np.uint32(1 << (8 * target.itemsize - 1 - shift))
        keys = np.where(keys & half, keys ^ half, half + (half - np.uint32(1)) - keys)
    return (keys << np.uint32(shift)).astype(target)
