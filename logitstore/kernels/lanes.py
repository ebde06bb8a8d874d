"""What the kernels share: a log-sum-exp in one pass, and floats as integers of the same order."""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["LOWEST_FLOAT", "add_exp", "close_sum", "ordered_key"]

LOWEST_FLOAT: tl.constexpr = tl.constexpr(-3.4028234663852886e38)
"""Start of a maximum. Finite, so that its difference to -inf is no NaN."""


@triton.jit
def add_exp(largest, total, x):
    """Take x into the sums of ``exp(x - largest)``, each lane on its own: one exp a number, nothing between lanes.

    NaN ends in the sum, +inf in the maximum or the sum: the log-sum-exp is then not finite.
    """
    distance = x - largest
    decay = tl.exp(-tl.abs(distance))
    grows = distance > 0
    total = tl.where(grows, total * decay + 1.0, total + decay)
    return tl.where(grows, x, largest), total


@triton.jit
def close_sum(largest, total):
    """Reduce the lanes to the row's maximum and its sum relative to that."""
    top = tl.max(largest, 0)
    return top, tl.sum(total * tl.exp(largest - top), 0)


@triton.jit
def ordered_key(x, SHIFT: tl.constexpr):
    """Return int32 numbers in the order of float32 ones, -0 equal to 0.

    SHIFT drops low bits that are the same for all numbers of a narrower type.
    """
    bits = tl.where(x == 0.0, 0.0, x).to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)) >> SHIFT
