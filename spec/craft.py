"""Spell chunks out by hand, right or wrong, with sound checksums."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from logitstore.codec.header import finish_chunk

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Row", "craft", "reseal"]

FIELDS = (
    "magic", "kind", "type", "block_log2", "parameter_base", "rows", "slots", "bound", "shift", "counts_width",
    "lengths_width", "bases_width", "counts_minimum", "lengths_minimum", "bases_minimum", "payload_words", "entries",
    "shifts_width",
)  # fmt: skip
HEADER = struct.Struct("<4sBBBBIIIBBBBIIIIII")
KINDS = {"ids": 1, "values": 2, "flat": 3}
TYPES = {"uint8": 1, "float16": 2, "uint32": 3, "float32": 4}


class Bits:
    """A bit stream that grows at its end."""

    def __init__(self) -> None:
        self.value = 0
        self.length = 0

    def put(self, number: int, width: int) -> None:
        """Append ``width`` bits."""
        assert 0 <= number < 1 << width
        self.value |= number << self.length
        self.length += width

    def words(self, extra: int = 0) -> bytes:
        """Return the stream in whole 32-bit words, and ``extra`` more."""
        return self.value.to_bytes(4 * (-(-self.length // 32) + extra), "little")


@dataclass
class Row:
    """A row to be spelled out: residuals, a parameter per block (none for length 0), and bits to spoil its end."""

    residuals: Sequence[int]
    parameters: Sequence[int] = ()
    tail: str = ""
    cut: int = 0
    count: int | None = None

    def bits(self, parameter_base: int, block: int) -> tuple[int, int]:
        """Return the row's bits and their number."""
        out = Bits()
        widths = [w for i, w in enumerate(self.parameters) for _ in self.residuals[i * block : (i + 1) * block]]
        if self.parameters:
            for w in self.parameters:
                out.put(w - parameter_base, 4)
            for x, w in zip(self.residuals, widths, strict=True):
                out.put(x & ((1 << w) - 1), w)
            for x, w in zip(self.residuals, widths, strict=True):
                out.put(1 << (x >> w), (x >> w) + 1)
        for bit in self.tail:
            out.put(int(bit), 1)
        length = out.length - self.cut
        return out.value & ((1 << length) - 1), length


def craft(
    kind: str, type_: str, slots: int, rows: Sequence[Row], *, bound: int = 0, shift: int = 0, parameter_base: int = 0,
    block_log2: int = 4, bases: Sequence[int] | None = None, bases_minimum: int = 0,
    shifts: Sequence[int] | None = None, widen: int = 0, **header: int,
) -> bytes:  # fmt: skip
    """Spell out a chunk; ``header`` replaces fields of the header, right or wrong."""
    payload = Bits()
    lengths = []
    for row in rows:
        value, length = row.bits(parameter_base, 1 << block_log2)
        payload.put(value, length)
        lengths.append(length)
    counts = [len(row.residuals) if row.count is None else row.count for row in rows]
    columns = [] if kind == "flat" else [("counts", counts, 0)]
    columns += [("lengths", lengths, 0)] + ([] if bases is None else [("bases", list(bases), bases_minimum)])
    columns += [] if shifts is None else [("shifts", list(shifts), shift)]
    fields: dict[str, Any] = dict.fromkeys(FIELDS, 0) | {
        "magic": b"LGX1", "kind": KINDS[kind], "type": TYPES[type_], "block_log2": block_log2,
        "parameter_base": parameter_base, "rows": len(rows), "slots": slots, "bound": bound, "shift": shift,
        "counts_minimum": 256 if kind == "flat" else 0, "bases_minimum": bases_minimum, "entries": sum(counts),
    }  # fmt: skip
    body = b""
    for name, numbers, minimum in columns:
        stream = Bits()
        width = max((number - minimum).bit_length() for number in numbers) + widen
        for number in numbers:
            stream.put(number - minimum, width)
        fields[f"{name}_width"] = width
        body += stream.words()
    fields["payload_words"] = -(-payload.length // 32) + 2
    fields |= header
    return finish_chunk([HEADER.pack(*fields.values()), body, payload.words(2)])


def reseal(chunk: bytes, **header: Any) -> bytes:
    """Replace header fields of a finished chunk and its checksum."""
    fields = dict(zip(FIELDS, HEADER.unpack_from(chunk), strict=True)) | header
    return finish_chunk([HEADER.pack(*fields.values()), chunk[HEADER.size : -4]])
