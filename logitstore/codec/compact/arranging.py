"""Rows of ids to ranks, and into the order of their classes. Kernels release the GIL."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from logitstore import layout
from logitstore.codec.compact.class_kernels import room_to_pick
from logitstore.codec.compact.instructions import PACKED_PLACES, lowest_set_bit, pack_eight, prefetch
from logitstore.codec.compact.row_sums import ROWS
from logitstore.codec.intrinsics import (
    address_of,
    count_bits,
    load_u16_at,
    load_u64_at,
    store_byte_at,
    store_u16_at,
    store_u64_at,
)
from logitstore.codec.kernels import kernel

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from logitstore.codec.compact.classes import ClassScores
    from logitstore.codec.compact.codebook import IdBook

__all__ = ["arrange", "count_used", "rank", "take"]


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
def _rank(ids: Any, counts: Any, ranks: Any, numbers: Any, most: Any, ranked: Any, starts: Any, picked: Any) -> Any:
    end, none, last = np.uint64(0), numbers[len(numbers) - 1], np.uint32(len(numbers) - 1)
    for row in range(len(counts)):
        at, count, high = np.uint64(row), np.int64(counts[row]), np.uint32(0)
        # A loop of its own, which becomes vector instructions.
        for slot in range(count):
            high = max(high, ids[at, np.uint64(slot)])
        if high >= len(ranks):
            return row
        starts[row] = end
        for slot in range(count):
            rank = ranks[np.uint64(ids[at, np.uint64(slot)])]
            ranked[at, np.uint64(slot)] = rank
            number = numbers[np.uint64(min(np.uint32(rank), last))]
            # Kept in any case, and overwritten by the next one if it is not scored.
            picked[end] = number
            end += np.uint64(number != none)
        end = min(end, np.uint64(starts[row] + most))
        for pad in range(ROWS):
            picked[end + np.uint64(pad)] = none
        end = (end + np.uint64(ROWS - 1)) & ~np.uint64(ROWS - 1)
        for slot in range(count, ids.shape[1]):
            ranked[row, slot] = 0
    starts[len(counts)] = end
    return -1


def rank(
    book: IdBook, ids: NDArray[np.uint32], counts: NDArray[np.int64], scores: ClassScores
) -> tuple[int, NDArray[np.unsignedinteger], NDArray[np.uint16], NDArray[np.int64]]:
    """Find ranks, and pick those that are scored.

    Returns
    -------
    tuple
        The first row with an id outside the vocabulary (or -1); ranks ``(R, K)``, 0 behind them; and what
        `class_kernels.pick` returns.
    """
    ranked = np.empty(ids.shape, book.short_ranks.dtype)
    picked, starts = room_to_pick(ids)
    bad = _rank(ids, counts, book.short_ranks, scores.numbers, scores.most, ranked, starts, picked)
    return int(bad), ranked, picked, starts


@kernel
def _find(listed: Any, first: Any, past: Any, slots_at: Any, places_at: Any, masks_at: Any, sources_at: Any) -> Any:
    """Write which of some listed ranks have a slot, a bit each, and their slots; return where these end.

    A function of its own, since it needs nearly all registers.
    """
    place, past = np.uint64(first), np.uint64(past)
    while place + np.uint64(8) <= past:
        mask = pack_eight(listed, place, slots_at, np.uint64(255), places_at, sources_at)
        store_byte_at(masks_at, np.uint64(0), mask)
        sources_at += np.uint64(2 * count_bits(mask))
        place += np.uint64(8)
        masks_at += np.uint64(1)
    # Lists are of nibbles, and looked at by bytes.
    if place < past:
        mask = pack_eight(listed, place, slots_at, np.uint64(15), places_at, sources_at)
        store_byte_at(masks_at, np.uint64(0), mask)
        sources_at += np.uint64(2 * count_bits(mask))
    return sources_at


@kernel
def _add_others(ranks: Any, sources: Any, filled: Any, slots_at: Any, marks_at: Any) -> Any:
    """Put those slots of a row that are not among its first ``filled`` sources behind them, by rank.

    ``marks`` has a byte for each slot, which is 0 before and after. Returns False where a rank comes twice.
    """
    for found in range(filled):
        store_byte_at(marks_at, np.uint64(sources[found]), np.uint64(1))
    count, end = np.int64(len(ranks)), filled
    for first in range(0, count, 8):
        missing = load_u64_at(marks_at, np.uint64(first)) ^ np.uint64(0x0101010101010101)
        store_u64_at(marks_at, np.uint64(first), np.uint64(0))
        while missing:
            slot = first + (np.int64(lowest_set_bit(missing)) >> 3)
            missing &= missing - np.uint64(1)
            if slot >= count:
                break
            rank = ranks[slot]
            # A rank that comes again later has that slot instead.
            if load_u16_at(slots_at, np.uint64(rank) << np.uint64(1)) != np.uint64(slot + 1):
                return False
            to = end
            while to > filled and ranks[sources[to - 1]] > rank:
                sources[to] = sources[to - 1]
                to -= 1
            sources[to] = slot
            end += 1
    return True


@kernel
def _arrange(
    ranks: Any, counts: Any, classes: Any, first_nibble: Any, listed: Any, slots: Any, marks: Any, packed_places: Any,
    hits: Any, masks: Any, sources: Any,
) -> Any:  # fmt: skip
    """Put each row into its class's order; return the first row with a rank twice, or -1.

    ``slots`` has room for a number of each rank: 1 more than where it is in the row, 0 if it is not. ``marks`` says of
    each slot whether it has been taken. Both begin as 0.
    """
    width, rows = np.uint64(ranks.shape[1]), np.int64(len(counts))
    mask_bytes = np.uint64(8 * masks.shape[1])
    # Addresses, so that rows cost no slices.
    slots_at, lists_at, marks_at, places_at = (
        address_of(slots), address_of(listed), address_of(marks), address_of(packed_places),
    )  # fmt: skip
    for row in range(rows):
        count, at = np.int64(counts[row]), np.uint64(row)
        sources_at = address_of(sources) + (at * width << np.uint64(1))
        masks_at = address_of(masks) + at * mask_bytes
        for slot in range(count):
            rank = np.uint64(ranks[at, np.uint64(slot)])
            store_u16_at(slots_at, rank << np.uint64(1), np.uint64(slot + 1))
        if row + 1 < rows:
            following = np.uint64(4 * first_nibble[classes[row + 1]] * listed.itemsize)
            past_following = np.uint64(4 * first_nibble[classes[row + 1] + 1] * listed.itemsize)
            while following < past_following:
                prefetch(lists_at + following)
                following += np.uint64(64)
        first, past = 4 * first_nibble[classes[row]], 4 * first_nibble[classes[row] + 1]
        if past > first:
            store_u64_at(masks_at, np.uint64((past - first - 1) >> 6 << 3), np.uint64(0))
        target = _find(listed, first, past, slots_at, places_at, masks_at, sources_at)
        filled = np.int64((target - sources_at) >> np.uint64(1))
        hits[row] = filled
        if filled < count and not _add_others(ranks[row, :count], sources[row], filled, slots_at, marks_at):
            return row
        for slot in range(count):
            store_u16_at(slots_at, np.uint64(ranks[at, np.uint64(slot)]) << np.uint64(1), np.uint64(0))
        for slot in range(count, ranks.shape[1]):
            sources[row, slot] = slot
    return -1


@kernel
def _arrange_plainly(
    ranks: Any, counts: Any, classes: Any, first_nibble: Any, listed: Any, slots: Any, hits: Any, masks: Any,
    sources: Any,
) -> Any:  # fmt: skip
    """As `_arrange`, for rows of any length; ``slots`` has a number of each rank, -1 to begin with."""
    for row in range(len(counts)):
        for slot in range(counts[row]):
            if slots[ranks[row, slot]] >= 0:
                return row
            slots[ranks[row, slot]] = slot
        filled, first = 0, 4 * first_nibble[classes[row]]
        for place in range(4 * first_nibble[classes[row] + 1] - first):
            slot = slots[listed[first + place]]
            if slot >= 0:
                masks[row, place >> 6] |= np.uint64(1) << np.uint64(place & 63)
                sources[row, filled] = slot
                slots[listed[first + place]] = -1
                filled += 1
        hits[row] = filled
        others = ranks[row, : counts[row]].copy()
        others.sort()
        for rank in others:
            if slots[rank] >= 0:
                sources[row, filled] = slots[rank]
                slots[rank] = -1
                filled += 1
        for slot in range(counts[row], ranks.shape[1]):
            sources[row, slot] = slot
    return -1


def arrange(
    book: IdBook,
    ranks: NDArray[np.unsignedinteger],
    counts: NDArray[np.int64],
    classes: NDArray[np.int64],
    *,
    use_reference: bool = False,
) -> tuple[int, NDArray[np.int64], NDArray[np.uint64], NDArray[np.unsignedinteger]]:
    """Put rows into the order of their classes.

    Returns
    -------
    tuple
        The first row that has an id twice (or -1); entries of each row that are in its class's list ``(R,)``; 64 places
        of that list a number, a bit each that is set where the id is in the row ``(R, P)``, and anything behind the
        list; and the slot of the input that each slot of the output comes from ``(R, K)``.
    """
    longest, (rows, width) = book.longest * layout.NIBBLE, ranks.shape
    hits, masks = np.empty(rows, np.int64), np.empty((rows, max(1, -(-longest // 64))), np.uint64)
    if use_reference or width >= 1 << 16:
        sources = np.empty(ranks.shape, np.uint16 if width <= 1 << 16 else np.uint32)
        slots = np.full(book.vocab_size, -1, np.int64)
        masks[:] = 0
        bad = _arrange_plainly(ranks, counts, classes, book.first_nibble, book.listed, slots, hits, masks, sources)
        return int(bad), hits, masks, sources
    # Eight numbers are stored at a time.
    sources = np.empty(rows * width + 8, np.uint16)[: rows * width].reshape(rows, width)
    bad = _arrange(
        np.ascontiguousarray(ranks), counts, classes, book.first_nibble, book.short_listed,
        np.zeros(book.vocab_size, np.uint16), np.zeros(width + 8, np.uint8), PACKED_PLACES, hits, masks, sources,
    )  # fmt: skip
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
