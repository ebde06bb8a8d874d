"""The kernels of `logitstore.kernels.select`: one program a row, so that a row does not depend on the others."""

from __future__ import annotations

import triton
import triton.language as tl

from logitstore.kernels.lanes import LOWEST_FLOAT, add_exp, close_sum, ordered_key

__all__ = ["cut_and_pack", "scan_rows"]

LOWEST_LOGPROB: tl.constexpr = tl.constexpr(-65520.0)
"""From here on down a log-probability is -inf as float16."""


@triton.jit
def _narrow(low, high, middle, count, k):
    """One step of the search for the largest cut that at least k keys reach; ends it where exactly k do."""
    enough = count >= k
    high = tl.where(enough, tl.where(count == k, middle, high), middle - 1)
    return tl.where(enough, middle, low), high


@triton.jit
def _cut_of_tile(keys, k, low, high):
    """Return the cut, in ``[low, high]``, of keys that lie in registers."""
    while low < high:
        middle = low + ((high - low + 1) >> 1)
        low, high = _narrow(low, high, middle, tl.sum((keys >= middle).to(tl.int32), 0), k)
    return low


@triton.jit
def scan_rows(
    logits, row_stride, width, maxima, sums, temperature,
    found_values, found_ids, found_counts, room, sample_rank, run_stride,
    TILE: tl.constexpr, SHIFT: tl.constexpr, SAMPLE: tl.constexpr, RUN: tl.constexpr, SCALED: tl.constexpr,
):  # fmt: skip
    """Read each row once: its log-sum-exp in two parts and, if SAMPLE, the entries above a guessed cut, ids ascending.

    The guess is the ``sample_rank``-th largest of SAMPLE logits, taken in runs of RUN every ``run_stride``.
    """
    row = tl.program_id(0).to(tl.int64)
    source = logits + row * row_stride
    if SAMPLE > 0:
        lane = tl.arange(0, SAMPLE)
        drawn = tl.load(source + lane // RUN * run_stride + lane % RUN).to(tl.float32)
        drawn_keys = ordered_key(drawn, SHIFT)
        low = tl.min(drawn_keys, 0).to(tl.int64)
        guess = _cut_of_tile(drawn_keys, sample_rank, low, tl.max(drawn_keys, 0).to(tl.int64))
    largest = tl.full([TILE], LOWEST_FLOAT, tl.float32)
    total = tl.zeros([TILE], tl.float32)
    found = tl.zeros([], tl.int32)
    for start in range(0, width, TILE):
        column = start + tl.arange(0, TILE)
        inside = column < width
        given = tl.load(source + column, mask=inside, other=-float("inf"))
        x = given.to(tl.float32)
        largest, total = add_exp(largest, total, x)
        if SAMPLE > 0:
            above = (ordered_key(x, SHIFT) >= guess) & inside
            ones = above.to(tl.int32)
            slot = found + tl.cumsum(ones, 0) - 1
            fits = above & (slot < room)
            tl.store(found_values + row * room + slot, given, mask=fits)
            tl.store(found_ids + row * room + slot, column, mask=fits)
            found += tl.sum(ones, 0)
    if SCALED:
        # The maximum must be known before its multiples are: a second pass, which the cache mostly serves.
        top = tl.max(largest, 0)
        total = tl.zeros([TILE], tl.float32)
        for start in range(0, width, TILE):
            column = start + tl.arange(0, TILE)
            x = tl.load(source + column, mask=column < width, other=-float("inf")).to(tl.float32)
            total += tl.exp(tl.div_rn(x - top, temperature))
        tl.store(maxima + row, top)
        tl.store(sums + row, tl.sum(total, 0))
    else:
        top, whole = close_sum(largest, total)
        tl.store(maxima + row, top)
        tl.store(sums + row, whole)
    if SAMPLE > 0:
        tl.store(found_counts + row, found)


@triton.jit
def _keys(source, start, length, lse, TILE: tl.constexpr, SHIFT: tl.constexpr):
    """Load a tile; return its positions, numbers and keys, the lowest key where nothing is to be kept."""
    position = start + tl.arange(0, TILE)
    x = tl.load(source + position, mask=position < length, other=-float("inf")).to(tl.float32)
    kept = x - lse > LOWEST_LOGPROB
    return position, x, tl.where(kept, ordered_key(x, SHIFT), -2147483648)


@triton.jit
def _cut_of_row(source, length, lse, k, low, high, TILE: tl.constexpr, SHIFT: tl.constexpr):
    """Return the cut of more keys than registers hold."""
    while low < high:
        middle = low + ((high - low + 1) >> 1)
        count = tl.zeros([], tl.int32)
        for start in range(0, length, TILE):
            _, _, keys = _keys(source, start, length, lse, TILE, SHIFT)
            count += tl.sum((keys >= middle).to(tl.int32), 0)
        low, high = _narrow(low, high, middle, count, k)
    return low


@triton.jit
def cut_and_pack(
    values, row_stride, width, value_ids, found_counts, found_room, maxima, lses, k, kept_ids, kept_values,
    TILE: tl.constexpr, SHIFT: tl.constexpr, FOUND: tl.constexpr, RETRY: tl.constexpr, SINGLE: tl.constexpr,
    LOGITS: tl.constexpr,
):  # fmt: skip
    """Keep the k largest numbers of each row, ids ascending, then -1 and -inf.

    FOUND: the numbers are those that `scan_rows` found; rows of which it found too few or too many are left out, and
    RETRY does just those, from all logits. SINGLE: they all fit one tile.
    """
    row = tl.program_id(0).to(tl.int64)
    length = width
    todo = True
    if FOUND:
        length = tl.load(found_counts + row)
        todo = (length >= k) & (length <= found_room)
    elif RETRY:
        count = tl.load(found_counts + row)
        todo = (count < k) | (count > found_room)
    if todo:
        source = values + row * row_stride
        lse = tl.load(lses + row)
        low = tl.full([], -(1 << (31 - SHIFT)) + 1, tl.int64)
        high = ordered_key(tl.load(maxima + row), SHIFT).to(tl.int64)
        if SINGLE:
            _, _, keys = _keys(source, 0, length, lse, TILE, SHIFT)
            cut = _cut_of_tile(keys, k, low, high)
            above = tl.sum((keys > cut).to(tl.int32), 0)
        else:
            cut = _cut_of_row(source, length, lse, k, low, high, TILE, SHIFT)
            above = tl.zeros([], tl.int32)
            for start in range(0, length, TILE):
                _, _, keys = _keys(source, start, length, lse, TILE, SHIFT)
                above += tl.sum((keys > cut).to(tl.int32), 0)

        room_for_ties = k - above
        kept = tl.zeros([], tl.int32)
        ties = tl.zeros([], tl.int32)
        for start in range(0, length, TILE):
            position, x, keys = _keys(source, start, length, lse, TILE, SHIFT)
            tied = (keys == cut).to(tl.int32)
            take = (keys > cut) | ((tied != 0) & (ties + tl.cumsum(tied, 0) <= room_for_ties))
            slot = kept + tl.cumsum(take.to(tl.int32), 0) - 1
            # Rows with NaN, which are refused later, may have more.
            take = take & (slot < k)
            ids = position
            if FOUND:
                ids = tl.load(value_ids + row * found_room + position, mask=take, other=0)
            tl.store(kept_ids + row * k + slot, ids, mask=take)
            stored = x if LOGITS else x - lse
            tl.store(kept_values + row * k + slot, stored.to(tl.float16), mask=take)
            ties += tl.sum(tied, 0)
            kept += tl.sum(take.to(tl.int32), 0)
        for start in range(kept // TILE * TILE, k, TILE):
            slot = start + tl.arange(0, TILE)
            unused = (slot >= kept) & (slot < k)
            tl.store(kept_ids + row * k + slot, -1, mask=unused)
            tl.store(kept_values + row * k + slot, -float("inf"), mask=unused)
