"""What any loss of kept ids asks of the student's logits: two numbers a row, and later the gradient.

The logits are read once for the numbers, and read and written once for the gradient, in their own type. What is between
is ``(n, K)`` and done in torch. Rows are named by number where not all of them count, so that none is copied.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
import triton

from logitstore.kernels.launch import on_device_of_first
from logitstore.kernels.learn_kernels import gather_kept, overwrite_kept, sum_outside, write_outside

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["OutsideKept", "sum_outside_kept", "write_kept", "write_outside_kept"]

_TILE = 4096
_SLOT_TILE = 256


class OutsideKept(NamedTuple):
    """What one read of the logits gives, all float32.

    Attributes
    ----------
    kept
        ``(n, K)`` logits at the kept ids, -inf in unused slots.
    shift
        ``(n,)`` largest logit at the other ids; a huge negative number where there is none.
    total
        ``(n,)`` sum of ``exp(logit - shift)`` over the other ids.
    """

    kept: Tensor
    shift: Tensor
    total: Tensor


@on_device_of_first
def sum_outside_kept(
    logits: Tensor, ids: Tensor | None, *, numbers: Tensor | None = None, temperature: float = 1.0
) -> OutsideKept:
    """Gather the kept logits, and sum up the others on their own: as a difference the sum would be rounding.

    Parameters
    ----------
    logits
        ``(R, V)`` bfloat16, float16 or float32, the last axis contiguous.
    ids
        ``(n, K)`` integers below V, -1 in unused slots; None keeps none.
    numbers
        ``(n,)`` int64 rows of the logits; None takes all.
    temperature
        What the logits are divided by.
    """
    V = logits.shape[1]
    n = len(logits) if numbers is None else len(numbers)
    slots = 0 if ids is None else ids.shape[1]
    words = triton.cdiv(V, 32)
    options = {"NUMBERED": numbers is not None, "SCALED": temperature != 1.0}
    kept = torch.empty(n, slots, dtype=torch.float32, device=logits.device)
    marks = torch.zeros(n, words if slots else 1, dtype=torch.int32, device=logits.device)
    shift = torch.empty(n, dtype=torch.float32, device=logits.device)
    total = torch.empty_like(shift)
    where = shift if numbers is None else numbers
    if n and slots and ids is not None:
        grid = (n, triton.cdiv(slots, _SLOT_TILE))
        gather_kept[grid](
            logits, logits.stride(0), where, ids.contiguous(), slots, kept, marks, words, temperature,
            TILE=_SLOT_TILE, num_warps=4, **options,
        )  # fmt: skip
    if n:
        tile = _tile(V)
        sum_outside[(n,)](
            logits, logits.stride(0), V, where, marks, words, shift, total, temperature,
            TILE=tile, MARKED=slots > 0, num_warps=max(1, tile // 512), **options,
        )  # fmt: skip
    return OutsideKept(kept, shift, total)


@on_device_of_first
def write_outside_kept(
    gradient: Tensor, logits: Tensor, shift: Tensor, factor: Tensor, *, temperature: float = 1.0
) -> None:
    """Write ``factor * exp(logits / temperature - shift)`` over all rows, the kept ids as well.

    Parameters
    ----------
    gradient
        ``(R, V)``, the last axis contiguous; may be the logits themselves.
    logits
        ``(R, V)``.
    shift, factor
        ``(R,)`` float32. Rows with factor 0 get 0 and are not read.
    """
    R, V = logits.shape
    tile = _tile(V)
    if R:
        write_outside[(R, triton.cdiv(V, tile))](
            logits, logits.stride(0), gradient, gradient.stride(0), V, shift, factor, temperature,
            TILE=tile, SCALED=temperature != 1.0, num_warps=max(1, tile // 512),
        )  # fmt: skip


@on_device_of_first
def write_kept(gradient: Tensor, ids: Tensor, values: Tensor, *, numbers: Tensor | None = None) -> None:
    """Put ``(n, m)`` float32 values at ids of the gradient's rows, or of those that are numbered; -1 for none."""
    n, slots = ids.shape
    if n and slots:
        overwrite_kept[(n, triton.cdiv(slots, _SLOT_TILE))](
            gradient, gradient.stride(0), values if numbers is None else numbers,
            ids.contiguous(), slots, values.contiguous(), TILE=_SLOT_TILE, NUMBERED=numbers is not None, num_warps=4,
        )  # fmt: skip


def _tile(V: int) -> int:
    tile: int = min(max(256, triton.next_power_of_2(V)), _TILE)
    return tile
