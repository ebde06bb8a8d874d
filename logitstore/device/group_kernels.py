"""Decoding groups of the ``compact`` codec in Triton: see ``spec/COMPACT.md``.

`logitstore.codec.compact.reference` says the same plainly. Within a group each symbol has to wait for the one before
it, so a lane has a whole group, and a program many lanes. A lane takes one symbol a turn, whatever that is of: what it
is at, its *phase*, chooses the table that it looks up and what is done with the number. So lanes whose rows differ in
length do not wait for each other. A lane that finds something wrong notes it and stops.

All loads of words are masked to the group's own, whatever the bits say, and all stores to the slots of its rows. Tables
are a codebook's, which has been checked. Numbers are held at 2^30, which no sound one reaches. Statuses are eight times
keys of `logitstore.codec.group_rows.BROKEN`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from logitstore.device.decode_kernels import element_of_key

__all__ = ["ids_of_groups", "values_of_groups"]


@triton.jit
def _word(words, at, mask):
    """Load a word, as uint32."""
    return tl.load(words + at, mask=mask, other=0).to(tl.uint16, bitcast=True).to(tl.uint32)


@triton.jit
def _begin(words, table, groups, first, past, LANES: tl.constexpr):
    """Return each lane's group and whether there is one, its columns, and its first state."""
    group = first + tl.program_id(0) * LANES + tl.arange(0, LANES)
    live = group < past
    column = table + group
    start = tl.load(column, mask=live, other=0)
    length = tl.load(column + groups, mask=live, other=0)
    row = tl.load(column + 2 * groups, mask=live, other=0)
    stop = row + tl.load(column + 3 * groups, mask=live, other=0)
    target = tl.load(column + 4 * groups, mask=live, other=0)
    answers = tl.load(column + 5 * groups, mask=live, other=0)
    state = _word(words, start, live) | (_word(words, start + 1, live) << 16)
    return live, start, length, row, stop, target, answers, state


@triton.jit
def _row(counts, row, target, offsets, slots, mask, FLAT: tl.constexpr):
    """Return a row's entries, whether it is wanted, and where its slots begin."""
    count = tl.load(counts + row, mask=mask, other=0)
    wanted = mask & (count >= 0)
    begin = tl.load(offsets + target, mask=wanted, other=0) if FLAT else target.to(tl.int64) * slots
    return tl.where(count < 0, ~count, count), wanted, begin


@triton.jit
def _take_symbol(words, entries, start, length, table, state, position, mask):
    """Decode a symbol; return it, the new state and position."""
    entry = tl.load(entries + table * 1024 + (state & 1023).to(tl.int32), mask=mask, other=0).to(
        tl.uint32, bitcast=True
    )
    whole = state >> 10
    following = ((entry >> 8) & 1023) * whole + whole + (entry >> 20)
    low = mask & (following < 65536)
    # Loaded in any case, so that it does not wait for the entry.
    word = _word(words, start + position, mask & (position < length))
    following = tl.where(low, (following << 16) | word, following)
    return (entry & 255).to(tl.int32), tl.where(mask, following, state), position + low.to(tl.int32)


@triton.jit
def _take_raw(words, start, length, used, width, mask):
    """Return the raw bits in front of those used so far, and how many are used then."""
    used = used + tl.where(mask, width, 0)
    at = 16 * length - used
    inside = mask & (width > 0) & (at >= 0)
    word, bit = at >> 4, (at & 15).to(tl.uint64)
    bits = _word(words, start + word, inside).to(tl.uint64)
    bits |= _word(words, start + word + 1, inside & (word + 1 < length)).to(tl.uint64) << 16
    bits |= _word(words, start + word + 2, inside & (word + 2 < length)).to(tl.uint64) << 32
    ones = (tl.full(used.shape, 1, tl.uint32) << width.to(tl.uint32)) - 1
    return (bits >> bit).to(tl.uint32) & ones, used


@triton.jit
def _take_number(words, entries, bins, start, length, table, code, plain, state, position, used, mask):
    """Decode a symbol and its raw bits; return the number, and what moved. Symbols below ``plain`` are the number."""
    symbol, state, position = _take_symbol(words, entries, start, length, table, state, position, mask)
    has_bin = mask & (symbol >= plain)
    found = tl.load(bins + code * 256 + symbol, mask=has_bin, other=0)
    raw, used = _take_raw(words, start, length, used, (found >> 32).to(tl.int32), has_bin)
    number = tl.minimum((found & 0xFFFFFFFF) + raw.to(tl.int64), 1 << 30).to(tl.int32)
    return tl.where(has_bin, number, symbol), state, position, used


@triton.jit
def _end(state, position, used, length):
    """Return what is wrong with a group whose rows are done: 0 or 1."""
    return tl.where((state == 65536) & (position + ((used + 15) >> 4) == length), 0, 1)


