"""The ``compact`` codec written the way ``spec/COMPACT.md`` reads: plain Python, one symbol after the other.

Slow. It exists so that the fast implementation has something to equal: the same bytes when encoding, the same arrays
when decoding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from logitstore import layout
from logitstore.codec.compact.codebook import COLUMN_CONTEXTS, IdBook, ValueBook, column_context, gap_context
from logitstore.codec.reference import unpack_column
from logitstore.errors import CorruptDataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from logitstore.codec.compact.chunk import CompactHeader
    from logitstore.codec.compact.codebook import Codebook
    from logitstore.codec.compact.symbols import SymbolCode

__all__ = ["choose_class", "decode_payload", "encode_group", "encode_ids", "encode_values"]

_TOTAL = 1 << layout.TABLE_LOG2


class GroupReader:
    """One group's coder, read from both ends: symbols from its beginning, raw bits from its end."""

    def __init__(self, words: Sequence[int]) -> None:
        self._words = words
        self._state = words[0] | words[1] << 16
        self._next = 2
        self._stream = sum(word << 16 * i for i, word in enumerate(words))
        self._raw = 0

    def raw(self, width: int) -> int:
        """Return a number of ``width`` bits."""
        self._raw += width
        shift = 16 * len(self._words) - self._raw
        if shift < 0:
            raise CorruptDataError("a group of rows needs more bits than it has")
        return self._stream >> shift & ((1 << width) - 1)

    def number(self, code: SymbolCode, context: int) -> int:
        """Return a number: a symbol, and its raw bits."""
        table = int(code.contexts[context])
        slot = self._state % _TOTAL
        symbol = int(code.slot_symbols[table, slot])
        frequency, start = int(code.frequencies[table, symbol]), int(code.starts[table, symbol])
        self._state = frequency * (self._state // _TOTAL) + slot - start
        if self._state < layout.RANS_LOW:
            if self._next >= len(self._words):
                raise CorruptDataError("a group of rows needs more words than it has")
            self._state = self._state << 16 | self._words[self._next]
            self._next += 1
        return int(code.bases[symbol]) + self.raw(int(code.raw_bits[symbol]))

    def finish(self) -> None:
        """Raise unless the coder is where its writer began, and all words are used."""
        if self._state != layout.RANS_LOW or self._next + -(-self._raw // 16) != len(self._words):
            raise CorruptDataError("a group of rows does not end where its words do")


def decode_payload(book: Codebook, header: CompactHeader, data: memoryview, start: int, stop: int) -> list[list[int]]:
    """Decode the groups that rows ``start:stop`` of a checked chunk lie in; return these rows' ids or keys."""
    offset = layout.COMPACT_HEADER_BYTES
    counts = unpack_column(data[offset:], header.counts, header.rows)
    offset += 4 * header.counts.words(header.rows)
    lengths = unpack_column(data[offset:], header.lengths, header.groups)
    if sum(counts) != header.entries or max(counts, default=0) > header.slots:
        raise CorruptDataError(f"the rows' counts give {sum(counts)} entries, the header says {header.entries}")
    if sum(lengths) != header.payload_words or min(lengths, default=2) < 2:
        raise CorruptDataError(f"the groups' lengths give {sum(lengths)} words for {header.payload_words}")
    payload = data[header.payload_start : header.payload_start + 2 * header.payload_words]
    words = [payload[i] | payload[i + 1] << 8 for i in range(0, len(payload), 2)]
    size = 1 << header.group_log2
    rows: list[list[int]] = []
    for group in range(start // size, -(-stop // size)):
        first = sum(lengths[:group])
        reader = GroupReader(words[first : first + lengths[group]])
        for row in range(group * size, min((group + 1) * size, header.rows)):
            if isinstance(book, IdBook):
                decoded = decode_ids(reader, book, counts[row])
            else:
                decoded = decode_values(reader, book, counts[row])
            if start <= row < stop:
                rows.append(decoded)
        reader.finish()
    return rows


def decode_ids(reader: GroupReader, book: IdBook, count: int) -> list[int]:
    """Decode a row's ids: those of its class's list, then those that are not in it."""
    group = reader.number(book.class_code, 0)
    misses = reader.number(book.miss_code, 0)
    if group >= book.classes or misses > count:
        raise CorruptDataError(f"a row has class {group} of {book.classes} and {misses} misses of {count} entries")
    ids: list[int] = []
    first, end = int(book.first_nibble[group]), int(book.first_nibble[group + 1])
    contexts = [context for context, n in enumerate(book.nibbles[group].tolist()) for _ in range(n)]
    nibble = first
    while len(ids) < count - misses:
        if nibble == end:
            raise CorruptDataError("a row has more ids than its class")
        bits = reader.number(book.nibble_code, contexts[nibble - first])
        ids += [int(book.listed_ids[layout.NIBBLE * nibble + i]) for i in range(layout.NIBBLE) if bits >> i & 1]
        nibble += 1
    if len(ids) > count - misses:
        raise CorruptDataError("a row has more ids than its count")
    previous = 0
    for left in range(misses, 0, -1):
        rank = previous + reader.number(book.gap_code, gap_context(left, previous))
        if rank >= book.vocab_size:
            raise CorruptDataError(f"a row has rank {rank} in a vocabulary of {book.vocab_size}")
        ids.append(int(book.order[rank]))
        previous = rank + 1
    return ids


def decode_values(reader: GroupReader, book: ValueBook, count: int) -> list[int]:
    """Decode a row's keys."""
    bits = 16 if book.dtype == layout.DTYPE_FLOAT16 else 8
    if not count:
        return []
    base = reader.number(book.base_code, 0) - 1
    if base < 0:
        return [reader.raw(bits) for _ in range(count)]
    part = sum(base >= bound for bound in book.bounds.tolist()) * COLUMN_CONTEXTS
    keys = []
    for column in range(count):
        level = base + reader.number(book.delta_code, part + column_context(column))
        if level >= len(book.levels):
            raise CorruptDataError(f"a row has level {level} of {len(book.levels)}")
        keys.append(int(book.levels[level]))
    return keys


def encode_group(parts: Sequence[tuple[int, int]], raws: Sequence[tuple[int, int]]) -> list[int]:
    """Code one group.

    Parameters
    ----------
    parts
        Frequency and start of each symbol, in the order a reader meets them.
    raws
        Number and width of the raw bits, likewise.

    Returns
    -------
    list of int
        The group's 16-bit words.
    """
    state = layout.RANS_LOW
    words: list[int] = []
    for frequency, start in reversed(parts):
        if state >= frequency << 32 - layout.TABLE_LOG2:
            words.append(state & 0xFFFF)
            state >>= 16
        state = (state // frequency) * _TOTAL + state % frequency + start
    words += [state >> 16, state & 0xFFFF]
    words.reverse()
    stream, used = 0, 0
    for number, width in raws:
        stream = stream << width | number
        used += width
    stream <<= -used % 16
    tail = -(-used // 16)
    return words + [stream >> 16 * i & 0xFFFF for i in range(tail)]


def encode_number(code: SymbolCode, context: int, number: int) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """Return the symbol's frequency and start and the raw bits of a number; None where the table cannot code it.

    Of several symbols the first one is taken that the table can code.
    """
    table = int(code.contexts[context])
    for symbol, (base, width) in enumerate(zip(code.bases.tolist(), code.raw_bits.tolist(), strict=True)):
        if base <= number < base + (1 << width) and code.frequencies[table, symbol]:
            part = int(code.frequencies[table, symbol]), int(code.starts[table, symbol])
            return part, (number - base, width)
    return None


def encode_ids(book: IdBook, group: int, row: Sequence[int]) -> list[tuple[tuple[int, int], tuple[int, int]] | None]:
    """Return the numbers of a row of ids, which is in the order of its class, as `encode_number` gives them."""
    first, end = int(book.first_nibble[group]), int(book.first_nibble[group + 1])
    ids = book.listed_ids[layout.NIBBLE * first : layout.NIBBLE * end].tolist()
    contexts = [context for context, n in enumerate(book.nibbles[group].tolist()) for _ in range(n)]
    there = set(row)
    hits = sum(token in there for token in ids)
    numbers = [
        encode_number(book.class_code, 0, group),
        encode_number(book.miss_code, 0, len(row) - hits),
    ]
    left = hits
    for nibble, context in enumerate(contexts):
        if not left:
            break
        bits = [ids[layout.NIBBLE * nibble + i] in there for i in range(layout.NIBBLE)]
        left -= sum(bits)
        numbers.append(encode_number(book.nibble_code, context, sum(bit << i for i, bit in enumerate(bits))))
    previous = 0
    for slot, token in enumerate(row[hits:]):
        rank = int(book.ranks[token])
        context = gap_context(len(row) - hits - slot, previous)
        numbers.append(encode_number(book.gap_code, context, rank - previous))
        previous = rank + 1
    return numbers


def choose_class(
    row: Sequence[int], tables: NDArray[np.int8], constants: NDArray[np.int32], names: NDArray[np.int64],
    coarse: NDArray[np.int8], coarse_constants: NDArray[np.int32], *, tried: int, margin: int,
) -> int:  # fmt: skip
    """Return the class of a row, of those in the groups that score best.

    Parameters
    ----------
    row
        Numbers of its ranks that are scored.
    tables, constants, names
        ``(G, F, L)`` what each adds to the scores of a group's classes, and ``(G, L)`` where these begin, and the
        classes; -1 where a group has fewer than L.
    coarse, coarse_constants
        ``(F, G or more)`` and ``(G or more,)``: the same of groups.
    tried, margin
        No more groups than these are looked into, and none whose score is so much below the best.
    """
    groups = list(range(len(tables)))
    if len(groups) > tried:
        totals = [int(coarse_constants[g]) + sum(int(coarse[number, g]) for number in row) for g in groups]
        near = [g for g in groups if totals[g] >= max(totals) - margin]
        groups = sorted(near, key=lambda g: -totals[g])[:tried]
    scores = {
        int(names[g, lane]): int(constants[g, lane]) + sum(int(tables[g, number, lane]) for number in row)
        for g in groups
        for lane in range(tables.shape[2])
        if names[g, lane] >= 0
    }
    return min(scores, key=lambda name: (-scores[name], name))


def encode_values(
    book: ValueBook, levels: Sequence[int] | None, keys: Sequence[int]
) -> list[tuple[tuple[int, int], tuple[int, int]] | None]:
    """Return the numbers of a row of values; ``levels`` is None where the row is kept as it is."""
    if not keys:
        return []
    if levels is not None:
        base = min(levels)
        part = sum(base >= bound for bound in book.bounds.tolist()) * COLUMN_CONTEXTS
        numbers = [encode_number(book.base_code, 0, base + 1)]
        for column, level in enumerate(levels):
            numbers.append(encode_number(book.delta_code, part + column_context(column), level - base))
        if None not in numbers:
            return numbers
    bits = 16 if book.dtype == layout.DTYPE_FLOAT16 else 8
    return [encode_number(book.base_code, 0, 0), *[((_TOTAL, 0), (key, bits)) for key in keys]]
