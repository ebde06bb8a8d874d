"""The ``exact`` codec written the way ``spec/FORMAT.md`` reads: plain NumPy and Python, one row after the other.

Slow. It exists so that the fast implementation has something to equal: the same bytes when encoding, the same arrays
when decoding. The decoder trusts what `header.read_header` has checked and raises on everything else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from logitstore import layout
from logitstore.codec.header import DTYPE_BITS, ChunkHeader, Column
from logitstore.codec.transform import BITS_DTYPE, UNUSED, bits_from_keys
from logitstore.errors import CorruptDataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["decode_payload", "encode_payload", "pack_column", "unpack_column"]


def best_parameter(block: list[int]) -> int:
    """Smallest Rice parameter among those that code ``block`` with the fewest bits."""
    costs = [len(block) * w + sum(x >> w for x in block) for w in range(layout.PARAMETER_MAX + 1)]
    return costs.index(min(costs))


def encode_payload(residuals: list[list[int]], block_log2: int) -> tuple[int, list[int], NDArray[np.uint32]]:
    """Code rows of residuals.

    Returns
    -------
    tuple
        The chunk's parameter base, the length of each row in bits, and the payload's words, guard words included.
    """
    size = 1 << block_log2
    blocks_of_rows = [[row[i : i + size] for i in range(0, len(row), size)] for row in residuals]
    parameters = [[best_parameter(block) for block in blocks] for blocks in blocks_of_rows]
    used = [w for row, ws in zip(residuals, parameters, strict=True) if any(row) for w in ws]
    base = max(0, max(used, default=0) - (1 << layout.PARAMETER_BITS) + 1)
    bits: list[int] = []
    lengths = []
    for row, blocks, chosen in zip(residuals, blocks_of_rows, parameters, strict=True):
        start = len(bits)
        if any(row):
            ws = [max(w, base) for w in chosen]
            for w in ws:
                bits += _bits_of(w - base, layout.PARAMETER_BITS)
            for w, block in zip(ws, blocks, strict=True):
                for x in block:
                    bits += _bits_of(x & ((1 << w) - 1), w)
            for w, block in zip(ws, blocks, strict=True):
                for x in block:
                    bits += [0] * (x >> w) + [1]
        lengths.append(len(bits) - start)
    words = -(-len(bits) // 32)
    padded = np.zeros((words + layout.GUARD_WORDS) * 32, np.uint8)
    padded[: len(bits)] = bits
    return base, lengths, np.packbits(padded, bitorder="little").view("<u4")


def decode_payload(header: ChunkHeader, data: memoryview, start: int, stop: int) -> NDArray[Any]:
    """Decode rows ``start:stop`` of a checked chunk; ``(stop - start, slots)`` of the chunk's bit type."""
    columns = []
    offset = layout.CHUNK_HEADER_BYTES
    for column in header.columns:
        nbytes = 4 * column.words(header.rows)
        columns.append(unpack_column(data[offset : offset + nbytes], column, header.rows))
        offset += nbytes
    counts, lengths, bases, shifts = columns
    if header.kind == layout.KIND_FLAT and header.rows:
        counts[-1] = header.entries - layout.FLAT_GROUP * (header.rows - 1)
    if sum(counts) != header.entries or max(counts, default=0) > header.slots:
        raise CorruptDataError(f"the rows' counts give {sum(counts)} entries, the header says {header.entries}")
    if -(-sum(lengths) // 32) + layout.GUARD_WORDS != header.payload_words:
        raise CorruptDataError(f"the rows' lengths give {sum(lengths)} bits for {header.payload_words} words")
    if max(shifts, default=0) >= DTYPE_BITS[header.dtype]:
        raise CorruptDataError(f"a row's shift is below {DTYPE_BITS[header.dtype]}, found {max(shifts)}")
    payload = np.frombuffer(data[offset : offset + 4 * header.payload_words], np.uint8)
    stream = np.unpackbits(payload, bitorder="little").tolist()
    out = np.full((stop - start, header.slots), UNUSED.get(header.dtype, 0), BITS_DTYPE[header.dtype])
    for row in range(start, stop):
        first = sum(lengths[:row])
        residuals = _decode_row(stream[first : first + lengths[row]], counts[row], header, row)
        out[row - start, : counts[row]] = _elements(residuals, bases[row], shifts[row], header, row)
    return out


def _decode_row(bits: list[int], count: int, header: ChunkHeader, row: int) -> list[int]:
    if not bits:
        return [0] * count
    size = 1 << header.block_log2
    sizes = [min(size, count - first) for first in range(0, count, size)]
    position = layout.PARAMETER_BITS * len(sizes)
    parameters = [
        header.parameter_base + _number(bits[i : i + layout.PARAMETER_BITS])
        for i in range(0, position, layout.PARAMETER_BITS)
    ]
    widths = [w for w, n in zip(parameters, sizes, strict=True) for _ in range(n)]
    if position + sum(widths) + count > len(bits) or max(widths, default=0) > layout.PARAMETER_MAX:
        raise CorruptDataError(f"row {row} of the chunk needs more than its {len(bits)} bits", row=None)
    remainders = []
    for w in widths:
        remainders.append(_number(bits[position : position + w]))
        position += w
    residuals = []
    for w, remainder in zip(widths, remainders, strict=True):
        quotient = 0
        while position < len(bits) and not bits[position]:
            quotient += 1
            position += 1
        position += 1
        residuals.append(quotient << w | remainder)
    if position != len(bits):
        raise CorruptDataError(f"row {row} of the chunk does not end where its {len(bits)} bits do")
    return residuals


def _elements(residuals: list[int], base: int, shift: int, header: ChunkHeader, row: int) -> NDArray[Any]:
    if header.kind == layout.KIND_IDS:
        ids = np.cumsum(np.array(residuals, np.int64) + 1) - 1
        if len(ids) and ids[-1] >= header.bound:
            raise CorruptDataError(f"row {row} of the chunk has id {ids[-1]} in a vocabulary of {header.bound}")
        return ids.astype(np.uint32)
    keys = [base + residual for residual in residuals]
    limit = 1 << (8 * BITS_DTYPE[header.dtype].itemsize - shift)
    if max(keys, default=0) >= limit:
        raise CorruptDataError(f"row {row} of the chunk has key {max(keys)}, keys are below {limit}")
    return bits_from_keys(np.array(keys, np.uint32), header.dtype, shift)


def pack_column(values: list[int]) -> tuple[Column, bytes]:
    """Pack one value per row against their minimum."""
    if not values:
        return Column(0, 0), b""
    low = min(values)
    width = (max(values) - low).bit_length()
    bits = [bit for value in values for bit in _bits_of(value - low, width)]
    padded = np.zeros(-(-len(bits) // 32) * 32, np.uint8)
    padded[: len(bits)] = bits
    return Column(low, width), np.packbits(padded, bitorder="little").tobytes()


def unpack_column(data: memoryview, column: Column, rows: int) -> list[int]:
    """Inverse of `pack_column`."""
    bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little").tolist()
    w = column.width
    return [column.minimum + _number(bits[i * w : (i + 1) * w]) for i in range(rows)]


def _bits_of(value: int, width: int) -> list[int]:
    return [value >> i & 1 for i in range(width)]


def _number(bits: list[int]) -> int:
    return sum(bit << i for i, bit in enumerate(bits))