@triton.jit
def _note(status, target, answers, wanted, broken, mask):
    """Note what is wrong with a row, or with one that is not wanted, at the row that answers for the group."""
    tl.store(status + tl.where(wanted, target, answers), 8 * broken, mask=mask & (broken > 0))


@triton.jit
def _next_row(
    counts, offsets, status, slots, live, ended, length, row, stop, target, answers, state, position, used, broken,
    count, wanted, begin, FLAT: tl.constexpr,
):  # fmt: skip
    """Stop lanes whose group has ended or is broken, which is noted, and move those on whose row has ended.

    Returns which lanes go on and which of them with a new row, its number, the row of the batch, and what `_row` says.
    """
    broken = tl.where(live & ((position > length) | (used > 16 * length)), 1, broken)
    closed = ended & (row + 1 == stop)
    broken = tl.where(closed & (broken == 0), _end(state, position, used, length), broken)
    _note(status, target, answers, wanted, broken, live)
    live = live & ~closed & (broken == 0)
    fresh = ended & live
    row += fresh.to(tl.int32)
    target += fresh.to(tl.int32)
    next_count, next_wanted, next_begin = _row(counts, row, target, offsets, slots, fresh, FLAT)
    count, begin = tl.where(fresh, next_count, count), tl.where(fresh, next_begin, begin)
    return live, fresh, row, target, count, tl.where(fresh, next_wanted, wanted), begin


@triton.jit
def _gap_context(left, rank):
    """As `codebook.gap_context`."""
    size = (left >= 2).to(tl.int32) + (left >= 4) + (left >= 8) + (left >= 16) + (left >= 32) + (left >= 64)
    size += left >= 128
    return 6 * size + (rank >= 4) + (rank >= 32) + (rank >= 256) + (rank >= 2048) + (rank >= 16384)


@triton.jit(do_not_specialize=["groups", "first", "past"])
def ids_of_groups(
    words, table, counts, offsets, out, status, entries, bins, gap_tables, nibble_tables, first_nibble, listed, order,
    groups, first, past, slots, classes, vocab_size,
    FLAT: tl.constexpr, LANES: tl.constexpr, TURNS: tl.constexpr,
):  # fmt: skip
    """Decode groups ``first:past``, whose ids are of one codebook. ``out`` has ``slots`` a row or, FLAT, ``offsets``.

    Phases: 0 a row's class, 1 its misses, 2 a nibble, 3 a gap, which are codes of the bank but for their order.
    """
    live, start, length, row, stop, target, answers, state = _begin(words, table, groups, first, past, LANES)
    count, wanted, begin = _row(counts, row, target, offsets, slots, live, FLAT)
    none = tl.full((LANES,), 0, tl.int32)
    position, used, phase, broken = none + 2, none, none, none
    nibble, last, hits, done, rank = none, none, none, none, none
    going = tl.sum(live.to(tl.int32), 0)
    while going > 0:
        for _ in tl.range(TURNS, num_stages=1):
            in_nibbles, in_gaps = live & (phase == 2), live & (phase == 3)
            context = tl.where(in_gaps, _gap_context(count - done, rank), 0)
            at = tl.load(nibble_tables + nibble, mask=in_nibbles, other=0).to(tl.int32)
            at += tl.load(gap_tables + context, mask=in_gaps, other=0)
            at = tl.where(phase == 1, 1, at)
            code, plain = tl.where(in_gaps, 2, phase), tl.where(in_nibbles, 16, 0)
            number, state, position, used = _take_number(
                words, entries, bins, start, length, at, code, plain, state, position, used, live
            )
            # Of a class: where its nibbles are.
            is_class = live & (phase == 0)
            broken = tl.where(is_class & (number >= classes), 2, broken)
            known = is_class & (number < classes)
            nibble = tl.where(is_class, tl.load(first_nibble + number, mask=known, other=0), nibble)
            last = tl.where(is_class, tl.load(first_nibble + number + 1, mask=known, other=0), last)
            # Of misses: how many ids come from nibbles.
            is_misses = live & (phase == 1)
            broken = tl.where(is_misses & (number > count), 2, broken)
            hits = tl.where(is_misses, tl.maximum(count - number, 0), hits)
            # Of a nibble: up to four ids.
            for place in tl.static_range(4):
                there = in_nibbles & (((number >> place) & 1) == 1)
                mine = there & wanted & (done < hits)
                token = tl.load(listed + (4 * nibble + place), mask=mine, other=0)
                tl.store(out + begin + done, token, mask=mine)
                done += there.to(tl.int32)
            nibble += in_nibbles.to(tl.int32)
            broken = tl.where(in_nibbles & (done > hits), 3, broken)
            # Of a gap: one.
            rank += tl.where(in_gaps, number, 0)
            broken = tl.where(in_gaps & (rank >= vocab_size), 4, broken)
            sound = in_gaps & (rank < vocab_size)
            token = tl.load(order + rank, mask=sound & wanted, other=0)
            tl.store(out + begin + done, token, mask=sound & wanted)
            rank += in_gaps.to(tl.int32)
            done += in_gaps.to(tl.int32)
            # What comes next.
            phase = tl.where(is_class, 1, tl.where(phase > 1, phase, phase + 1))
            behind = live & ~is_class & (done >= hits)
            broken = tl.where(live & ~is_class & (done < hits) & (nibble >= last), 3, broken)
            phase = tl.where(behind, 3, phase)
            ended = behind & (done >= count)
            live, fresh, row, target, count, wanted, begin = _next_row(
                counts, offsets, status, slots, live, ended, length, row, stop, target, answers, state, position, used,
                broken, count, wanted, begin, FLAT,
            )  # fmt: skip
            phase, done, rank = tl.where(fresh, 0, phase), tl.where(fresh, 0, done), tl.where(fresh, 0, rank)
        going = tl.sum(live.to(tl.int32), 0)


