"""Rows of ids to ranks, and into the order of their classes. Kernels release the GIL."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from logitstore import layout
from logitstore.codec.intrinsics import address_of, load_u32_at, store_u32_at, store_u64_at
from logitstore.codec.kernels import kernel

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from logitstore.codec.compact.codebook import IdBook

__all__ = ["arrange", "count_used", "rank"]

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
    return -1


def rank(
    book: IdBook, ids: NDArray[np.uint32], counts: NDArray[np.int64]
) -> tuple[int, NDArray[np.uint32]]:
    """Return the first row with an id outside the vocabulary (or -1), and ranks ``(R, K)`` of all entries."""
    ranked = np.empty(ids.shape, np.uint32)
    return int(_rank(ids, counts, book.short_ranks, ranked)), ranked


@kernel
def _arrange(
    ranked: Any, counts: Any, classes: Any, first_nibble: Any, listed: Any, listed_ids: Any, order: Any, seen: Any,
    hits: Any, sources: Any, places: Any, arranged: Any,
) -> Any:  # fmt: skip
    """Put each row into its class's order; return the first row with a rank twice, or -1.

    ``seen`` has a number for each rank, at least that of the row's first slot where the rank is in the row.
    """
    width = np.int64(ranked.shape[1])
    # Addresses, so that rows cost no slices.
    seen_at, listed_at, ids_at = address_of(seen), address_of(listed), address_of(listed_ids)
    first = np.int64(1)
    seen[:] = 0
    for row in range(len(counts)):
        count = np.int64(counts[row])
        if first + count >= np.int64(1) << 31:
            first = np.int64(1)
            seen[:] = 0
        for slot in range(count):
            token = np.uint64(ranked[np.uint64(row), np.uint64(slot)]) << np.uint64(2)
            if np.int64(load_u32_at(seen_at, token)) >= first:
                return row
            store_u32_at(seen_at, token, np.uint64(first + slot))
        start = np.uint64(4 * first_nibble[classes[row]])
        past = np.uint64(4 * first_nibble[classes[row] + 1])
        base = np.uint64(row * width)
        sources_at = address_of(sources) + (base << np.uint64(3))
        places_at, arranged_at = (address_of(places) + (base << np.uint64(2)), address_of(arranged) + (base << np.uint64(2)))
        filled, at = np.uint64(0), start
        while at < past and np.int64(filled) < count:
            for i in range(4):
                token = load_u32_at(listed_at, at << np.uint64(2))
                slot = np.int64(load_u32_at(seen_at, token << np.uint64(2))) - first
                # Stored in any case, and overwritten by the next one if it is not there.
                store_u32_at(arranged_at, filled << np.uint64(2), load_u32_at(ids_at, at << np.uint64(2)))
                store_u32_at(places_at, filled << np.uint64(2), at - start)
                store_u64_at(sources_at, filled << np.uint64(3), np.uint64(slot))
                filled += np.uint64(slot >= 0)
                at += np.uint64(1)
        found = np.int64(filled)
        hits[row] = found
        if found < count:
            for slot in range(found):
                ranked[row, sources[base + np.uint64(slot)]] = _UNUSED
            end = found
            for slot in range(count):
                token = ranked[row, slot]
                if token != _UNUSED:
                    at = end
                    while at > found and ranked[row, sources[base + np.uint64(at - 1)]] > token:
                        sources[base + np.uint64(at)] = sources[base + np.uint64(at - 1)]
                        at -= 1
                    sources[base + np.uint64(at)] = slot
                    end += 1
            for at in range(found, count):
                arranged[base + np.uint64(at)] = order[ranked[row, sources[base + np.uint64(at)]]]
        for slot in range(count, width):
            arranged[base + np.uint64(slot)] = _UNUSED
            sources[base + np.uint64(slot)] = slot
        first += width
    return -1


def arrange(
    book: IdBook, ranked: NDArray[np.uint32], counts: NDArray[np.int64], classes: NDArray[np.int64]
) -> tuple[int, NDArray[np.int64], NDArray[np.int64], NDArray[np.int32], NDArray[np.uint32]]:
    """Put rows into the order of their classes. ``ranked`` is overwritten.

    Returns
    -------
    tuple
        The first row that has an id twice (or -1), entries of each row that are in its class's list ``(R,)``, slot of
        the input that each slot of the output comes from ``(R, K)``, the place in the list of each of the former
        ``(R, K)``, and the rows' ids ``(R, K)``.
    """
    hits = np.empty(len(ranked), np.int64)
    # The slot behind a full row is written to, too.
    sources, places = np.empty(ranked.size + 1, np.int64), np.empty(ranked.size + 1, np.int32)
    arranged = np.empty(ranked.size + 1, np.uint32)
    seen = np.empty(book.vocab_size, np.uint32)
    bad = _arrange(
        ranked, counts, classes, book.first_nibble, book.listed, book.listed_ids, book.order, seen, hits, sources,
        places, arranged,
    )  # fmt: skip
    shaped = tuple(array[:-1].reshape(ranked.shape) for array in (sources, places, arranged))
    return int(bad), hits, *shaped
