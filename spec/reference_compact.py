"""Read codebooks and chunks of the compact codec with nothing but Python's standard library, as COMPACT.md says.

Slow and plain on purpose: a second opinion on what the bytes mean. The broken rule of section 7 is in the error.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import struct
from dataclasses import dataclass

from reference_chunk import FormatError, bits_at, crc32c, decode_chunk, require

# --- section 2: symbols --------------------------------------------------------------------------------------------

TOTAL = 1024
ESCAPE = 32


@dataclass(frozen=True)
class Code:
    """One code: widths of its symbols, the table of each context, and the tables' frequencies."""

    widths: list[int]
    contexts: list[int]
    tables: list[list[int]]

    def raw_bits(self, symbol: int) -> int:
        """Raw bits behind a symbol."""
        return self.widths[symbol] % ESCAPE

    def base(self, symbol: int) -> int:
        """First number that a symbol stands for."""
        return 0 if self.widths[symbol] >= ESCAPE else sum(1 << self.raw_bits(s) for s in range(symbol))


class Group:
    """The words of one group, read from both ends."""

    def __init__(self, words: list[int]) -> None:
        self._words = words
        self._stream = sum(word << 16 * i for i, word in enumerate(words))
        self._state = words[0] | words[1] << 16
        self._next = 2
        self._used = 0

    def raw(self, width: int) -> int:
        """Return the next ``width`` raw bits."""
        self._used += width
        position = 16 * len(self._words) - self._used
        require(position >= 0, "K10", "a group needs more raw bits than it has")
        return bits_at(self._stream, position, width)

    def number(self, code: Code, context: int) -> int:
        """Return the next number."""
        frequencies = code.tables[code.contexts[context]]
        slot = self._state % TOTAL
        symbol, start = 0, 0
        while slot >= start + frequencies[symbol]:
            start += frequencies[symbol]
            symbol += 1
        self._state = frequencies[symbol] * (self._state // TOTAL) + slot - start
        if self._state < 65536:
            require(self._next < len(self._words), "K10", "a group needs more words than it has")
            self._state = 65536 * self._state + self._words[self._next]
            self._next += 1
        return code.base(symbol) + self.raw(code.raw_bits(symbol))

    def finish(self) -> None:
        """Check the group's end."""
        words = self._next + math.ceil(self._used / 16)
        require(self._state == 65536 and words == len(self._words), "K10", "a group does not end where its words do")


# --- section 3: codebook -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class IdBook:
    """A codebook of ids; ``lists`` has each class's list of ids, ``nibbles`` the contexts of its nibbles."""

    digest: bytes
    size: int
    """Vocabulary size."""
    order: list[int]
    lists: list[list[int]]
    nibbles: list[list[int]]
    classes: Code
    misses: Code
    gaps: Code
    masks: Code


@dataclass(frozen=True)
class ValueBook:
    """A codebook of values."""

    digest: bytes
    size: int
    """Bits of a value."""
    levels: list[int]
    bounds: list[int]
    bases: Code
    distances: Code


class Arrays:
    """The arrays of a codebook, in order."""

    def __init__(self, sizes: list[int], numbers: list[int]) -> None:
        self._sizes = sizes
        self._numbers = numbers

    def take(self, least: int, most: int) -> list[int]:
        """Return the next array, which has between ``least`` and ``most`` numbers."""
        require(bool(self._sizes), "K13", "too few arrays")
        size = self._sizes.pop(0)
        require(least <= size <= most, "K13", f"an array of {size} numbers, expected {least} to {most}")
        array, self._numbers = self._numbers[:size], self._numbers[size:]
        return array

    def code(self, contexts: int) -> Code:
        """Return the next code."""
        widths = self.take(1, 256)
        tables = self.take(contexts, contexts)
        flat = self.take(1, 65536)
        count = len(widths)
        require(len(flat) % count == 0 and len(flat) // count <= 256, "K13", "frequencies are not tables")
        code = Code(widths, tables, [flat[i : i + count] for i in range(0, len(flat), count)])
        require(all(sum(table) == TOTAL for table in code.tables), "K13", "frequencies do not sum to 1,024")
        require(max(tables) < len(code.tables), "K13", "a context without a table")
        require(all(w < ESCAPE for w in widths[:-1]) and widths[-1] < 2 * ESCAPE, "K13", "a symbol's width")
        ends = [code.base(s) + (1 << code.raw_bits(s)) for s in range(count)]
        require(max(ends) <= 1 << 32, "K13", "a symbol stands for numbers above 2^32 - 1")
        return code

    def finish(self) -> None:
        """Check that nothing is left."""
        require(not self._sizes, "K13", "too many arrays")


def runs(gaps: list[int], sizes: list[int], bound: int) -> list[int]:
    """Numbers below ``bound`` from their differences in runs."""
    numbers = []
    for size in sizes:
        last = -1
        for gap in gaps[len(numbers) : len(numbers) + size]:
            last += 1 + gap
            numbers.append(last)
    require(all(number < bound for number in numbers), "K13", f"a number is not below {bound}")
    return numbers


def read_codebook(data: bytes) -> IdBook | ValueBook:
    """Read a codebook file."""
    require(len(data) >= 48, "K1", "fewer than 48 bytes", "truncated")
    require(data[:8] == b"LGCBOOK1" or data[:7] != b"LGCBOOK", "K3", "a newer version", "unsupported")
    require(data[:8] == b"LGCBOOK1", "K2", "another magic")
    require(crc32c(data[:-4]) == int.from_bytes(data[-4:], "little"), "K6", "the checksum")
    kind, type_, zero, bound, first, second, sections, error, kl = struct.unpack_from("<BBHIIIIdd", data, 8)
    begin = 44 + 4 * sections
    require(sections <= 64 and begin + 4 <= len(data), "K13", "the sizes of the arrays")
    sizes = list(struct.unpack_from(f"<{sections}I", data, 44))
    chunk = data[begin:-4]
    require(sum(sizes) <= (1 << 18) + 64 * len(chunk), "K13", "more numbers than there are bytes for")
    try:
        (numbers,) = decode_chunk(chunk, "flat", "uint32", (sum(sizes),), bound=0)
    except FormatError as error_of_chunk:
        raise FormatError("K13", "corrupt", str(error_of_chunk)) from None
    arrays = Arrays(sizes, numbers)
    require(zero == 0, "K4", "bytes 10 and 11 are zero")
    digest = hashlib.sha256(data).digest()[:16]
    if (kind, type_) == (1, 3):
        book: IdBook | ValueBook = _ids(arrays, digest, bound, first, second)
    else:
        require((kind, type_) in ((2, 2), (2, 1)) and bound == 0, "K4", "kind, type or vocabulary")
        require(error >= 0 and kl >= 0, "K13", "bounds are not negative")
        book = _values(arrays, digest, 16 if type_ == 2 else 8, first, second)
    arrays.finish()
    return book


def _ids(arrays: Arrays, digest: bytes, bound: int, classes: int, contexts: int) -> IdBook:
    require(1 <= bound <= 1 << 26 and 1 <= classes <= 65536 and 1 <= contexts <= 256, "K4", "the header's numbers")
    sizes = arrays.take(0, 64)
    head = runs(arrays.take(sum(sizes), sum(sizes)), sizes, bound)
    require(len(set(head)) == len(head), "K13", "an id is twice in the order")
    order = head + sorted(set(range(bound)) - set(head))
    counts = arrays.take(classes * contexts, classes * contexts)
    require(sum(counts) <= 1 << 24, "K13", "more than 2^26 ids in lists")
    ranks = runs(arrays.take(4 * sum(counts), 4 * sum(counts)), [4 * n for n in counts], bound)
    lists, nibbles, at = [], [], 0
    for c in range(classes):
        of_class = counts[c * contexts : (c + 1) * contexts]
        listed = ranks[at : at + 4 * sum(of_class)]
        at += len(listed)
        require(len(set(listed)) == len(listed), "K13", "an id is twice in a list")
        lists.append([order[rank] for rank in listed])
        nibbles.append([context for context, n in enumerate(of_class) for _ in range(n)])
    codes = [arrays.code(x) for x in (1, 1, 48, contexts)]
    require(codes[3].widths == [0] * 16, "K13", "nibbles are 16 symbols without raw bits")
    return IdBook(digest, bound, order, lists, nibbles, *codes)


def _values(arrays: Arrays, digest: bytes, bits: int, levels: int, bounds: int) -> ValueBook:
    require(1 <= levels <= 1 << bits and bounds <= 15, "K4", "the header's numbers")
    keys = runs(arrays.take(levels, levels), [levels], 1 << bits)
    edges = arrays.take(bounds, bounds)
    require(all(a < b for a, b in itertools.pairwise(edges)), "K13", "bounds ascend")
    return ValueBook(digest, bits, keys, edges, arrays.code(1), arrays.code(64 * (bounds + 1)))


# --- section 4: chunk ----------------------------------------------------------------------------------------------


def check_compact(data: bytes) -> None:
    """Check what a chunk says of itself: rules K1 to K6."""
    require(len(data) >= 68, "K1", "fewer than 68 bytes", "truncated")
    require(data[:4] == b"LGC1" or data[:3] != b"LGC", "K3", "a newer version", "unsupported")
    require(data[:4] == b"LGC1", "K2", "another magic")
    kind, type_, group_log2, rows, slots, bound = struct.unpack_from("<BBBxIII", data, 4)
    count_width, length_width, words = struct.unpack_from("<BBxxI", data, 44)
    require((kind, type_) in ((1, 3), (2, 2), (2, 1)), "K4", "kind and type")
    require(group_log2 <= 10 and rows <= 1 << 30 and 1 <= slots < 1 << 31, "K4", "group_log2, rows or slots")
    require(1 <= bound <= 1 << 31 if kind == 1 else bound == 0, "K4", "bound")
    groups = math.ceil(rows / (1 << group_log2))
    require(max(count_width, length_width) <= 32, "K4", "the width of a column")
    require(2 * groups <= words <= (1 << 27) - 1, "K4", "payload_words")
    column_words = [math.ceil(rows * count_width / 32), math.ceil(groups * length_width / 32)]
    size = 56 + 4 * sum(column_words) + 2 * words + 12
    require(len(data) >= size, "K5", "fewer bytes than the header says", "truncated")
    require(len(data) == size, "K5", "more bytes than the header says")
    require(crc32c(data[:-4]) == int.from_bytes(data[-4:], "little"), "K6", "the checksum")


def decode_compact(data: bytes, book: IdBook | ValueBook, shape: tuple[int, int]) -> list[list[int]]:
    """Decode a chunk to the bits of its elements, unused slots included."""
    check_compact(data)
    kind, type_, group_log2, rows, slots, bound, digest = struct.unpack_from("<BBBxIII16s", data, 4)
    count_low, length_low, count_width, length_width, words, entries = struct.unpack_from("<IIBBxxII", data, 36)
    groups = math.ceil(rows / (1 << group_log2))
    column_words = [math.ceil(rows * count_width / 32), math.ceil(groups * length_width / 32)]
    types = (1, 3, book.size) if isinstance(book, IdBook) else (2, 2 if book.size == 16 else 1, 0)
    require((kind, type_, bound) == types and (rows, slots) == shape, "K7", "not what was expected")
    require(digest == book.digest, "K8", f"coded with {digest.hex()}, the codebook is {book.digest.hex()}")
    counts = _column(data, 56, count_low, count_width, rows)
    lengths = _column(data, 56 + 4 * column_words[0], length_low, length_width, groups)
    require(sum(counts) == entries and max(counts, default=0) <= slots, "K9", "counts")
    require(sum(lengths) == words and min(lengths, default=2) >= 2, "K9", "lengths")
    payload = struct.unpack_from(f"<{words}H", data, 56 + 4 * sum(column_words))
    decoded: list[list[int]] = []
    at = 0
    for number, length in enumerate(lengths):
        group = Group(list(payload[at : at + length]))
        at += length
        for count in counts[number << group_log2 : (number + 1) << group_log2]:
            if isinstance(book, IdBook):
                row = _row_of_ids(group, book, count) + [0xFFFFFFFF] * (slots - count)
            else:
                unused = 0xFC00 if book.size == 16 else 0
                row = [_bits(key, book.size) for key in _row_of_keys(group, book, count)] + [unused] * (slots - count)
            decoded.append(row)
        group.finish()
    return decoded


def _column(data: bytes, offset: int, low: int, width: int, rows: int) -> list[int]:
    stream = int.from_bytes(data[offset : offset + 4 * math.ceil(rows * width / 32)], "little")
    return [low + bits_at(stream, i * width, width) for i in range(rows)]


# --- sections 5 and 6: rows ----------------------------------------------------------------------------------------


def _row_of_ids(group: Group, book: IdBook, count: int) -> list[int]:
    c = group.number(book.classes, 0)
    misses = group.number(book.misses, 0)
    require(c < len(book.lists) and misses <= count, "K11", "class or misses")
    ids: list[int] = []
    nibble = 0
    while len(ids) < count - misses:
        require(nibble < len(book.nibbles[c]), "K11", "the list ends too early")
        mask = group.number(book.masks, book.nibbles[c][nibble])
        ids += [book.lists[c][4 * nibble + i] for i in range(4) if mask >> i & 1]
        nibble += 1
    require(len(ids) == count - misses, "K11", "too many ids of the list")
    rank = -1
    for left in range(misses, 0, -1):
        context = 6 * (min(left.bit_length(), 8) - 1) + min((rank + 1).bit_length() // 3, 5)
        rank += 1 + group.number(book.gaps, context)
        require(rank < book.size, "K11", "rank")
        ids.append(book.order[rank])
    return ids


def _row_of_keys(group: Group, book: ValueBook, count: int) -> list[int]:
    if count == 0:
        return []
    base = group.number(book.bases, 0) - 1
    if base < 0:
        return [group.raw(book.size) for _ in range(count)]
    part = 64 * sum(bound <= base for bound in book.bounds)
    keys = []
    for j in range(count):
        n, h = j + 1, (j + 1).bit_length() - 1
        context = 2 * h + (n >> (h - 1) & 1 if h else 0)
        level = base + group.number(book.distances, part + context)
        require(level < len(book.levels), "K12", "level")
        keys.append(book.levels[level])
    return keys


def _bits(key: int, bits: int) -> int:
    if bits == 8:
        return key
    return key - 0x8000 if key >= 0x8000 else 0xFFFF - key