@triton.jit(do_not_specialize=["groups", "first", "past"])
def values_of_groups(
    words, table, counts, offsets, out, status, entries, bins, contexts, parts, levels,
    groups, first, past, slots, level_count, plain_symbols,
    BITS: tl.constexpr, IS_FLOAT: tl.constexpr, FLAT: tl.constexpr, LANES: tl.constexpr, TURNS: tl.constexpr,
):  # fmt: skip
    """Decode groups ``first:past``, whose values are of one codebook, as `ids_of_groups`.

    Phases: 0 a row's base, 1 a distance, 2 the key of a row that was kept as it is. A row without entries takes a turn.
    """
    live, start, length, row, stop, target, answers, state = _begin(words, table, groups, first, past, LANES)
    count, wanted, begin = _row(counts, row, target, offsets, slots, live, FLAT)
    none = tl.full((LANES,), 0, tl.int32)
    position, used, phase, broken = none + 2, none, none, none
    base, part, column, context, edge = none, none, none, none, none + 1
    going = tl.sum(live.to(tl.int32), 0)
    while going > 0:
        for _ in tl.range(TURNS, num_stages=1):
            in_base = live & (phase == 0) & (count > 0)
            in_distances, in_keys = live & (phase == 1), live & (phase == 2)
            # Columns 0, 1, 2, 3, 5, 7, 11, … begin a context: two for each doubling of their number from 1 on.
            turns = in_distances & (column == edge)
            context += tl.where(turns, tl.where(context == 0, 2, 1), 0)
            half = (context >> 1) - 1
            edge += tl.where(turns, (none + 1) << tl.maximum(half, 0), 0)
            at = tl.load(contexts + part * 64 + context, mask=in_distances, other=0)
            code, plain = in_distances.to(tl.int32), tl.where(in_distances, plain_symbols, 0)
            number, state, position, used = _take_number(
                words, entries, bins, start, length, at, code, plain, state, position, used, in_base | in_distances
            )
            key, used = _take_raw(words, start, length, used, none + BITS, in_keys)
            # Of a base: the context of all distances.
            base = tl.where(in_base, tl.minimum(number - 1, level_count), base)
            part = tl.where(in_base, tl.load(parts + base, mask=in_base & (base >= 0), other=0), part)
            # Of a distance: a level, whose bits the table has.
            level = base + tl.minimum(number, level_count)
            sound = in_distances & (level < level_count)
            broken = tl.where(in_distances & ~sound, 5, broken)
            value = tl.load(levels + level, mask=sound & wanted, other=0)
            element = element_of_key(key, none, BITS, IS_FLOAT).to(tl.int32, bitcast=True)
            element = tl.where(in_keys, element, value)
            mine = wanted & (sound | in_keys)
            tl.store(out + begin + column, element.to(out.dtype.element_ty), mask=mine)
            column += (in_distances | in_keys).to(tl.int32)
            # What comes next.
            phase = tl.where(in_base, tl.where(base < 0, 2, 1), phase)
            ended = live & ~in_base & (column >= count)
            live, fresh, row, target, count, wanted, begin = _next_row(
                counts, offsets, status, slots, live, ended, length, row, stop, target, answers, state, position, used,
                broken, count, wanted, begin, FLAT,
            )  # fmt: skip
            phase, column, context = tl.where(fresh, 0, phase), tl.where(fresh, 0, column), tl.where(fresh, 0, context)
            edge = tl.where(fresh, 1, edge)
        going = tl.sum(live.to(tl.int32), 0)
