"""Rows of ids to ranks, and into the order of their classes. Kernels release the GIL."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from logitstore import layout
from logitstore.codec.compact.instructions import lowest_set_bit, prefetch
from logitstore.codec.intrinsics import address_of, load_byte_at, load_u32_at, store_u32_at, store_u64_at
from logitstore.codec.kernels import kernel

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from logitstore.codec.compact.codebook import IdBook

__all__ = ["arrange", "count_used", "rank", "take"]

_UNUSED = np.uint32(layout.UNUSED_ID)


@kernel
def _count_used(bits: Any, unused: Any, counts: Any) -> None:
    for row in range(len(counts)):
        count = np.int64(bits.shape[1])
        while count > 0 and bits[row, count - 1] == unused:
            count -= 1
        counts[row] = count


def count_used(bits: NDArray[Any], unused: int) -> NDArray[np.int64]:
    """Entries of each row, ``(R,)``: all but a trailing run of unused slots."""
    counts = np.empty(len(bits), np.int64)
    _count_used(bits, bits.dtype.type(unused), counts)
    return counts


@kernel
def _rank(ids: Any, counts: Any, ranks: Any, ranked: Any) -> Any:
    last = np.uint32(len(ranks) - 1)
    for row in range(len(counts)):
        high = np.uint32(0)
        for slot in range(counts[row]):
            token = ids[np.uint64(row), np.uint64(slot)]
            high = max(high, token)
            ranked[np.uint64(row), np.uint64(slot)] = ranks[np.uint64(min(token, last))]
        if high > last:
            return row
        for slot in range(counts[row], ids.shape[1]):
            ranked[row, slot] = _UNUSED
    return -1


def rank(book: IdBook, ids: NDArray[np.uint32], counts: NDArray[np.int64]) -> tuple[int, NDArray[np.uint32]]:
    """Return the first row with an id outside the vocabulary (or -1), and ranks ``(R, K)``, UNUSED_ID behind them."""
    ranked = np.empty(ids.shape, np.uint32)
    return int(_rank(ids, counts, book.short_ranks, ranked)), ranked


@kernel
def _arrange(  # noqa: PLR0912 - one pass over each row
    ranks: Any, counts: Any, classes: Any, first_nibble: Any, listed: Any, seen: Any, slots: Any, hits: Any, masks: Any,
    sources: Any,
) -> Any:  # fmt: skip
    """Put each row into its class's order; return the first row with a rank twice, or -1.

    ``seen`` and ``slots`` are room for a number of each rank: whether it is in the row, and where. ``seen`` is 0.
    """
    width, places, rows = np.uint64(ranks.shape[1]), np.int64(masks.shape[1]), np.int64(len(counts))
    # Addresses, so that rows cost no slices.
    seen_at, slots_at, listed_at = address_of(seen), address_of(slots), address_of(listed)
    for row in range(rows):
        count, at = np.int64(counts[row]), np.uint64(row)
        ranks_at = address_of(ranks) + (at * width << np.uint64(2))
        masks_at = address_of(masks) + np.uint64(8 * row * places)
        for slot in range(count):
            token = load_u32_at(ranks_at, np.uint64(4 * slot))
            seen[token] = 1
            store_u32_at(slots_at, token << np.uint64(2), np.uint64(slot))
        if row + 1 < rows:
            following = np.uint64(4 * first_nibble[classes[row + 1]] * listed.itemsize)
            past_following = np.uint64(4 * first_nibble[classes[row + 1] + 1] * listed.itemsize)
            while following < past_following:
                prefetch(listed_at + following)
                following += np.uint64(64)
        start, past = 4 * first_nibble[classes[row]], 4 * first_nibble[classes[row] + 1]
        filled, place = np.int64(0), np.int64(0)
        while start < past and filled < count:
            found = np.uint64(0)
            for byte in range(8):
                for bit in range(8):
                    token = np.uint64(listed[np.uint64(start + 8 * byte + bit)])
                    found |= load_byte_at(seen_at, token) << np.uint64(8 * byte + bit)
            if past - start < 64:
                found &= (np.uint64(1) << np.uint64(past - start)) - np.uint64(1)
            store_u64_at(masks_at, np.uint64(8 * place), found)
            place += 1
            while found:
                token = np.uint64(listed[np.uint64(start) + lowest_set_bit(found)])
                found &= found - np.uint64(1)
                seen[token] = 0
                sources[at, np.uint64(filled)] = load_u32_at(slots_at, token << np.uint64(2))
                filled += 1
            start += 64
        for empty in range(place, places):
            store_u64_at(masks_at, np.uint64(8 * empty), np.uint64(0))
        hits[row] = filled
        end = filled
        for slot in range(count if filled < count else 0):
            token = np.uint64(ranks[row, slot])
            if seen[token]:
                seen[token] = 0
                to = end
                while to > filled and ranks[row, sources[row, to - 1]] > token:
                    sources[row, to] = sources[row, to - 1]
                    to -= 1
                sources[row, to] = slot
                end += 1
        # A rank that came twice was found once.
        if end < count:
            return row
        for slot in range(count, ranks.shape[1]):
            sources[row, slot] = slot
    return -1


def arrange(
    book: IdBook, ranks: NDArray[np.uint32], counts: NDArray[np.int64], classes: NDArray[np.int64]
) -> tuple[int, NDArray[np.int64], NDArray[np.uint64], NDArray[np.unsignedinteger]]:
    """Put rows into the order of their classes.

    Returns
    -------
    tuple
        The first row that has an id twice (or -1); entries of each row that are in its class's list ``(R,)``; 64 places
        of that list a number, a bit each that is set where the id is in the row ``(R, P)``; and the slot of the input
        that each slot of the output comes from ``(R, K)``.
    """
    hits = np.empty(len(ranks), np.int64)
    sources = np.empty(ranks.shape, np.uint16 if ranks.shape[1] <= 1 << 16 else np.uint32)
    masks = np.empty((len(ranks), max(1, -(-book.longest * layout.NIBBLE // 64))), np.uint64)
    seen, slots = np.zeros(book.vocab_size, np.uint8), np.empty(book.vocab_size, np.uint32)
    bad = _arrange(ranks, counts, classes, book.first_nibble, book.short_listed, seen, slots, hits, masks, sources)
    return int(bad), hits, masks, sources


@kernel
def _take(array: Any, sources: Any, out: Any) -> None:
    for row in range(len(sources)):
        for slot in range(sources.shape[1]):
            out[np.uint64(row), np.uint64(slot)] = array[
                np.uint64(row), np.uint64(sources[np.uint64(row), np.uint64(slot)])
            ]


def take(array: NDArray[Any], sources: NDArray[np.unsignedinteger]) -> NDArray[Any]:
    """Return an array ``(R, K)`` of any type with each row in the order of its ``sources``."""
    array = np.ascontiguousarray(array)
    bits = np.dtype(f"u{array.itemsize}")
    out = np.empty(sources.shape, array.dtype)
    _take(array.view(bits), sources, out.view(bits))
    return out
