from __future__ import annotations

import torch

__all__ = ["log_sum_exp"]

_SUM_WIDTH = 128


def log_sum_exp(logits: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Return ``log(sum(exp(logits / temperature)))`` per row.

    It is summed in pieces of fixed width: a kernel's order of summation may depend on the number of rows, this one does
    not. At temperature 1 it is at least the row's maximum, also after rounding, so no log-probability is above 0.

    Parameters
    ----------
    logits
        ``(n, V)`` float32.
    temperature
        Above 0.

    Returns
    -------
    torch.Tensor
        ``(n,)`` float32, not finite for a row with NaN or +inf or without a finite logit.
    """
    largest = logits.amax(1, keepdim=True)
    weights = logits - largest
    if temperature != 1.0:
        weights /= temperature
    weights.exp_()
    n, V = weights.shape
    pieces = V // _SUM_WIDTH
    whole = weights[:, : pieces * _SUM_WIDTH].view(n, pieces, _SUM_WIDTH).sum(2).sum(1)
    total = whole + weights[:, pieces * _SUM_WIDTH :].sum(1)
    return torch.add(largest.squeeze(1) / temperature, total.log())
