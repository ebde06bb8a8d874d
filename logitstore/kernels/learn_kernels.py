"""The kernels of `logitstore.kernels.learn`."""

from __future__ import annotations

import triton
import triton.language as tl

from logitstore.kernels.lanes import LOWEST_FLOAT, add_exp, close_sum

__all__ = ["gather_kept", "overwrite_kept", "sum_outside", "write_outside"]


@triton.jit
def _row_start(numbers, row_stride, NUMBERED: tl.constexpr):
    """Return the program's row among those that count, and where its logits start."""
    row = tl.program_id(0).to(tl.int64)
    place = row
    if NUMBERED:
        place = tl.load(numbers + row)
    return row, place * row_stride


@triton.jit
def _over(x, temperature, SCALED: tl.constexpr):
    if SCALED:
        x = tl.div_rn(x, temperature)
    return x


@triton.jit
def gather_kept(
    logits, row_stride, numbers, ids, slots, kept, marks, words, temperature,
    TILE: tl.constexpr, NUMBERED: tl.constexpr, SCALED: tl.constexpr,
):  # fmt: skip
    """Gather the logits at the kept ids, -inf in unused slots, and mark those ids in a bitmap of 32-bit words."""
    row, start = _row_start(numbers, row_stride, NUMBERED)
    slot = tl.program_id(1) * TILE + tl.arange(0, TILE)
    token = tl.load(ids + row * slots + slot, mask=slot < slots, other=-1).to(tl.int32)
    used = token >= 0
    token = tl.where(used, token, 0)
    x = _over(tl.load(logits + start + token, mask=used, other=-float("inf")).to(tl.float32), temperature, SCALED)
    tl.store(kept + row * slots + slot, x, mask=slot < slots)
    bit = tl.full([TILE], 1, tl.int32) << (token & 31)
    tl.atomic_or(marks + row * words + (token >> 5), bit, mask=used, sem="relaxed")


@triton.jit
def sum_outside(
    logits, row_stride, width, numbers, marks, words, maxima, sums, temperature,
    TILE: tl.constexpr, NUMBERED: tl.constexpr, SCALED: tl.constexpr, MARKED: tl.constexpr,
):  # fmt: skip
    """Read each row once: the largest logit that is not marked, and the sum of ``exp(logit - largest)`` over those."""
    row, start = _row_start(numbers, row_stride, NUMBERED)
    largest = tl.full([TILE], LOWEST_FLOAT, tl.float32)
    total = tl.zeros([TILE], tl.float32)
    for first in range(0, width, TILE):
        column = first + tl.arange(0, TILE)
        inside = column < width
        x = tl.load(logits + start + column, mask=inside, other=-float("inf")).to(tl.float32)
        x = _over(x, temperature, SCALED)
        if MARKED:
            mark = tl.load(marks + row * words + (column >> 5), mask=inside, other=0)
            x = tl.where((mark >> (column & 31)) & 1 != 0, -float("inf"), x)
        largest, total = add_exp(largest, total, x)
    top, whole = close_sum(largest, total)
    tl.store(maxima + row, top)
    tl.store(sums + row, whole)


@triton.jit
def write_outside(
    logits, row_stride, gradient, gradient_stride, width, shifts, factors, temperature,
    TILE: tl.constexpr, SCALED: tl.constexpr,
):  # fmt: skip
    """Write ``factor * exp(logit - shift)`` for all tokens of all rows; of rows with factor 0 nothing is read."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * TILE + tl.arange(0, TILE)
    inside = column < width
    factor = tl.load(factors + row)
    target = gradient + row * gradient_stride + column
    if factor == 0.0:
        tl.store(target, tl.zeros([TILE], tl.float32).to(gradient.dtype.element_ty), mask=inside)
    else:
        x = tl.load(logits + row * row_stride + column, mask=inside, other=-float("inf")).to(tl.float32)
        x = _over(x, temperature, SCALED)
        value = tl.exp(x - tl.load(shifts + row)) * factor
        tl.store(target, value.to(gradient.dtype.element_ty), mask=inside)


@triton.jit
def overwrite_kept(gradient, gradient_stride, numbers, ids, slots, values, TILE: tl.constexpr, NUMBERED: tl.constexpr):
    """Put values where the ids say; -1 says nowhere."""
    row, start = _row_start(numbers, gradient_stride, NUMBERED)
    slot = tl.program_id(1) * TILE + tl.arange(0, TILE)
    inside = slot < slots
    token = tl.load(ids + row * slots + slot, mask=inside, other=-1).to(tl.int32)
    value = tl.load(values + row * slots + slot, mask=inside, other=0.0)
    used = token >= 0
    target = gradient + start + tl.where(used, token, 0)
    tl.store(target, value.to(gradient.dtype.element_ty), mask=used)
