"""The largest logits of every row, with ties cut towards the smaller id."""

from __future__ import annotations

import numpy as np
import torch

__all__ = ["UNUSED", "nucleus_ids", "top_k_ids", "top_p_ids"]

UNUSED = -1
"""Id in a slot that holds no entry. As uint32 it is the stored marker 0xFFFFFFFF."""


def top_k_ids(logits: torch.Tensor, k: int, floor: torch.Tensor) -> torch.Tensor:
    """Return the ids of the ``k`` largest logits of each row that are at least the row's ``floor``.

    Parameters
    ----------
    logits
        ``(n, V)`` float32. Of a row with NaN, nothing is returned.
    k
        1 to ``V``.
    floor
        ``(n,)`` float32. Keeps rows of masked-out logits (all ``-inf``, or all one huge negative number) from being
        one V-wide tie.

    Returns
    -------
    torch.Tensor
        ``(n, k)`` int64, ascending within a row, then ``UNUSED``.
    """
    n, V = logits.shape
    cut = torch.maximum(_kth_largest(logits, k), floor)
    flat = _flat_positions_at_least(logits, cut)
    first = torch.arange(n + 1, device=logits.device) * V
    counts = torch.searchsorted(flat, first).diff()
    if logits.device.type == "cpu" and bool((counts == k).all()):
        return flat.view(n, k) - first[:-1, None]

    # Some row has a tie at its cut, or fewer than k entries above the floor; to hear whether it is so would take longer
    # on a device. Everything from here on is as wide as the entries found, not as the vocabulary.
    rows = torch.repeat_interleave(torch.arange(n, device=logits.device), counts, output_size=len(flat))
    tied = logits.view(-1)[flat] == cut[rows]
    tied_per_row = torch.zeros_like(counts).scatter_add_(0, rows, tied.long())
    room = k - (counts - tied_per_row)
    rank = tied.long().cumsum(0) - 1 - (tied_per_row.cumsum(0) - tied_per_row)[rows]
    kept = ~tied | (rank < room[rows])
    kept_per_row = counts.clamp(max=k)
    slot = kept.long().cumsum(0) - 1 - (kept_per_row.cumsum(0) - kept_per_row)[rows]
    # What is not kept goes to a slot that is cut off: to leave it out, the device would have to say how much it is.
    ids = torch.full((n, k + 1), UNUSED, dtype=torch.int64, device=logits.device)
    ids.view(-1).scatter_(0, rows * (k + 1) + slot.masked_fill(~kept, k), flat - rows * V)
    return ids[:, :k]


def top_p_ids(logits: torch.Tensor, lse: torch.Tensor, top_p: float, max_k: int, floor: torch.Tensor) -> torch.Tensor:
    """Return the fewest largest logits of each row that hold probability ``top_p``: one at least, ``max_k`` at most.

    Entries are taken in the order (larger logit, smaller id) until their probabilities over the whole vocabulary,
    float32 values added up in float64 in that order, reach ``top_p``.

    Returns
    -------
    torch.Tensor
        ``(n, max_k)`` int64, ascending within a row; ``UNUSED`` in between where an entry was not taken.
    """
    return nucleus_ids(logits, top_k_ids(logits, max_k, floor), lse, top_p)


def nucleus_ids(logits: torch.Tensor, ids: torch.Tensor, lse: torch.Tensor, top_p: float) -> torch.Tensor:
    """Return ``(n, max_k)`` int64 ids of the largest logits with those not needed for ``top_p`` made ``UNUSED``."""
    candidates = logits.gather(1, ids.clamp(min=0)).float().masked_fill_(ids == UNUSED, -torch.inf)
    ordered, order = candidates.sort(dim=1, descending=True, stable=True)
    reached = (ordered - lse[:, None]).exp().double().cumsum(1)
    taken = torch.ones_like(ids, dtype=torch.bool)
    taken[:, 1:] = reached[:, :-1] < top_p
    return ids.masked_fill_(~torch.zeros_like(taken).scatter_(1, order, taken), UNUSED)


def _kth_largest(logits: torch.Tensor, k: int) -> torch.Tensor:
    if logits.device.type == "cpu":
        # Same value, a fraction of the time of topk on a CPU, and independent of k.
        V = logits.shape[1]
        return torch.from_numpy(np.partition(logits.numpy(), V - k, axis=1)[:, V - k].copy())
    return logits.topk(k, dim=1, sorted=False).values.amin(1)


def _flat_positions_at_least(logits: torch.Tensor, cut: torch.Tensor) -> torch.Tensor:
    """Return the positions in ``logits.flatten()``, ascending, that are at least the cut of their row."""
    if logits.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(logits.numpy() >= cut.numpy()[:, None]))
    return (logits >= cut[:, None]).view(-1).nonzero().view(-1)
