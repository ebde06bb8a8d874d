"""The kernels of `logitstore.kernels.one_pass`."""

from __future__ import annotations

import triton
import triton.language as tl

from logitstore.kernels.lanes import LOWEST_FLOAT, add_exp, close_sum

__all__ = ["learn_rows", "multiply_unless_one"]


@triton.jit
def learn_rows(
    logits, row_stride, gradient, gradient_stride, width, rows, counted, ids, logprobs, slots, labels, label_logprobs,
    scales, marks, words, held, sums,
    TILE: tl.constexpr, SLOTS: tl.constexpr, MASKED: tl.constexpr, KEPT: tl.constexpr, RENORM: tl.constexpr,
    TAIL: tl.constexpr, LABEL: tl.constexpr, WEIGHT: tl.constexpr,
):  # fmt: skip
    """Sum up a row, and write its gradient while the cache still has the row; then the next one of this program.

    ``marks`` are zeros, and are zeros again in the end. Barriers stand where a lane reads what another one wrote.
    """
    program = tl.program_id(0).to(tl.int64)
    mine = marks + program * words
    own = held + program * slots
    for row in range(program, rows, tl.num_programs(0).to(tl.int64)):
        source = logits + row * row_stride
        target = gradient + row * gradient_stride
        live = tl.full([], 1, tl.int32)
        if MASKED:
            live = tl.load(counted + row).to(tl.int32)
        scale = tl.load(scales + row)
        taken = live * slots
        reach = live * width
        label = tl.full([], -1, tl.int32)
        at_label = tl.zeros([], tl.float32)
        if LABEL:
            label = tl.where(live != 0, tl.load(labels + row).to(tl.int32), -1)
            at_label = tl.load(source + tl.maximum(label, 0), mask=label >= 0, other=0.0).to(tl.float32)

        # The kept ids: marked, their logits held, the teacher's mass on them summed up.
        mass = tl.zeros([SLOTS], tl.float64)
        entropy = tl.zeros([SLOTS], tl.float32)
        highest = tl.full([SLOTS], LOWEST_FLOAT, tl.float32)
        number = tl.zeros([SLOTS], tl.int32)
        has_label = tl.zeros([SLOTS], tl.int32)
        if KEPT:
            for first in range(0, taken, SLOTS):
                slot = first + tl.arange(0, SLOTS)
                inside = slot < taken
                token = tl.load(ids + row * slots + slot, mask=inside, other=-1).to(tl.int32)
                used = token >= 0
                token = tl.where(used, token, 0)
                x = tl.load(source + token, mask=used, other=-float("inf")).to(tl.float32)
                tl.store(own + slot, x, mask=inside)
                bit = tl.full([SLOTS], 1, tl.int32) << (token & 31)
                tl.atomic_or(mine + (token >> 5), bit, mask=used, sem="relaxed")
                logp = tl.load(logprobs + row * slots + slot, mask=used, other=-float("inf")).to(tl.float32)
                p = tl.exp(logp)
                mass += p.to(tl.float64)
                entropy += tl.where(p > 0.0, p * logp, 0.0)
                highest = tl.maximum(highest, x)
                number += used.to(tl.int32)
                has_label += (used & (token == label)).to(tl.int32)
            tl.debug_barrier()
        kept_mass = tl.sum(mass, 0)

        # All others, in one read of the row.
        largest = tl.full([TILE], LOWEST_FLOAT, tl.float32)
        total = tl.zeros([TILE], tl.float32)
        tiles = (reach + TILE - 1) // TILE
        for tile in range(tiles):
            column = tile * TILE + tl.arange(0, TILE)
            inside = column < width
            x = tl.load(source + column, mask=inside, other=-float("inf")).to(tl.float32)
            if KEPT:
                # Past the first cache, which knows nothing of what atomics did.
                mark = tl.load(mine + (column >> 5), mask=inside, other=0, cache_modifier=".cg")
                x = tl.where((mark >> (column & 31)) & 1 != 0, -float("inf"), x)
            largest, total = add_exp(largest, total, x)
        shift, others = close_sum(largest, total)
        top = tl.maximum(shift, tl.max(highest, 0))
        below = tl.exp(shift - top)

        # The student's sum over all ids, and its logits as the teacher weighs them.
        kept_sum = tl.zeros([SLOTS], tl.float32)
        weighed = tl.zeros([SLOTS], tl.float32)
        if KEPT:
            for first in range(0, taken, SLOTS):
                slot = first + tl.arange(0, SLOTS)
                x = tl.load(own + slot, mask=slot < taken, other=-float("inf")) - top
                used = tl.load(ids + row * slots + slot, mask=slot < taken, other=-1) >= 0
                logp = tl.load(logprobs + row * slots + slot, mask=used, other=-float("inf")).to(tl.float32)
                p = tl.exp(logp)
                kept_sum += tl.exp(x)
                weighed += tl.where(p > 0.0, p * x, 0.0)
        whole = others * below + tl.sum(kept_sum, 0)

        # What the row is pulled to: a multiple of p at the kept ids, a share for all others, and the label.
        by_label = tl.zeros([], tl.float32)
        if LABEL:
            by_label += 1.0
        outside = tl.zeros([], tl.float32)
        if TAIL:
            left = tl.maximum(1.0 - kept_mass, 0.0).to(tl.float32)
            outside = tl.where(tl.sum(number, 0) == width, 0.0, left)
        mass32 = kept_mass.to(tl.float32)
        multiple = tl.zeros([], tl.float32)
        if KEPT:
            multiple += 1.0
            if RENORM:
                multiple = 1.0 / mass32
            if WEIGHT != 0:
                ratio = tl.load(label_logprobs + row) - (at_label - top - tl.log(whole))
                multiple *= 1.0 - tl.exp(-tl.exp(ratio * WEIGHT))
        pull = multiple * mass32 + outside + by_label
        factor = tl.where(others == 0.0, 0.0, pull * below / whole - outside / others)
        factor = tl.where(live != 0, factor * scale, 0.0)

        # From the end, of which the cache has most.
        all_tiles = (width + TILE - 1) // TILE
        for tile in range(all_tiles):
            column = (all_tiles - 1 - tile) * TILE + tl.arange(0, TILE)
            x = tl.load(source + column, mask=column < reach, other=-float("inf"), eviction_policy="evict_first")
            value = (tl.exp(x.to(tl.float32) - shift) * factor).to(gradient.dtype.element_ty)
            tl.store(target + column, value, mask=column < width, eviction_policy="evict_first")
        tl.debug_barrier()
        if KEPT:
            for first in range(0, taken, SLOTS):
                slot = first + tl.arange(0, SLOTS)
                token = tl.load(ids + row * slots + slot, mask=slot < taken, other=-1).to(tl.int32)
                used = token >= 0
                x = tl.load(own + slot, mask=used, other=-float("inf"))
                logp = tl.load(logprobs + row * slots + slot, mask=used, other=-float("inf")).to(tl.float32)
                value = pull * (tl.exp(x - top) / whole) - multiple * tl.exp(logp)
                if LABEL:
                    value -= tl.where(token == label, by_label, 0.0)
                token = tl.where(used, token, 0)
                tl.store(target + token, (value * scale).to(gradient.dtype.element_ty), mask=used)
                tl.store(mine + (token >> 5), tl.zeros([SLOTS], tl.int32), mask=used)
        if LABEL:
            value = factor * tl.exp(at_label - shift) - by_label * scale
            beside = (label >= 0) & (tl.sum(has_label, 0) == 0)
            tl.store(target + tl.maximum(label, 0), value.to(gradient.dtype.element_ty), mask=beside)
        tl.store(sums + row, mass32)
        tl.store(sums + rows + row, outside)
        tl.store(sums + 2 * rows + row, tl.sum(entropy, 0))
        tl.store(sums + 3 * rows + row, tl.sum(weighed, 0))
        tl.store(sums + 4 * rows + row, whole)
        tl.store(sums + 5 * rows + row, others)
        tl.store(sums + 6 * rows + row, shift - top)
        tl.store(sums + 7 * rows + row, at_label - top)
        tl.debug_barrier()


@triton.jit
def multiply_unless_one(numbers, row_stride, width, factor, TILE: tl.constexpr):
    """Multiply rows by one number in the device's memory; where that is 1, nothing is read or written."""
    by = tl.load(factor)
    if by != 1.0:
        column = tl.program_id(1) * TILE + tl.arange(0, TILE)
        place = numbers + tl.program_id(0).to(tl.int64) * row_stride + column
        value = tl.load(place, mask=column < width, other=0.0).to(tl.float32) * by
        tl.store(place, value.to(numbers.dtype.element_ty), mask=column < width)
