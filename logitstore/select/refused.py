"""Rows that cannot be stored: found where the logits are, told where somebody can wait for that."""

from __future__ import annotations

import math

import torch

from logitstore.errors import CorruptDataError, InvalidArgumentError

__all__ = ["refusals", "refused_row", "require_labels", "require_sound"]


def require_labels(labels: torch.Tensor, vocab_size: int) -> None:
    """Raise `InvalidArgumentError` for the first label that is neither -1 nor an id; waits for the device."""
    out_of_range = (labels < -1) | (labels >= vocab_size)
    if bool(out_of_range.any()):
        row = int(out_of_range.nonzero()[0])
        raise InvalidArgumentError(
            f"labels must be -1 or below the vocabulary size {vocab_size}, not {int(labels[row])}", row=row
        )


def refusals(
    lse: torch.Tensor,
    stored: torch.Tensor | None = None,
    logits: torch.Tensor | None = None,
    unused: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return ``(n,)`` float32: 0 for a sound row, NaN where its ``lse`` is not finite, else a logit beyond float16.

    Nothing here waits for the device.

    Parameters
    ----------
    lse
        ``(n,)``.
    stored, logits, unused
        ``(n, K)`` raw logits as float16, as they were, and which slots are unused; None where they are not stored.
    """
    found = torch.zeros_like(lse)
    if stored is not None:
        assert logits is not None
        assert unused is not None
        beyond = stored.isinf() & ~unused
        first = beyond.to(torch.uint8).argmax(1, keepdim=True)
        found = torch.where(beyond.any(1), logits.gather(1, first)[:, 0].float(), found)
    return found.masked_fill(~lse.isfinite(), torch.nan)


def refused_row(refused: torch.Tensor, lse: torch.Tensor) -> tuple[int, str] | None:
    """Return the index of the first row that is refused, and why; waits for the device of the tensors."""
    bad = refused != 0  # NaN is not
    if not bool(bad.any()):
        return None
    row = int(bad.nonzero()[0])
    logit = float(refused[row])
    if math.isnan(logit):
        return row, (
            f"logits must be finite or -inf, with a finite maximum; the log-sum-exp of this row is {float(lse[row])}"
        )
    return row, (
        f"a raw logit of {logit} does not fit float16 (up to 65504); store log-probabilities instead (values='logprob')"
    )


def require_sound(refused: torch.Tensor, lse: torch.Tensor) -> None:
    """Raise `CorruptDataError` for the first row that is refused; its ``row`` is the index. See `refused_row`."""
    found = refused_row(refused, lse)
    if found is not None:
        raise CorruptDataError(found[1], row=found[0])
