"""The encoder of the ``exact`` codec in Numba: the same bytes as `reference`, several hundred times as fast.

Every kernel releases the GIL.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit

from logitstore import layout
from logitstore.codec.header import Column
from logitstore.codec.transform import UNUSED
from logitstore.errors import InvalidArgumentError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["encode_rows", "gaps_of_ids", "pack_column", "residuals_of_bits"]

_NIBBLE = layout.PARAMETER_BITS
_WINDOW = (1 << layout.PARAMETER_BITS) - 1
_MAX = layout.PARAMETER_MAX

_kernel = njit(nogil=True, cache=True, boundscheck=False, error_model="numpy")
_inlined = njit(nogil=True, cache=True, boundscheck=False, error_model="numpy", inline="always")


@_kernel
def _gaps(ids: Any, bound: Any, counts: Any, gaps: Any) -> int:
    """Fill counts and gaps; return the first bad row or -1."""
    rows, slots = ids.shape
    for row in range(rows):
        count = slots
        while count and ids[row, count - 1] == np.uint32(0xFFFFFFFF):
            count -= 1
        counts[row] = count
        previous = np.int64(-1)
        bad = False
        for slot in range(count):
            token = np.int64(ids[row, slot])
            bad |= token <= previous
            gaps[row, slot] = np.uint32(token - previous - 1)
            previous = token
        if bad or previous >= bound:
            return row
        gaps[row, count:] = 0
    return -1


@_kernel
def _residuals(
    bits: Any, unused: Any, ragged: bool, is_float: bool, shift: Any, counts: Any, bases: Any, out: Any
) -> None:
    rows, slots = bits.shape
    half = np.uint32(1) << np.uint32(8 * bits.itemsize - 1 - shift)
    for row in range(rows):
        count = slots
        if ragged:
            while count and bits[row, count - 1] == unused:
                count -= 1
        counts[row] = count
        low = np.uint32(0xFFFFFFFF)
        for slot in range(count):
            key = np.uint32(bits[row, slot]) >> np.uint32(shift)
            if is_float:
                key = half + (half - np.uint32(1)) - key if key & half else key | half
            out[row, slot] = key
            low = min(low, key)
        bases[row] = low if count else np.uint32(0)
        for slot in range(count):
            out[row, slot] -= low
        out[row, count:] = 0


@_kernel
def _choose(residuals: Any, counts: Any, block_log2: int, parameters: Any, lengths: Any) -> Any:
    """Best parameter of every block and the bits of every row; returns the largest parameter."""
    rows = residuals.shape[0]
    size = 1 << block_log2
    largest = 0
    for row in range(rows):
        count = counts[row]
        length = np.int64(0)
        union = np.uint32(0)
        for block in range((count + size - 1) >> block_log2):
            first = block << block_log2
            values = residuals[row, first : min(count, first + size)]
            n = np.int64(len(values))
            total = np.uint64(0)
            for x in values:
                total += np.uint64(x)
                union |= x
            # The cost is convex in the parameter: walk from the parameter the mean suggests to the first minimum.
            mean = total // np.uint64(n)
            w = 0
            while w < _MAX and (mean >> np.uint64(w + 1)) > 0:
                w += 1
            cost = _cost(values, n, w)
            while w > 0:
                lower = _cost(values, n, w - 1)
                if lower > cost:
                    break
                cost = lower
                w -= 1
            while w < _MAX:
                upper = _cost(values, n, w + 1)
                if upper >= cost:
                    break
                cost = upper
                w += 1
            parameters[row, block] = w
            length += _NIBBLE + cost
        if union == 0:
            length = 0
        else:
            for block in range((count + size - 1) >> block_log2):
                largest = max(largest, parameters[row, block])
        lengths[row] = length
    return largest


@_inlined
def _cost(values: Any, n: Any, w: Any) -> Any:
    bits = np.uint64(0)
    for x in values:
        bits += np.uint64(x >> np.uint32(w))
    return np.int64(bits) + n * (w + 1)


@_kernel
def _raise_parameters(residuals: Any, counts: Any, block_log2: int, base: int, parameters: Any, lengths: Any) -> None:
    """Lift parameters below ``base`` to it; only needed where a chunk's parameters span more than 16."""
    for row in range(residuals.shape[0]):
        count = counts[row]
        if lengths[row] == 0:
            continue
        for block in range((count + (1 << block_log2) - 1) >> block_log2):
            w = parameters[row, block]
            if w < base:
                first = block << block_log2
                values = residuals[row, first : min(count, first + (1 << block_log2))]
                n = np.int64(len(values))
                lengths[row] += _cost(values, n, base) - _cost(values, n, np.int64(w))
                parameters[row, block] = base


