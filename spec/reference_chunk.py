"""Read a logitstore chunk with nothing but Python's standard library, in the order of FORMAT.md sections 2 and 9.

Slow and plain on purpose: a second opinion on what the bytes mean. It checks rules C1 to C27 of section 12; the rule
that was broken is in the error.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass

# --- section 2: conventions ----------------------------------------------------------------------------------------


class FormatError(Exception):
    """A rule of FORMAT.md section 12 is broken.

    Attributes
    ----------
    rule
        Its name there, such as ``C16``.
    kind
        ``"corrupt"``, ``"truncated"`` or ``"unsupported"``.
    """

    def __init__(self, rule: str, kind: str, message: str) -> None:
        super().__init__(f"{rule} ({kind}): {message}")
        self.rule = rule
        self.kind = kind


def require(condition: bool, rule: str, message: str, kind: str = "corrupt") -> None:
    """Raise `FormatError` unless the condition holds."""
    if not condition:
        raise FormatError(rule, kind, message)


def _crc_table() -> list[int]:
    table = []
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


_CRC_TABLE = _crc_table()


def crc32c(data: bytes) -> int:
    """CRC-32C; that of ``b"123456789"`` is 0xE3069283."""
    value = 0xFFFFFFFF
    for byte in data:
        value = value >> 8 ^ _CRC_TABLE[(value ^ byte) & 0xFF]
    return value ^ 0xFFFFFFFF


def bits_at(stream: int, position: int, width: int) -> int:
    """Return ``width`` bits at ``position`` of a stream that was read as one little-endian integer."""
    return stream >> position & ((1 << width) - 1)


def ceil_div(a: int, b: int) -> int:
    """Return ``a / b``, rounded up."""
    return -(-a // b)


# --- section 9: a chunk of the exact codec -------------------------------------------------------------------------

IDS, VALUES, FLAT = 1, 2, 3
KINDS = {"ids": IDS, "values": VALUES, "flat": FLAT}
TYPES = {"uint8": 1, "float16": 2, "uint32": 3, "float32": 4}
TYPE_BITS = {1: 8, 2: 16, 3: 32, 4: 32}
FLOATS = (TYPES["float16"], TYPES["float32"])
ALLOWED = {IDS: (3,), VALUES: (1, 2), FLAT: (1, 3, 4)}
UNUSED_BITS = {1: 0, 2: 0xFC00, 3: 0xFFFFFFFF}
GROUP = 256
HEADER = struct.Struct("<4sBBBBIIIBBBBIIIIII")


@dataclass(frozen=True)
class Column:
    """A column of the row table: each number is ``minimum`` plus ``width`` packed bits."""

    width: int
    minimum: int

    def words(self, rows: int) -> int:
        """Return the 32-bit words it takes."""
        return ceil_div(rows * self.width, 32)


@dataclass(frozen=True)
class Chunk:
    """What a chunk's header says; section 9.1."""

    kind: int
    type: int
    block_log2: int
    parameter_base: int
    rows: int
    slots: int
    bound: int
    shift: int
    columns: tuple[Column, Column, Column, Column]
    payload_words: int
    entries: int


def read_chunk_header(data: bytes, *, verify: bool = True) -> Chunk:
    """Rules C1 to C18."""
    require(len(data) >= HEADER.size + 4, "C1", f"{len(data)} bytes", "truncated")
    f = HEADER.unpack_from(data)
    require(f[0][:3] == b"LGX", "C2", f"magic {f[0]!r}")
    require(f[0][3:] == b"1", "C3", f"version {f[0][3:]!r}", "unsupported")
    columns = (Column(f[9], f[12]), Column(f[10], f[13]), Column(f[11], f[14]), Column(f[17], f[8]))
    chunk = Chunk(f[1], f[2], f[3], f[4], f[5], f[6], f[7], f[8], columns, f[15], f[16])
    require(chunk.kind in ALLOWED, "C4", f"kind {chunk.kind}")
    require(chunk.type in ALLOWED[chunk.kind], "C5", f"type {chunk.type} in kind {chunk.kind}")
    require(4 <= chunk.block_log2 <= 6, "C6", f"block_log2 {chunk.block_log2}")
    require(chunk.parameter_base <= 31, "C7", f"parameter_base {chunk.parameter_base}")
    require(f[17] <= 5, "C8", f"shifts_width {f[17]}")
    require(all(column.width <= 32 for column in columns), "C9", f"columns {columns}")
    require(chunk.rows <= 1 << 30, "C10", f"rows {chunk.rows}")
    require(1 <= chunk.slots < 1 << 31, "C10", f"slots {chunk.slots}")
    if chunk.kind == IDS:
        require(1 <= chunk.bound <= 1 << 31, "C11", f"bound {chunk.bound}")
        require(columns[2:] == (Column(0, 0), Column(0, 0)), "C12", "ids have neither shift nor bases")
    else:
        require(chunk.bound == 0, "C11", f"bound {chunk.bound}")
        require(chunk.shift < TYPE_BITS[chunk.type], "C13", f"shift {chunk.shift}")
    if chunk.kind == FLAT:
        require(chunk.slots == GROUP and columns[0] == Column(0, GROUP), "C14", "groups have 256 slots")
        require(chunk.rows == ceil_div(chunk.entries, GROUP), "C14", f"{chunk.rows} groups")
    require(2 <= chunk.payload_words < 1 << 27, "C15", f"payload_words {chunk.payload_words}")
    size = HEADER.size + 4 * (sum(column.words(chunk.rows) for column in columns) + chunk.payload_words) + 4
    require(len(data) >= size, "C16", f"{len(data)} of {size} bytes", "truncated")
    require(len(data) == size, "C17", f"{len(data)} bytes, expected {size}")
    if verify:
        require(crc32c(data[:-4]) == int.from_bytes(data[-4:], "little"), "C18", "checksum")
    return chunk


