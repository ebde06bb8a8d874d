"""The ``exact`` codec: arrays to chunks and back, bit for bit.

Three kinds of arrays: *ids* (rows of ascending token ids), *values* (rows of float16 or uint8 that belong to ids), and
*flat* arrays (one number or a few per row). The functions here check, choose block sizes and put the header around
what `fast_encode` (or, for tests, `reference`) codes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import google_crc32c
import numpy as np

from logitstore import layout
from logitstore.codec import fast_chunk, fast_decode, fast_encode, reference
from logitstore.codec.bit_rows import BitRows, RowFormat
from logitstore.codec.header import ChunkHeader, Column, finish_chunk, read_header
from logitstore.codec.transform import BITS_DTYPE, NATIVE_DTYPE, row_shifts
from logitstore.errors import CorruptDataError, InvalidArgumentError

if TYPE_CHECKING:
    from numpy.typing import DTypeLike, NDArray
    from typing_extensions import Buffer

__all__ = ["ChunkDecoder", "Kind", "assemble_chunk", "block_log2_for", "decode", "decode_slice", "encode"]

Kind = Literal["ids", "values", "flat"]

_KINDS: dict[str, int] = {"ids": layout.KIND_IDS, "values": layout.KIND_VALUES, "flat": layout.KIND_FLAT}
_CODES: dict[str, dict[np.dtype[Any], int]] = {
    "ids": {np.dtype("u4"): layout.DTYPE_UINT32},
    "values": {np.dtype("f2"): layout.DTYPE_FLOAT16, np.dtype("u1"): layout.DTYPE_UINT8},
    "flat": {
        np.dtype("u1"): layout.DTYPE_UINT8,
        np.dtype("u4"): layout.DTYPE_UINT32,
        np.dtype("f4"): layout.DTYPE_FLOAT32,
    },
}


def encode(array: NDArray[Any], kind: Kind, *, vocab_size: int = 0, use_reference: bool = False) -> bytes:
    """Encode one chunk.

    Parameters
    ----------
    array
        ``ids``: ``(R, K)`` uint32, ascending in each row, unused slots last and ``0xFFFFFFFF``.
        ``values``: ``(R, K)`` float16 or uint8; a trailing run of ``-inf`` (float16) or 0 (uint8) counts as unused.
        ``flat``: any shape, uint8, uint32 or float32.
    kind
        Which of the three.
    vocab_size
        For ``ids``: the bound they are checked against, 1 to 2^31.
    use_reference
        Use the plain implementation. Same bytes.

    Raises
    ------
    InvalidArgumentError
        The array's type or shape does not fit the kind, or ids are not ascending or not below ``vocab_size``.

    Examples
    --------
    >>> import numpy as np
    >>> ids = np.array([[2, 3, 9], [5, 0xFFFFFFFF, 0xFFFFFFFF]], np.uint32)
    >>> chunk = encode(ids, "ids", vocab_size=10)
    >>> decode(chunk, "ids", shape=(2, 3), dtype="u4", vocab_size=10).tolist()
    [[2, 3, 9], [5, 4294967295, 4294967295]]
    """
    dtype = _dtype_code(kind, array.dtype)
    if kind == "ids" and not 1 <= vocab_size <= layout.MAX_VOCAB_SIZE:
        raise InvalidArgumentError(f"ids need a vocabulary size of 1 to 2^31, found {vocab_size}")
    if array.size >= 1 << 32:
        raise InvalidArgumentError(f"a chunk has fewer than 2^32 elements, found {array.size}: use fewer rows")
    bits = np.ascontiguousarray(array).view(BITS_DTYPE[dtype])
    elements = bits.size
    if kind == "flat":
        bits = np.pad(bits.reshape(-1), (0, -elements % layout.FLAT_GROUP), mode="edge" if elements else "empty")
        bits = bits.reshape(-1, layout.FLAT_GROUP)
    elif bits.ndim != 2 or not bits.shape[1]:
        raise InvalidArgumentError(f"{kind} have shape (rows, slots) with at least one slot, found {array.shape}")

    shifts = np.zeros(len(bits), np.int64)
    if kind == "ids":
        counts, residuals = fast_encode.gaps_of_ids(bits, vocab_size)
        bases = np.zeros(len(bits), np.uint32)
    else:
        shifts = row_shifts(bits, dtype)
        counts, bases, residuals = fast_encode.residuals_of_bits(bits, dtype, shifts, ragged=kind == "values")
        if kind == "flat" and elements:
            counts[-1] = elements - layout.FLAT_GROUP * (len(counts) - 1)
    block_log2 = block_log2_for(kind, int(counts.sum()), len(counts))
    if use_reference:
        rows = [row[:n].tolist() for row, n in zip(residuals, counts, strict=True)]
        base, row_lengths, words = reference.encode_payload(rows, block_log2)
        lengths, payload = np.array(row_lengths, np.int64), words.data.cast("B")
    else:
        base, lengths, payload = fast_encode.encode_rows(residuals, counts, block_log2)
    return assemble_chunk(
        kind, dtype, block_log2, base, bits.shape, vocab_size, shifts, counts, lengths, bases, payload
    )


def decode(
    data: Buffer,
    kind: Kind,
    *,
    shape: tuple[int, ...],
    dtype: DTypeLike,
    vocab_size: int = 0,
    verify: bool = True,
    use_reference: bool = False,
) -> NDArray[Any]:
    """Decode one chunk to an array of ``shape`` and ``dtype``; inverse of `encode`.

    Raises
    ------
    CorruptDataError
        The bytes break a rule of the format, or hold another kind, shape, type or vocabulary than asked for.
    UnsupportedVersionError
        The chunk was written by a newer version of the codec.
    """
    if kind == "flat":
        elements = int(np.prod(shape, dtype=np.int64))
        array = decode_slice(
            data, kind, shape=(elements,), dtype=dtype, start=0, stop=elements, verify=verify,
            use_reference=use_reference,
        )  # fmt: skip
        return array.reshape(shape)
    return decode_slice(
        data, kind, shape=shape, dtype=dtype, start=0, stop=shape[0], vocab_size=vocab_size, verify=verify,
        use_reference=use_reference,
    )  # fmt: skip


def decode_slice(
    data: Buffer,
    kind: Kind,
    *,
    shape: tuple[int, ...],
    dtype: DTypeLike,
    start: int,
    stop: int,
    vocab_size: int = 0,
    verify: bool = True,
    out: NDArray[Any] | None = None,
    use_reference: bool = False,
) -> NDArray[Any]:
    """Decode entries ``start:stop`` of the first axis of a chunk (of a one-dimensional one, for ``flat``).

    Only the rows asked for are decoded, into ``out`` if it is given: contiguous, of the result's shape and type.
    Errors as `decode`.
    """
    dtype = np.dtype(dtype)
    if not 0 <= start <= stop <= shape[0]:
        raise InvalidArgumentError(f"rows {start}:{stop} are not within the {shape[0]} of the chunk")
    if out is None:
        out = np.empty((stop - start, *shape[1:]), dtype)
    elif not (out.shape == (stop - start, *shape[1:]) and out.dtype == dtype and out.flags.c_contiguous):
        raise InvalidArgumentError(
            f"out is contiguous, of shape {(stop - start, *shape[1:])} and type {dtype}; "
            f"found shape {out.shape} and type {out.dtype}"
        )
    view = memoryview(data).cast("B").toreadonly()
    slots = 0 if kind == "flat" else shape[1]
    decoder = ChunkDecoder(kind, dtype, slots, vocab_size)
    if use_reference:
        decoder.decode_carefully(view, shape[0], start, out, verify=verify, use_reference=True)
    else:
        decoder.decode_into(view, shape[0], start, out, verify=verify)
    return out


class ChunkDecoder:
    """Decodes chunks of one array into arrays of the caller's, who answers for their shape and type.

    Parameters
    ----------
    kind, dtype
        Of the array.
    slots
        Entries a row has room for; 0 for ``flat``, whose rows here are single elements.
    vocab_size
        For ``ids``.
    """

    def __init__(self, kind: Kind, dtype: DTypeLike, slots: int, vocab_size: int) -> None:
        self._kind: Kind = kind
        self._slots = slots
        self._bound = vocab_size if kind == "ids" else 0
        self._code = _dtype_code(kind, np.dtype(dtype))
        self._bits: np.dtype[Any] = np.dtype(BITS_DTYPE[self._code])
        self._fast = fast_chunk.RowDecoder(_KINDS[kind], self._code, slots, self._bound)

    def decode_into(self, data: memoryview, rows: int, start: int, out: NDArray[Any], *, verify: bool) -> None:
        """Decode rows from ``start`` on, as many as ``out`` has, out of the ``rows`` of a chunk. Errors as `decode`."""
        array = np.frombuffer(data, np.uint8)
        if not (verify and _checksum_differs(array)) and self._fast(array, rows, start, out.view(self._bits)):
            return
        self.decode_carefully(array.data, rows, start, out, verify=verify)

    def decode_carefully(
        self, view: memoryview, rows: int, start: int, out: NDArray[Any], *, verify: bool, use_reference: bool = False
    ) -> None:
        """Do the same step by step, so that what is wrong with a chunk can be named."""
        header = self._checked_header(view, rows, verify=verify)
        group = layout.FLAT_GROUP if self._kind == "flat" else 1
        stop = start + len(out)
        first, last = start // group, -(-stop // group)
        if use_reference:
            bits = reference.decode_payload(header, view, first, last)
        else:
            bits = fast_decode.decode_rows(header, np.frombuffer(view, np.uint8), first, last)
        if self._kind == "flat":
            bits = bits.reshape(-1)[start - first * group : stop - first * group]
        out[...] = bits.view(NATIVE_DTYPE[self._code])

    def cut(self, data: memoryview, rows: int, start: int, stop: int, *, verify: bool) -> BitRows:
        """Return rows ``start:stop`` (groups of 256, for ``flat``) of the ``rows`` of a chunk, still coded.

        Errors as `decode`, but for those that only decoding a row finds.
        """
        header = self._checked_header(data, rows, verify=verify)
        return BitRows.cut(header, np.frombuffer(data, np.uint8), start, stop)

    @property
    def format(self) -> RowFormat:
        """What the rows hold that `cut` returns."""
        slots = layout.FLAT_GROUP if self._kind == "flat" else self._slots
        return RowFormat(_KINDS[self._kind], self._code, slots, self._bound)

    def _checked_header(self, view: memoryview, rows: int, *, verify: bool) -> ChunkHeader:
        header = read_header(view, verify=verify)
        group = layout.FLAT_GROUP if self._kind == "flat" else 1
        slots = layout.FLAT_GROUP if self._kind == "flat" else self._slots
        if self._kind == "flat" and header.entries != rows:
            raise CorruptDataError(f"the chunk holds {header.entries} elements, expected {rows}")
        expected = (_KINDS[self._kind], self._code, -(-rows // group), slots, self._bound)
        found = (header.kind, header.dtype, header.rows, header.slots, header.bound)
        if found != expected:
            raise CorruptDataError(f"the chunk has (kind, type, rows, slots, vocabulary) {found}, expected {expected}")
        return header


def _checksum_differs(array: NDArray[np.uint8]) -> bool:
    return len(array) <= layout.CRC_BYTES or google_crc32c.value(array[: -layout.CRC_BYTES]) != int.from_bytes(
        array[-layout.CRC_BYTES :].data, "little"
    )


def _dtype_code(kind: Kind, dtype: np.dtype[Any]) -> int:
    try:
        return _CODES[kind][dtype]
    except KeyError:
        allowed = ", ".join(str(known) for known in _CODES.get(kind, {}))
        raise InvalidArgumentError(f"kind {kind!r} holds arrays of type {allowed or 'none'}, found {dtype}") from None


def block_log2_for(kind: Kind, entries: int, rows: int) -> int:
    """Return the logarithm of how many entries share a parameter.

    Few where neighbours differ much (ids of short rows), many elsewhere.
    """
    mean = entries / rows if rows else 0
    if kind == "ids":
        return 4 if mean <= 256 else 5 if mean <= 1024 else 6
    return 5 if kind == "values" and mean <= 64 else 6


def assemble_chunk(
    kind: Kind,
    dtype: int,
    block_log2: int,
    base: int,
    shape: tuple[int, ...],
    vocab_size: int,
    shifts: NDArray[np.int64],
    counts: NDArray[np.int64],
    lengths: NDArray[np.int64],
    bases: NDArray[np.uint32],
    payload: memoryview,
) -> bytes:
    """Put header, row table and checksum around a payload."""
    entries = int(counts.sum())
    words = len(payload) // 4
    if shape[0] > layout.MAX_CHUNK_ROWS or words > layout.MAX_PAYLOAD_WORDS:
        raise InvalidArgumentError(
            f"a chunk has at most {layout.MAX_CHUNK_ROWS} rows and at most {layout.MAX_PAYLOAD_WORDS} words, "
            f"found {shape[0]} and {words}: use fewer rows per chunk"
        )
    if kind == "flat":
        counts = np.full(len(counts), layout.FLAT_GROUP, np.int64)
    count_column, packed_counts = fast_encode.pack_column(counts)
    length_column, packed_lengths = fast_encode.pack_column(lengths)
    base_column, packed_bases = (Column(0, 0), memoryview(b"")) if kind == "ids" else fast_encode.pack_column(bases)
    shift_column, packed_shifts = fast_encode.pack_column(shifts)
    if kind == "flat":
        count_column = Column(layout.FLAT_GROUP, 0)
    header = ChunkHeader(
        kind=_KINDS[kind],
        dtype=dtype,
        block_log2=block_log2,
        parameter_base=base,
        rows=shape[0],
        slots=shape[1],
        bound=vocab_size if kind == "ids" else 0,
        shift=shift_column.minimum,
        counts=count_column,
        lengths=length_column,
        bases=base_column,
        payload_words=len(payload) // 4,
        entries=entries,
        shift_width=shift_column.width,
    )
    return finish_chunk([header.pack(), packed_counts, packed_lengths, packed_bases, packed_shifts, payload])
