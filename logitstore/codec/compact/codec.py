"""The ``compact`` codec: ids and values to chunks and back, with a codebook.

A row's ids are put into the order of its class first (`IdCodec.arrange`); values, and whatever else belongs to ids,
have to follow them. After that every array is coded and decoded by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from logitstore import layout
from logitstore.codec import fast_encode as exact_encode
from logitstore.codec.compact import reference
from logitstore.codec.compact.arranging import arrange, count_used, rank, take
from logitstore.codec.compact.chunk import build_chunk, group_log2_for, read_header
from logitstore.codec.compact.classes import ClassScores
from logitstore.codec.compact.codebook import Codebook, IdBook, ValueBook
from logitstore.codec.compact.fast_decode_ids import IdDecoder
from logitstore.codec.compact.fast_decode_values import ValueDecoder
from logitstore.codec.compact.fast_encode_ids import IdEncoder
from logitstore.codec.compact.fast_encode_values import ValueEncoder
from logitstore.codec.compact.groups import group_table
from logitstore.codec.compact.quantise import Quantiser
from logitstore.codec.group_rows import GroupRows
from logitstore.codec.transform import BITS_DTYPE, NATIVE_DTYPE, UNUSED, bits_from_keys, keys_from_bits
from logitstore.errors import CorruptDataError, InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from logitstore.codec.compact.chunk import CompactHeader

__all__ = ["Arrangement", "IdCodec", "ValueCodec"]


@dataclass(frozen=True)
class Arrangement:
    """Rows in the order of their classes.

    Attributes
    ----------
    ranks
        ``(R, K)`` uint16 or uint32: ranks of the ids, in the order that they came in; 0 in unused slots, which come
        last.
    counts
        ``(R,)`` int64: entries of each row.
    sources
        ``(R, K)`` uint16 or uint32: the slot of the input that each slot comes from; see `take`.
    classes
        ``(R,)`` int64.
    hits
        ``(R,)`` int64: entries that are in the list of the row's class; they come first.
    masks
        ``(R, P)`` uint64: a bit for each place of that list, set where its id is in the row; anything behind the list.
    id_of
        ``(V,)`` uint32: the id of each rank.
    """

    ranks: NDArray[np.unsignedinteger]
    counts: NDArray[np.int64]
    sources: NDArray[np.unsignedinteger]
    classes: NDArray[np.int64]
    hits: NDArray[np.int64]
    masks: NDArray[np.uint64]
    id_of: NDArray[np.uint32]

    @cached_property
    def ids(self) -> NDArray[np.uint32]:
        """``(R, K)`` uint32, unused slots last."""
        used = np.arange(self.ranks.shape[1]) < self.counts[:, None]
        return np.where(used, self.id_of[self.take(self.ranks)], np.uint32(layout.UNUSED_ID))

    @property
    def order(self) -> NDArray[np.int64]:
        """``(R, K)``: ``sources`` as NumPy wants them: ``np.take_along_axis(values, order, 1)``."""
        return self.sources.astype(np.int64)

    def take(self, array: NDArray[Any]) -> NDArray[Any]:
        """Return ``(R, K)`` values, or whatever else belongs to the ids, in the order of these rows.

        As ``np.take_along_axis(array, order, 1)``, and several times as fast.

        Raises
        ------
        InvalidArgumentError
            The array has another shape.
        """
        if array.shape != self.sources.shape:
            raise InvalidArgumentError(f"the array belongs to rows of shape {self.sources.shape}, found {array.shape}")
        return take(array, self.sources)

    def __getitem__(self, rows: slice) -> Arrangement:
        """Return some of the rows."""
        return Arrangement(
            self.ranks[rows], self.counts[rows], self.sources[rows], self.classes[rows], self.hits[rows],
            self.masks[rows], self.id_of,
        )  # fmt: skip


class _Codec:
    """What both kinds share: decoding of a checked chunk, and cutting rows out of it for who decodes them elsewhere.

    Attributes
    ----------
    decoder
        Decodes groups on the CPU; has what a decoder needs of the codebook.
    """

    decoder: IdDecoder | ValueDecoder
    _book: Codebook
    _slots: int

    def decode(self, data: bytes, rows: int, *, verify: bool = True, use_reference: bool = False) -> NDArray[Any]:
        """Decode all ``rows`` rows of a chunk; ``(rows, slots)`` of the array's type.

        Raises
        ------
        CorruptDataError
            The bytes break a rule, hold something else than expected, or were coded with another codebook.
        UnsupportedVersionError
            They were written by a newer version of the codec.
        """
        out = np.empty((rows, self._slots), NATIVE_DTYPE[self._book.dtype])
        self.decode_into(memoryview(data), rows, 0, out, verify=verify, use_reference=use_reference)
        return out

    def decode_into(
        self, data: memoryview, rows: int, start: int, out: NDArray[Any], *, verify: bool, use_reference: bool = False
    ) -> None:
        """Decode rows from ``start`` on, as many as ``out`` has, out of the ``rows`` of a chunk. Errors as `decode`."""
        view, header = self._checked(data, rows, start, start + len(out), verify=verify)
        # Kernels go by addresses.
        target = np.ascontiguousarray(out)
        bits = target.view(BITS_DTYPE[self._book.dtype])
        if use_reference:
            self._decode_slowly(header, view, start, bits)
        else:
            self.decoder(header, np.frombuffer(view, np.uint8), start, bits)
        if target is not out:
            out[...] = target

    def cut(self, data: memoryview, rows: int, start: int, stop: int, *, verify: bool) -> GroupRows:
        """Return rows ``start:stop`` of the ``rows`` of a chunk, still coded.

        Errors as `decode`, but for those that only decoding a row finds.
        """
        view, header = self._checked(data, rows, start, stop, verify=verify)
        whole = np.frombuffer(view, np.uint8)
        counts, starts = group_table(header, whole)
        return GroupRows.cut(whole, starts, counts, header.group_log2, start, stop, header.digest)

    def _checked(
        self, data: memoryview, rows: int, start: int, stop: int, *, verify: bool
    ) -> tuple[memoryview, CompactHeader]:
        view = memoryview(data).cast("B").toreadonly()
        header = read_header(view, verify=verify)
        bound = self._book.vocab_size if isinstance(self._book, IdBook) else 0
        expected = (self._book.kind, self._book.dtype, rows, self._slots, bound)
        found = (header.kind, header.dtype, header.rows, header.slots, header.bound)
        if found != expected:
            raise CorruptDataError(f"the chunk has (kind, type, rows, slots, vocabulary) {found}, expected {expected}")
        if header.digest != self._book.digest:
            raise CorruptDataError(
                f"the chunk was coded with codebook {header.digest.hex()}, this one is {self._book.digest.hex()}: "
                "load the codebook of the store that the chunk is from"
            )
        if not 0 <= start <= stop <= rows:
            raise InvalidArgumentError(f"rows {start}:{stop} are not within the {rows} of the chunk")
        return view, header

    def _decode_slowly(self, header: CompactHeader, view: memoryview, start: int, bits: NDArray[Any]) -> None:
        book = self._book
        bits[...] = UNUSED[book.dtype]
        decoded = reference.decode_payload(book, header, view, start, start + len(bits))
        for target, row in zip(bits, decoded, strict=True):
            numbers = np.array(row, np.uint32)
            is_ids = book.kind == layout.KIND_IDS
            target[: len(row)] = numbers if is_ids else bits_from_keys(numbers, book.dtype, 0)

    def _chunk(
        self, shape: tuple[int, int], group_log2: int, counts: NDArray[np.int64], lengths: NDArray[np.int64],
        words: NDArray[np.uint16],
    ) -> bytes:  # fmt: skip
        return build_chunk(
            self._book, shape, group_log2, exact_encode.pack_column(counts), exact_encode.pack_column(lengths), words,
            int(counts.sum()),
        )  # fmt: skip


class IdCodec(_Codec):
    """Codes rows of ids.

    Parameters
    ----------
    book
        Its codebook.
    slots
        Entries a row has room for.

    Examples
    --------
    >>> from logitstore.codec.compact import train_ids
    >>> ids = np.array([[2, 3, 9], [9, 2, 0xFFFFFFFF]], np.uint32)
    >>> codec = IdCodec(train_ids(ids, vocab_size=10), slots=3)
    >>> chunk = codec.encode(codec.arrange(ids))
    >>> [sorted(row) for row in codec.decode(chunk, rows=2).tolist()]
    [[2, 3, 9], [2, 9, 4294967295]]
    """

    def __init__(self, book: IdBook, slots: int) -> None:
        self._book: IdBook = book
        self._slots = slots
        self.decoder: IdDecoder = IdDecoder(book)
        self._encoder: IdEncoder | None = None
        self._scores: ClassScores | None = None

    def arrange(self, ids: NDArray[np.uint32]) -> Arrangement:
        """Find each row's class and put its ids into the order of that class.

        The same set of ids gives the same arrangement, in whatever order they come.

        Parameters
        ----------
        ids
            ``(R, K)`` uint32, unused slots last and ``0xFFFFFFFF``.

        Raises
        ------
        InvalidArgumentError
            A row has an id twice or one that is not below the vocabulary size.
        """
        if ids.dtype != np.uint32 or ids.ndim != 2 or ids.shape[1] != self._slots:
            raise InvalidArgumentError(f"ids are uint32 (rows, {self._slots}), found {ids.dtype} {ids.shape}")
        ids = np.ascontiguousarray(ids)
        counts = count_used(ids, layout.UNUSED_ID)
        if self._scores is None:
            self._scores = ClassScores.of(self._book, self._slots)
        bad, ranks, picked, starts = rank(self._book, ids, counts, self._scores)
        if bad >= 0:
            raise InvalidArgumentError(
                f"ids are below {self._book.vocab_size}, unused slots last; row {bad} of the chunk is "
                f"{ids[bad].tolist()[:8]}…"
            )
        classes = self._scores.choose_of(picked, starts)
        bad, hits, masks, sources = arrange(self._book, ranks, counts, classes)
        if bad >= 0:
            raise InvalidArgumentError(f"row {bad} of the chunk has an id twice")
        return Arrangement(ranks, counts, sources, classes, hits, masks, self._book.order)

    def encode(self, rows: Arrangement | NDArray[np.uint32], *, use_reference: bool = False) -> bytes:
        """Encode a chunk.

        Parameters
        ----------
        rows
            From `arrange`, or ids that are in that order already.
        use_reference
            Use the plain implementation. Same bytes.

        Raises
        ------
        InvalidArgumentError
            Ids are not in the order of their class, or not ids of this vocabulary.
        """
        arranged = rows if isinstance(rows, Arrangement) else self.arrange(rows)
        if not isinstance(rows, Arrangement) and not np.array_equal(arranged.ids, rows):
            row = int((arranged.ids != rows).any(axis=1).argmax())
            raise InvalidArgumentError(
                f"rows of the compact codec are in the order of their class, row {row} of the chunk is not: "
                "put ids, values and counts into the order that IdCodec.arrange gives"
            )
        counts = arranged.counts
        group_log2 = group_log2_for(int(counts.sum()), len(counts))
        if use_reference:
            numbers = [
                reference.encode_ids(self._book, group, row[:n].tolist())
                for row, n, group in zip(arranged.ids, counts, arranged.classes.tolist(), strict=True)
            ]
            lengths, words = _groups(numbers, group_log2)
        else:
            if self._encoder is None:
                self._encoder = IdEncoder(self._book)
            bad, lengths, words = self._encoder(arranged, group_log2)
            if bad >= 0:
                raise InvalidArgumentError(f"the codebook has no code for row {bad} of the chunk")
        return self._chunk((len(counts), self._slots), group_log2, counts, lengths, words)


class ValueCodec(_Codec):
    """Codes rows of values that are in the order of their ids.

    Parameters
    ----------
    book
        Its codebook.
    slots
        Entries a row has room for.
    """

    def __init__(self, book: ValueBook, slots: int) -> None:
        self._book: ValueBook = book
        self._slots = slots
        self.decoder: ValueDecoder = ValueDecoder(book, slots)
        self._encoder: ValueEncoder | None = None
        self._quantiser = Quantiser.of(book)

    def encode(self, values: NDArray[Any], *, use_reference: bool = False) -> bytes:
        """Encode a chunk: ``(R, K)`` float16 or uint8; a trailing run of -inf or 0 counts as unused.

        Raises
        ------
        InvalidArgumentError
            The array is of another type or shape than the codebook's.
        """
        dtype = NATIVE_DTYPE[self._book.dtype]
        if values.dtype != dtype or values.ndim != 2 or values.shape[1] != self._slots:
            raise InvalidArgumentError(f"values are {dtype} (rows, {self._slots}), found {values.dtype} {values.shape}")
        bits = np.ascontiguousarray(values).view(BITS_DTYPE[self._book.dtype])
        counts = count_used(bits, UNUSED[self._book.dtype])
        levels, lowest, kept = self._quantiser(bits, counts)
        group_log2 = group_log2_for(int(counts.sum()), len(values))
        if use_reference:
            keys = keys_from_bits(bits, self._book.dtype, 0)
            numbers = [
                reference.encode_values(self._book, None if keep else row[:n].tolist(), key[:n].tolist())
                for row, key, n, keep in zip(levels, keys, counts, kept, strict=True)
            ]
            lengths, words = _groups(numbers, group_log2)
        else:
            if self._encoder is None:
                self._encoder = ValueEncoder(self._book, self._slots)
            bad, lengths, words = self._encoder(bits, levels, lowest, counts, kept, group_log2)
            if bad >= 0:
                raise InvalidArgumentError(f"the codebook has no code for row {bad} of the chunk")
        return self._chunk((len(values), self._slots), group_log2, counts, lengths, words)


def _groups(rows: Sequence[Sequence[Any]], group_log2: int) -> tuple[NDArray[np.int64], NDArray[np.uint16]]:
    lengths, words = [], []
    for first in range(0, len(rows), 1 << group_log2):
        numbers = [number for row in rows[first : first + (1 << group_log2)] for number in row]
        if None in numbers:
            raise InvalidArgumentError("the codebook has no code for a row of the chunk")
        group = reference.encode_group([p for p, _ in numbers], [r for _, r in numbers if r[1]])
        lengths.append(len(group))
        words += group
    return np.array(lengths, np.int64), np.array(words, np.uint16)