def decode_chunk(
    data: bytes, kind: str, type_: str, shape: tuple[int, ...], *, bound: int = 0, verify: bool = True
) -> list[list[int]]:
    """Return the bits of the elements: rows of slots, or one row with everything of a ``flat`` chunk."""
    chunk = read_chunk_header(data, verify=verify)
    found: tuple[int, ...] = (chunk.kind, chunk.type, chunk.bound)
    require(found == (KINDS[kind], TYPES[type_], bound), "C19", f"kind, type and bound are {found}")
    size = (chunk.entries,) if kind == "flat" else (chunk.rows, chunk.slots)
    require(size == ((math.prod(shape),) if kind == "flat" else shape), "C19", f"shape {size}, expected {shape}")

    # 9.2: the row table
    table: list[list[int]] = []
    offset = HEADER.size
    for column in chunk.columns:
        end = offset + 4 * column.words(chunk.rows)
        stream = int.from_bytes(data[offset:end], "little")
        w = column.width
        table.append([column.minimum + bits_at(stream, row * w, w) for row in range(chunk.rows)])
        offset = end
    counts, lengths, bases, shifts = table
    if chunk.kind == FLAT and chunk.rows:
        counts[-1] = chunk.entries - GROUP * (chunk.rows - 1)
    require(max(counts, default=0) <= chunk.slots, "C20", "a count is above slots")
    require(sum(counts) == chunk.entries, "C21", f"counts sum to {sum(counts)}")
    require(ceil_div(sum(lengths), 32) + 2 == chunk.payload_words, "C22", f"lengths sum to {sum(lengths)}")

    require(max(shifts, default=0) < TYPE_BITS[chunk.type], "C13", "the shift of a row")

    out: list[list[int]] = []
    position = 8 * offset
    for count, length, base, shift in zip(counts, lengths, bases, shifts, strict=True):
        first, last = position // 8, ceil_div(position + length, 8)
        row = bits_at(int.from_bytes(data[first:last], "little"), position % 8, length)
        residuals = decode_row(row, length, count, chunk)
        elements = ids_of(residuals, chunk) if chunk.kind == IDS else values_of(residuals, base, shift, chunk)
        if chunk.kind != FLAT:
            elements += [UNUSED_BITS[chunk.type]] * (chunk.slots - count)
        out.append(elements)
        position += length
    return [[element for group in out for element in group]] if chunk.kind == FLAT else out


def decode_row(row: int, length: int, count: int, chunk: Chunk) -> list[int]:
    """Section 9.3: the residuals of a row, whose bits are given as an integer."""
    if length == 0:
        return [0] * count
    block = 1 << chunk.block_log2
    blocks = ceil_div(count, block)
    require(4 * blocks + count <= length, "C23", f"{length} bits for {count} entries")
    widths: list[int] = []
    for number in range(blocks):
        w = chunk.parameter_base + bits_at(row, 4 * number, 4)
        require(w <= 31, "C24", f"parameter {w}")
        widths += [w] * min(block, count - number * block)
    position = 4 * blocks
    require(position + sum(widths) + count <= length, "C23", f"{length} bits for {count} entries")
    remainders = []
    for w in widths:
        remainders.append(bits_at(row, position, w))
        position += w
    part3 = bin(row >> position)[:1:-1].rstrip("0").ljust(1, "0")  # first bit first, up to the last one bit
    require(part3.count("1") == count and len(part3) == length - position, "C25", "the row's quotients")
    quotients = [len(zeros) for zeros in part3.split("1")[:-1]]
    return [q << w | r for q, w, r in zip(quotients, widths, remainders, strict=True)]


def ids_of(residuals: list[int], chunk: Chunk) -> list[int]:
    """Section 9.4."""
    ids = []
    following = 0
    for residual in residuals:
        ids.append(following + residual)
        following = ids[-1] + 1
    require(following <= chunk.bound, "C26", f"id {following - 1} in a vocabulary of {chunk.bound}")
    return ids


def values_of(residuals: list[int], base: int, shift: int, chunk: Chunk) -> list[int]:
    """Sections 9.5 and 9.6: bits of the elements."""
    half = 1 << TYPE_BITS[chunk.type] - shift - 1
    out = []
    for residual in residuals:
        key = base + residual
        require(key < 2 * half, "C27", f"key {key} for {TYPE_BITS[chunk.type]} bits and shift {shift}")
        if chunk.type in FLOATS:
            key = key - half if key >= half else 2 * half - 1 - key
        out.append(key << shift)
    return out


def number_of(bits: int, type_: str) -> float | int:
    """Return the number that these bits of a type are."""
    if type_ == "float16":
        return float(struct.unpack("<e", bits.to_bytes(2, "little"))[0])
    if type_ == "float32":
        return float(struct.unpack("<f", bits.to_bytes(4, "little"))[0])
    return bits - (1 << 64) if type_ == "int64" and bits >> 63 else bits
