"""Decoding rows in Triton: see ``spec/FORMAT.md``, 9.3, and `logitstore.codec.reference`, which says the same plainly.

A row is three parts: parameters of its blocks, remainders, quotients. `block_places` turns parameters into the place of
each block's remainders, by a prefix sum. In `entries_of_rows` each lane has a *bit* of the third part. A one is the end
of an entry: how many ones are before it says which entry, how far back the last one is says its quotient, and the
entry's number says where its remainder is. No lane waits for the entry before it, but for three sums over the lanes.

Positions within a row are 32 bits: rows of 2^31 bits are for the CPU. All loads and stores are masked to the row's own
bits and slots, whatever the bits say; the words' two guard words cover loads of two words anywhere. Statuses are those
of `logitstore.codec.fast_rows.BROKEN`.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["block_places", "entries_of_rows"]


@triton.jit
def _word(words, position, mask):
    """Load the word in which a bit is."""
    return tl.load(words + (position >> 5), mask=mask, other=0).to(tl.uint32, bitcast=True)


@triton.jit
def _bits_at(words, position, mask):
    """Load 32 bits from a position on."""
    low = _word(words, position, mask).to(tl.uint64)
    high = _word(words + 1, position, mask).to(tl.uint64)
    return (((high << 32) | low) >> (position & 31).to(tl.uint64)).to(tl.uint32)


@triton.jit
def _row(words, table, rows, row):
    """Return the word and the bit in it where a row begins, the table's meta, the row's bits and entries."""
    meta = tl.load(table + rows + row)
    at = words + (tl.load(table + row).to(tl.int64) & 0xFFFFFFFF)
    return at, meta & 31, meta, tl.load(table + 2 * rows + row), tl.load(table + 3 * rows + row)


@triton.jit
def block_places(words, table, places, quotients, status, rows, stride, TILE: tl.constexpr):
    """Store, for each block, 32 times the bit of the row where its remainders begin, plus its parameter.

    And for a row: where its quotients begin, and 0 or what is wrong so far. ``places`` has ``stride`` blocks a row.
    """
    row = tl.program_id(0).to(tl.int64)
    words, head, meta, length, count = _row(words, table, rows, row)
    block_log2 = (meta >> 10) & 7
    base = (meta >> 13) & 31
    blocks = (count + (1 << block_log2) - 1) >> block_log2
    position = 4 * blocks.to(tl.int64)
    widest = tl.full((), 0, tl.int32)
    # A row of zeros has no parameters; a row too short for its own has nothing that may be read.
    sound = (length == 0) | (position + count <= length)
    blocks = tl.where((length > 0) & sound, blocks, 0)
    for first in range(0, blocks, TILE):
        block = first + tl.arange(0, TILE)
        live = block < blocks
        w = base + (_bits_at(words, head + 4 * block, live) & 15).to(tl.int32)
        w = tl.where(live, w, 0)
        bits = (w * tl.minimum(1 << block_log2, count - (block << block_log2))).to(tl.int64)
        before = position + tl.cumsum(bits, 0) - bits
        tl.store(places + row * stride + block, before * 32 + w, mask=live)
        position += tl.sum(bits, 0)
        widest = tl.maximum(widest, tl.max(w, 0))
    sound = sound & ((length == 0) | (position + count <= length))
    found = tl.where(sound, tl.where(widest > 31, 6, 0), 1)
    tl.store(quotients + row, tl.where(found == 0, position, 0).to(tl.int32))
    tl.store(status + row, found.to(tl.int32))


@triton.jit
def _later(a, b):
    return tl.maximum(a, b)


@triton.jit
def element_of_key(key, shift, BITS: tl.constexpr, IS_FLOAT: tl.constexpr):
    """Return the bits of the element that has a key, as `transform.bits_from_keys`; both uint32."""
    if IS_FLOAT:
        half = tl.full((), 1, tl.uint32) << (BITS - 1 - shift).to(tl.uint32)
        key = tl.where(key >= half, key ^ half, half + (half - 1) - key)
    return key << shift.to(tl.uint32)


@triton.jit
def entries_of_rows(
    words, table, places, quotients, status, out, offsets, rows, stride, slots, bound,
    IS_IDS: tl.constexpr, IS_FLOAT: tl.constexpr, BITS: tl.constexpr, UNUSED: tl.constexpr, FLAT: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    """Decode a row a program, after `block_places`. ``out`` has ``slots`` elements a row, or with FLAT, ``offsets``."""
    row = tl.program_id(0).to(tl.int64)
    words, head, meta, length, count = _row(words, table, rows, row)
    block_log2 = (meta >> 10) & 7
    shift = (meta >> 5) & 31
    base = tl.load(table + 4 * rows + row).to(tl.uint32, bitcast=True)
    found = tl.load(status + row)
    quotient_start = tl.load(quotients + row)
    end = tl.where(found == 0, length, quotient_start)
    if FLAT:
        target = out + tl.load(offsets + row)
        room = (tl.load(offsets + row + 1) - tl.load(offsets + row)).to(tl.int32)
    else:
        target = out + row * slots
        room = count * 0 + slots
    lanes = tl.arange(0, TILE)
    largest = tl.full((), 0xFFFFFFFF, tl.uint32) >> (32 - BITS + shift).to(tl.uint32)

    entries = tl.full((), 0, tl.int32)
    latest = quotient_start - 1
    token = tl.full((), -1, tl.int64)
    bad = tl.full((TILE,), 0, tl.int32)
    for first in range(quotient_start, end, TILE):
        bit = first + lanes
        live = bit < end
        at = head + bit
        one = live & (((_word(words, at, live) >> (at & 31).to(tl.uint32)) & 1) == 1)
        entry = entries + tl.cumsum(one.to(tl.int32), 0) - 1
        # The last one before this bit: seen from the lane behind it.
        at -= 1
        behind = live & (bit > quotient_start)
        behind = behind & (((_word(words, at, behind) >> (at & 31).to(tl.uint32)) & 1) == 1)
        last = tl.maximum(latest, tl.associative_scan(tl.where(behind, bit - 1, -1), 0, _later))
        is_entry = one & (entry < count)
        block = tl.where(is_entry, entry, 0) >> block_log2
        place = tl.load(places + row * stride + block, mask=is_entry, other=0)
        w = (place & 31).to(tl.int32)
        at = head + (place >> 5).to(tl.int32) + (entry - (block << block_log2)) * w
        w = w.to(tl.uint32)
        mask = (tl.full((TILE,), 1, tl.uint32) << w) - 1
        quotient = (bit - last - 1).to(tl.uint32)
        residual = (quotient << w) | (_bits_at(words, at, is_entry) & mask)
        bad = tl.where(is_entry & ((residual >> w) != quotient), 5, bad)
        if IS_IDS:
            gaps = tl.where(is_entry, residual.to(tl.int64) + 1, 0)
            # Sums of 32 bits suffice for ids within the vocabulary, and whether all are is told by the sum of 64.
            ids = token.to(tl.int32) + tl.cumsum(gaps.to(tl.int32), 0)
            tl.store(target + entry, ids, mask=is_entry)
            token += tl.sum(gaps, 0)
        else:
            key = base + residual
            bad = tl.where(is_entry & ((key > largest) | (key < residual)) & (bad == 0), 4, bad)
            tl.store(target + entry, element_of_key(key, shift, BITS, IS_FLOAT).to(out.dtype.element_ty), mask=is_entry)
        entries += tl.sum(one.to(tl.int32), 0)
        latest = tl.maximum(latest, tl.max(tl.where(one, bit, -1), 0))
    worst = tl.max(bad, 0)
    coded = (found == 0) & (length > 0)
    found = tl.where((found == 0) & (worst != 0), worst, found)
    found = tl.where(coded & ((entries != count) | (latest != length - 1)), 2, found)

    # Rows of zeros, which have no bits, and unused slots.
    plain = tl.where(length == 0, count, 0)
    for first in range(tl.where(length == 0, 0, count), room, TILE):
        slot = first + lanes
        if IS_IDS:
            element = slot
        else:
            element = (element_of_key(base, shift, BITS, IS_FLOAT) + slot.to(tl.uint32) * 0).to(tl.int32, bitcast=True)
        element = tl.where(slot < plain, element, UNUSED)
        tl.store(target + slot, element.to(out.dtype.element_ty), mask=slot < room)
    if IS_IDS:
        token = tl.where(length == 0, count.to(tl.int64) - 1, token)
        found = tl.where((found == 0) & (token >= bound), 3, found)
    else:
        found = tl.where((found == 0) & (count > 0) & (base > largest), 4, found)
    tl.store(status + row, found.to(tl.int32))
