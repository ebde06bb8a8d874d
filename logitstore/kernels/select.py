"""The largest logits of every row, and its log-sum-exp, in about one read of the logits.

1. A sample of a row (a few of its cache lines) gives a cut that a little more than k logits should reach.
2. One pass over the row sums up exp and packs the logits above that cut, ids ascending.
3. The exact cut, and the ties at it, are found among those few.

Where the guess was too high, or so low that the room for what it finds ran out, the row is done again from all its
logits: the guess decides about time, never about the result. Neither needs a word from the host.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton

from logitstore.kernels.launch import on_device_of_first
from logitstore.kernels.select_kernels import cut_and_pack, scan_rows

__all__ = ["TopRows", "row_log_sum_exp", "select_top"]

_TILE = 4096
_LARGEST_SAMPLE = 8192
_SECTOR_BYTES = 32
_LARGEST_SINGLE = 16384
_SHIFTS = {torch.bfloat16: 16, torch.float16: 13, torch.float32: 0}


class TopRows(NamedTuple):
    """``(n,)`` float32 lse; ``(n, k)`` int32 ids ascending, then -1; ``(n, k)`` float16 values, then -inf."""

    lse: torch.Tensor
    ids: torch.Tensor
    values: torch.Tensor


class _Guess(NamedTuple):
    """How many logits to sample, which of them (by rank) is the cut, and room for what it finds."""

    sample: int
    rank: int
    room: int


@on_device_of_first
def select_top(logits: torch.Tensor, k: int, *, raw: bool = False, sample: int | None = None) -> TopRows:
    """Select the ``k`` largest logits of each row, smaller ids first where they are equal.

    Rows with NaN, with +inf or without a finite logit have an lse that is not finite, and no meaning otherwise.

    Parameters
    ----------
    logits
        ``(n, V)`` bfloat16, float16 or float32; rows may lie apart.
    k
        1 to ``V``.
    raw
        Give logits as values, not log-probabilities.
    sample
        Logits of each row to guess the cut from, a power of 2; 0 for no guess. Chosen by default.
    """
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    n, V = logits.shape
    guess = _plan(V, k, logits.element_size(), sample)
    found_values = logits.new_empty(n, guess.room)
    found_ids = torch.empty(n, guess.room, dtype=torch.int32, device=logits.device)
    found_counts = torch.empty(n, dtype=torch.int32, device=logits.device)
    top, lse = _scan(logits, 1.0, found_values, found_ids, found_counts, guess)
    ids = torch.empty(n, k, dtype=torch.int32, device=logits.device)
    values = torch.empty(n, k, dtype=torch.float16, device=logits.device)

    def pack(source: torch.Tensor, length: int, *, found: bool, retry: bool) -> None:
        tile = min(max(256, triton.next_power_of_2(length)), _LARGEST_SINGLE)
        if n:
            cut_and_pack[(n,)](
                source, source.stride(0), length, found_ids, found_counts, guess.room, top, lse, k, ids, values,
                TILE=tile, SHIFT=_SHIFTS[logits.dtype], FOUND=found, RETRY=retry, SINGLE=length <= tile, LOGITS=raw,
                num_warps=min(16, max(1, tile // 512)),
            )  # fmt: skip

    if guess.sample:
        pack(found_values, guess.room, found=True, retry=False)
    pack(logits, V, found=False, retry=guess.sample > 0)
    return TopRows(lse, ids, values)


@on_device_of_first
def row_log_sum_exp(logits: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Return ``(n,)`` float32 ``log(sum(exp(logits / temperature)))`` of ``(n, V)`` logits."""
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    none = torch.empty(0, dtype=torch.int32, device=logits.device)
    return _scan(logits, temperature, logits, none, none, _Guess(0, 0, 0))[1]


def _plan(V: int, k: int, item_bytes: int, sample: int | None) -> _Guess:
    if sample is None:
        sample = min(_LARGEST_SAMPLE, 2 ** max(0, (V // 8).bit_length() - 1))
        # A short row fits the registers whole; of a long part of a row little would be left out.
        sample = 0 if V <= _TILE or k > V // 4 else sample
    runs = max(1, _SECTOR_BYTES // item_bytes)
    if sample < runs or sample > V:
        return _Guess(0, 0, 0)
    # Neighbours in a vocabulary are alike, so that a sample of runs is worse than one of single logits: five sigmas.
    expected = sample * k / V
    rank = min(sample, math.ceil(expected + 5 * math.sqrt(expected) + 2))
    room = math.ceil((rank + 6 * math.sqrt(rank) + 8) * V / sample)
    # Sixteens keep the rows of what is found aligned.
    return _Guess(sample, rank, min(V + 15, max(room, k)) // 16 * 16 + 16)


def _scan(
    logits: torch.Tensor,
    temperature: float,
    found_values: torch.Tensor,
    found_ids: torch.Tensor,
    found_counts: torch.Tensor,
    guess: _Guess,
) -> tuple[torch.Tensor, torch.Tensor]:
    n, V = logits.shape
    top = torch.empty(n, dtype=torch.float32, device=logits.device)
    total = torch.empty_like(top)
    run = max(1, _SECTOR_BYTES // logits.element_size())
    tile = min(max(256, triton.next_power_of_2(V)), _TILE)
    if n:
        scan_rows[(n,)](
            logits, logits.stride(0), V, top, total, temperature,
            found_values, found_ids, found_counts, guess.room, guess.rank, V // max(1, guess.sample // run),
            TILE=tile, SHIFT=_SHIFTS[logits.dtype], SAMPLE=guess.sample, RUN=run, SCALED=temperature != 1.0,
            num_warps=max(1, tile // 512),
        )  # fmt: skip
    # Here and not in the kernel, whose logarithm may be an approximation. A sum is 1 at least.
    return top, top / temperature + total.log()