@_inlined
def _put(words: Any, position: Any, value: Any, width: Any) -> None:
    index = position >> 6
    offset = position & 63
    words[index] |= value << np.uint64(offset)
    if offset + width > 64:
        words[index + 1] |= value >> np.uint64(64 - offset)


@_kernel
def _write(residuals: Any, counts: Any, block_log2: int, base: int, parameters: Any, lengths: Any, words: Any) -> None:
    position = np.int64(0)
    for row in range(residuals.shape[0]):
        if lengths[row] == 0:
            continue
        count = counts[row]
        blocks = (count + (1 << block_log2) - 1) >> block_log2
        for block in range(blocks):
            _put(words, position, np.uint64(parameters[row, block] - base), _NIBBLE)
            position += _NIBBLE
        for block in range(blocks):
            w = np.int64(parameters[row, block])
            mask = (np.uint64(1) << np.uint64(w)) - np.uint64(1)
            first = block << block_log2
            for slot in range(first, min(count, first + (1 << block_log2))):
                _put(words, position, np.uint64(residuals[row, slot]) & mask, w)
                position += w
        for block in range(blocks):
            w = np.uint32(parameters[row, block])
            first = block << block_log2
            for slot in range(first, min(count, first + (1 << block_log2))):
                position += np.int64(residuals[row, slot] >> w)
                words[position >> 6] |= np.uint64(1) << np.uint64(position & 63)
                position += 1


@_kernel
def _pack(values: Any, low: Any, width: Any, words: Any) -> None:
    position = np.int64(0)
    for value in values:
        _put(words, position, np.uint64(value) - np.uint64(low), width)
        position += width


def gaps_of_ids(ids: NDArray[np.uint32], bound: int) -> tuple[NDArray[np.int64], NDArray[np.uint32]]:
    """Return entries per row and the gaps between ascending ids, both checked.

    Raises
    ------
    InvalidArgumentError
        A row is not strictly ascending with unused slots last, or has an id outside the vocabulary.
    """
    counts = np.empty(len(ids), np.int64)
    gaps = np.empty(ids.shape, np.uint32)
    row = _gaps(ids, bound, counts, gaps)
    if row >= 0:
        raise InvalidArgumentError(
            f"ids of a row are ascending, unique, below the vocabulary size {bound}, with unused slots last; "
            f"row {row} of the chunk is {ids[row].tolist()[:8]}…"
        )
    return counts, gaps


def residuals_of_bits(
    bits: NDArray[Any], dtype: int, shift: int, *, ragged: bool
) -> tuple[NDArray[np.int64], NDArray[np.uint32], NDArray[np.uint32]]:
    """Return entries per row, each row's smallest key, and the keys less that."""
    counts = np.empty(len(bits), np.int64)
    bases = np.empty(len(bits), np.uint32)
    out = np.empty(bits.shape, np.uint32)
    is_float = dtype in (layout.DTYPE_FLOAT16, layout.DTYPE_FLOAT32)
    unused = bits.dtype.type(UNUSED.get(dtype, 0))
    _residuals(bits, unused, ragged, is_float, np.int64(shift), counts, bases, out)
    return counts, bases, out


def encode_rows(
    residuals: NDArray[np.uint32], counts: NDArray[np.int64], block_log2: int
) -> tuple[int, NDArray[np.int64], bytes]:
    """Code rows of residuals: parameter base, bits of each row, and the payload with its guard words."""
    blocks = -(-residuals.shape[1] // (1 << block_log2))
    parameters = np.zeros((len(residuals), blocks), np.uint8)
    lengths = np.empty(len(residuals), np.int64)
    base = max(0, int(_choose(residuals, counts, block_log2, parameters, lengths)) - _WINDOW)
    if base:
        _raise_parameters(residuals, counts, block_log2, base, parameters, lengths)
    words32 = -(-int(lengths.sum()) // 32) + layout.GUARD_WORDS
    words = np.zeros(words32 // 2 + 1, np.uint64)
    _write(residuals, counts, block_log2, base, parameters, lengths, words)
    return base, lengths, words.astype("<u8", copy=False).tobytes()[: 4 * words32]


def pack_column(values: NDArray[Any]) -> tuple[Column, bytes]:
    """Pack one value per row against their minimum."""
    if not len(values):
        return Column(0, 0), b""
    low = int(values.min())
    column = Column(low, (int(values.max()) - low).bit_length())
    words32 = column.words(len(values))
    words = np.zeros(words32 // 2 + 1, np.uint64)
    if column.width:
        _pack(values, low, column.width, words)
    return column, words.astype("<u8", copy=False).tobytes()[: 4 * words32]
