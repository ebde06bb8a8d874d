"""Random draws from the softmax of a row, reproducible from (seed, row key, number of the draw) alone."""

from __future__ import annotations

import torch

from logitstore.select.top import UNUSED

__all__ = ["count_entries", "draw_ids", "uniforms"]

# splitmix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014), as signed 64-bit integers:
# torch multiplies and adds int64 modulo 2^64 on every device.
_GAMMA = 0x9E3779B97F4A7C15 - 2**64
_MULTIPLIER_1 = 0xBF58476D1CE4E5B9 - 2**64
_MULTIPLIER_2 = 0x94D049BB133111EB - 2**64


def uniforms(seed: int, row_keys: torch.Tensor, count: int, first: int = 0) -> torch.Tensor:
    """Return ``(n, count)`` float64 in [0, 1) with 53 random bits, a pure function of seed, row key and column.

    Columns are numbered from ``first``.

    With ``mix`` the output function of splitmix64 and all arithmetic modulo 2^64:
    ``state = mix(mix(seed + GAMMA) ^ row_key)`` and ``u[j] = (mix(state + (j + 1) * GAMMA) >> 11) * 2**-53``.
    """
    # Not `torch.tensor`, which would wait for the device.
    seed_state = _mix(torch.full((), seed, dtype=torch.int64, device=row_keys.device) + _GAMMA)
    state = _mix(seed_state ^ row_keys.long())
    steps = torch.arange(first + 1, first + count + 1, device=row_keys.device) * _GAMMA
    return _shift_right(_mix(state[:, None] + steps), 11).double() * 2.0**-53


def draw_ids(logits: torch.Tensor, seed: int, row_keys: torch.Tensor, samples: int) -> torch.Tensor:
    """Draw ``samples`` ids per row with replacement from ``softmax(logits)``.

    The inverse of the cumulative distribution in float64, so that neither batch nor device moves a draw.

    Parameters
    ----------
    logits
        ``(n, V)`` float32. Draws mean nothing where a row has NaN or no finite maximum.
    seed
        Seed of the store.
    row_keys
        ``(n,)`` int64, unique per row of the store.
    samples
        Draws per row.

    Returns
    -------
    torch.Tensor
        ``(n, samples)`` int64, in the order drawn.
    """
    weights = (logits.double() - logits.amax(1, keepdim=True)).exp_()
    cumulative = weights.cumsum(1)
    # An id is hit where cumulative[id - 1] <= target < cumulative[id], so an id of weight 0 never is. The target stays
    # below the total: with u at most 1 - 2^-53, u * total is at most half a unit in the last place from the next lower
    # float64.
    target = uniforms(seed, row_keys, samples) * cumulative[:, -1:]
    # Only in a row with NaN is there one at V.
    return torch.searchsorted(cumulative, target, right=True).clamp_(max=logits.shape[1] - 1)


def count_entries(drawn: torch.Tensor, top: torch.Tensor | None, slots: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Join draws and top entries to distinct ids with the number of draws each.

    Parameters
    ----------
    drawn
        ``(n, N)`` int64 ids.
    top
        ``(n, k)`` int64 ids or ``UNUSED``; None where the selection is draws alone.
    slots
        Width of the result, at least the distinct ids of any row.

    Returns
    -------
    ids, counts
        ``(n, slots)`` int64, ascending within a row, then ``UNUSED``; and uint8, 0 for an id that was not drawn.
    """
    entries, weights = drawn, torch.ones_like(drawn)
    if top is not None:
        entries, weights = torch.cat([top, drawn], 1), torch.cat([torch.zeros_like(top), weights], 1)
    after_all_ids = torch.iinfo(torch.int64).max
    entries, order = entries.masked_fill(entries == UNUSED, after_all_ids).sort(dim=1)
    starts = torch.ones_like(entries)
    starts[:, 1:] = entries[:, 1:] != entries[:, :-1]
    slot = starts.cumsum(1) - 1
    ids = torch.full_like(entries, UNUSED).scatter_(1, slot, entries)
    counts = torch.zeros_like(entries).scatter_add_(1, slot, weights.gather(1, order))
    ids.masked_fill_(ids == after_all_ids, UNUSED)
    return ids[:, :slots], counts[:, :slots].to(torch.uint8)


def _mix(z: torch.Tensor) -> torch.Tensor:
    z = (z ^ _shift_right(z, 30)) * _MULTIPLIER_1
    z = (z ^ _shift_right(z, 27)) * _MULTIPLIER_2
    return z ^ _shift_right(z, 31)


def _shift_right(z: torch.Tensor, bits: int) -> torch.Tensor:
    """Shift without sign: torch's own shift of a negative int64 fills with ones."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)
