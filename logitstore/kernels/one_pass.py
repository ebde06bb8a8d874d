"""Value and gradient of a loss of kept ids in one go over the rows: one read and one write of the logits in memory.

A program takes a row twice: it sums up, and then writes the gradient. What counts is what the memory moves, not the
cache. A row of Llama 3's 128,256 bfloat16 logits has 250 KiB, too many for a multiprocessor's own memory; but the few
rows that are being worked on all fit the GPU's cache (50 MB on H100 and H200). So there are as many programs as that
allows, and each goes through many rows: two on each of 132 multiprocessors make 264 rows, 68 MB; half of each, on
average, has been read a second time and is told to leave first, and the second read goes backwards, so that what was
read last is found first. That needs about 34 MB. Two, so that one streams while the other gathers and sums.

With what ids and log-probabilities of the teacher take (6 bytes an entry), at 5 % that is
(250 + 250 + 38) / 500 = 1.08 times one read and one write. Two separate reads would be 1.5 times; gathering 5 % of the
ids before them and writing those after, for which more than half of all 32-byte sectors are moved, 2.3 times. This is
arithmetic: no GPU has measured it.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
import triton

from logitstore.kernels.launch import on_device_of_first
from logitstore.kernels.one_pass_kernels import learn_rows, multiply_unless_one

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["RowSums", "learn_in_one_pass", "multiply_rows"]

_TILE = 4096
_SLOT_TILE = 1024
_MOST_PROGRAMS = 2
"""Of one multiprocessor: that many of 512 threads fit it with 64 registers each, which suffice for a tile."""
_REGISTERS = {} if torch.version.hip else {"maxnreg": 64}
_INTERPRETED_PROGRAMS = 2

_WEIGHTS = {"none": 0, "text": 1, "eq4": -1}


class RowSums(NamedTuple):
    """Of ``(R,)`` rows, float32; meaningless where a row does not count.

    Attributes
    ----------
    mass, outside
        The teacher's probability of the kept ids, and of all others where those are one token more; else 0.
    entropy
        Sum of p log p over the kept ids.
    cross
        Sum of p log q over the kept ids.
    rest, label
        log q of all other ids together, and of the label.
    """

    mass: Tensor
    outside: Tensor
    entropy: Tensor
    cross: Tensor
    rest: Tensor
    label: Tensor


@on_device_of_first
def learn_in_one_pass(
    gradient: Tensor,
    logits: Tensor,
    scale: Tensor,
    *,
    ids: Tensor | None,
    logprobs: Tensor | None,
    labels: Tensor | None,
    label_logprob: Tensor | None,
    counted: Tensor | None = None,
    renorm: bool = False,
    tail: bool = False,
    weight: Literal["none", "text", "eq4"] = "none",
) -> RowSums:
    """Write the gradient of a loss that pulls each row to a distribution, and return what its value is made of.

    The distribution is ``c p`` at the kept ids, 1 more at the label if there are labels, and 1 - sum p for all other
    ids if there is a tail. c is 1, or 1 / sum p to renormalise, times the weight of SLIM if one is asked for.

    Parameters
    ----------
    gradient
        ``(R, V)`` the last axis contiguous, may be the logits: gets the gradient by them, 0 where a row does not count.
    logits
        ``(R, V)`` the same.
    scale
        ``(R,)`` float32, what a row's gradient is multiplied by.
    ids, logprobs
        ``(R, K)`` integers, -1 in unused slots, and log-probabilities of the teacher; None for none.
    labels
        ``(R,)`` integers; None for none.
    label_logprob
        ``(R,)`` of the teacher, for the weight.
    counted
        ``(R,)`` bool; None for all.
    renorm, tail, weight
        The distribution.
    """
    R, V = logits.shape
    kept = ids is not None and logprobs is not None and ids.shape[1] > 0
    slots = ids.shape[1] if kept and ids is not None else 1
    words = triton.cdiv(V, 32)
    programs = min(R, _programs(V * logits.element_size(), logits.device))
    sums = torch.empty(8, R, dtype=torch.float32, device=logits.device)
    marks = torch.zeros(programs, words if kept else 1, dtype=torch.int32, device=logits.device)
    held = torch.empty(programs, slots, dtype=torch.float32, device=logits.device)
    tile = min(max(256, triton.next_power_of_2(V)), _TILE)
    if R:
        learn_rows[(programs,)](
            logits, logits.stride(0), gradient, gradient.stride(0), V, R,
            scale if counted is None else counted.to(torch.int8), _rows_or(ids, scale), _rows_or(logprobs, scale),
            slots, _rows_or(labels, scale), _rows_or(label_logprob, scale), scale.contiguous(), marks, marks.shape[1],
            held, sums, TILE=tile, SLOTS=min(max(16, triton.next_power_of_2(slots)), _SLOT_TILE),
            MASKED=counted is not None, KEPT=kept, RENORM=renorm, TAIL=tail, LABEL=labels is not None,
            WEIGHT=_WEIGHTS[weight], num_warps=max(1, tile // 256), **_REGISTERS,
        )  # fmt: skip
    mass, outside, entropy, weighed, whole, others, down, at_label = sums
    # Here and not in the kernel, whose logarithm may be an approximation.
    log_whole = whole.log()
    return RowSums(
        mass, outside, entropy, weighed - mass * log_whole, others.log() + down - log_whole, at_label - log_whole
    )


@on_device_of_first
def multiply_rows(numbers: Tensor, factor: Tensor) -> None:
    """Multiply ``(R, V)`` numbers, the last axis contiguous, by one ``()`` float32; for nothing where that is 1."""
    R, V = numbers.shape
    tile = min(max(256, triton.next_power_of_2(V)), _TILE)
    if R:
        multiply_unless_one[(R, triton.cdiv(V, tile))](
            numbers, numbers.stride(0), V, factor, TILE=tile, num_warps=max(1, tile // 512)
        )


def _rows_or(tensor: Tensor | None, instead: Tensor) -> Tensor:
    return instead if tensor is None else tensor.contiguous()


def _programs(row_bytes: int, device: torch.device) -> int:
    """Return how many rows may be worked on: whole numbers for each multiprocessor, half of whose bytes fit the cache.

    Half of them, as in the mean half of a row is done with; and a quarter of the cache is left to all else.
    """
    if device.type != "cuda":
        return _INTERPRETED_PROGRAMS
    multiprocessors, cache_bytes = _device_of(device)
    each = 3 * cache_bytes // (2 * row_bytes * multiprocessors)
    return multiprocessors * min(max(1, each), _MOST_PROGRAMS)


@cache
def _device_of(device: torch.device) -> tuple[int, int]:
    properties = torch.cuda.get_device_properties(device)
    return properties.multi_processor_count, properties.L2_cache_size
