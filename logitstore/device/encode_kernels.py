"""Encoding rows of residuals in Triton: see ``spec/FORMAT.md``, 9.3, and `logitstore.codec.reference.encode_payload`.

Three passes, a row a program each: the best parameter of every block; with the parameter base of its chunk, where in
the row each block's remainders go and how long the row is; and, rows having been given their places, the bits
themselves. Bits of different lanes, and of neighbouring rows, meet in a word: they are put there by atomic ors into
zeros.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["best_parameters", "row_lengths", "write_rows"]


@triton.jit
def _residuals_of(residuals, row, slots, count, block, BLOCK: tl.constexpr):
    """Load the residuals of some blocks, ``(blocks, BLOCK)`` int64, zeros behind the row's entries."""
    slot = block[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    return tl.load(residuals + row * slots + slot, mask=slot < count, other=0).to(tl.int64) & 0xFFFFFFFF


@triton.jit
def best_parameters(residuals, counts, parameters, slots, stride, BLOCK: tl.constexpr, TILE: tl.constexpr):
    """Store the smallest parameter among those that code a block with the fewest bits; 0 for blocks of zeros."""
    row = tl.program_id(0).to(tl.int64)
    count = tl.load(counts + row)
    for first in range(0, (count + BLOCK - 1) // BLOCK, TILE):
        block = first + tl.arange(0, TILE)
        x = _residuals_of(residuals, row, slots, count, block, BLOCK)
        n = tl.maximum(tl.minimum(count - block * BLOCK, BLOCK), 0).to(tl.int64)
        cost = tl.sum(x, 1)
        best = tl.full((TILE,), 0, tl.int32)
        for w in tl.static_range(1, 32):
            other = n * w + tl.sum(x >> w, 1)
            best = tl.where(other < cost, w, best)
            cost = tl.minimum(other, cost)
        tl.store(parameters + row * stride + block, best, mask=n > 0)


@triton.jit
def row_lengths(
    residuals, counts, parameters, bases, places, quotients, lengths, slots, stride,
    BLOCK: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Store, for each block, 32 times the bit of the row where its remainders go, plus its parameter.

    And for a row where its quotients go and its length, 0 if all its residuals are.
    """
    row = tl.program_id(0).to(tl.int64)
    count = tl.load(counts + row)
    low = tl.load(bases + row)
    blocks = (count + BLOCK - 1) // BLOCK
    position = 4 * blocks.to(tl.int64)
    ones = tl.full((), 0, tl.int64)
    largest = tl.full((), 0, tl.int64)
    for first in range(0, blocks, TILE):
        block = first + tl.arange(0, TILE)
        live = block < blocks
        x = _residuals_of(residuals, row, slots, count, block, BLOCK)
        n = tl.maximum(tl.minimum(count - block * BLOCK, BLOCK), 0).to(tl.int64)
        w = tl.maximum(tl.load(parameters + row * stride + block, mask=live, other=0), low).to(tl.int64)
        bits = tl.where(live, n * w, 0)
        before = position + tl.cumsum(bits, 0) - bits
        tl.store(places + row * stride + block, before * 32 + w, mask=live)
        position += tl.sum(bits, 0)
        ones += tl.sum(n + tl.sum(x >> w[:, None], 1), 0)
        largest = tl.maximum(largest, tl.max(tl.max(x, 1), 0))
    tl.store(quotients + row, position)
    tl.store(lengths + row, tl.where(largest == 0, 0, position + ones))


@triton.jit
def _put(words, position, value, mask):
    """Or numbers of at most 31 bits, int64, into zeros at their positions."""
    shifted = value << (position & 31)
    at = words + (position >> 5)
    tl.atomic_or(at, (shifted & 0xFFFFFFFF).to(tl.uint32).to(tl.int32, bitcast=True), mask=mask, sem="relaxed")
    high = (shifted >> 32).to(tl.int32)
    tl.atomic_or(at + 1, high, mask=mask & (high != 0), sem="relaxed")


@triton.jit
def write_rows(
    residuals, counts, bases, places, quotients, lengths, starts, words, slots, stride,
    BLOCK: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Write the bits of each row from ``starts`` on into ``words``, which are zeros."""
    row = tl.program_id(0).to(tl.int64)
    start = tl.load(starts + row)
    quotient_start = start + tl.load(quotients + row)
    low = tl.load(bases + row)
    count = tl.where(tl.load(lengths + row) > 0, tl.load(counts + row), 0)
    ones = tl.full((), 0, tl.int64)
    for first in range(0, count, TILE):
        slot = first + tl.arange(0, TILE)
        live = slot < count
        x = tl.load(residuals + row * slots + slot, mask=live, other=0).to(tl.int64) & 0xFFFFFFFF
        block = slot // BLOCK
        place = tl.load(places + row * stride + block, mask=live, other=0)
        w = place & 31
        _put(words, start + 4 * block, w - low, live & (slot % BLOCK == 0))
        remainder = x & ((tl.full((TILE,), 1, tl.int64) << w) - 1)
        _put(words, start + (place >> 5) + (slot - block * BLOCK) * w, remainder, live & (remainder != 0))
        end = ones + tl.cumsum(tl.where(live, (x >> w) + 1, 0), 0)
        _put(words, quotient_start + end - 1, tl.full((TILE,), 1, tl.int64), live)
        ones += tl.sum(tl.where(live, (x >> w) + 1, 0), 0)
