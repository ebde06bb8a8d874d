"""Sampling of the next token, for a teacher that writes: not what is kept of a row, but what follows it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from logitstore.errors import InvalidArgumentError
from logitstore.select.draws import uniforms
from logitstore.select.lse import log_sum_exp
from logitstore.select.refused import refusals, require_sound
from logitstore.select.top import UNUSED, top_p_ids

__all__ = ["Sampling"]

_BELOW_ALL = 1e4
"""Nats below the log-sum-exp at which an id is out of the nucleus: its probability is 0 even in float64."""
_USUAL_NUCLEUS = 1024


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn: a pure function of logits, seed, document and step.

    Attributes
    ----------
    temperature
        0 takes the most probable token, of equals the smallest id. Else draws from ``softmax(logits / temperature)``.
    top_p
        Above 0, at most 1. Draws only from the nucleus: the fewest most probable ids, by the distribution at this
        temperature, that together hold this probability. Ties are cut towards the smaller id.
    seed
        Seed of the draws. They are independent of those of a `Selection` with the same seed.

    Raises
    ------
    InvalidArgumentError
        If a value is out of range.

    Examples
    --------
    >>> logits = torch.tensor([[0.0, 2.0, 1.0], [0.0, 2.0, 2.0]])
    >>> Sampling(temperature=0).choose(logits, torch.tensor([0, 1]), 0)
    tensor([1, 1])
    """

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise InvalidArgumentError(
                f"the temperature of sampling must be a finite number from 0, not {self.temperature}"
            )
        if not 0 < self.top_p <= 1:
            raise InvalidArgumentError(f"the top_p of sampling must be above 0 and at most 1, not {self.top_p}")
        if not -(2**63) <= self.seed < 2**63:
            raise InvalidArgumentError(f"the seed of sampling must be a 64-bit integer, not {self.seed}")

    def choose(self, logits: torch.Tensor, documents: torch.Tensor, step: int) -> torch.Tensor:
        """Draw one token per row.

        Parameters
        ----------
        logits
            ``(n, V)``, any floating dtype.
        documents
            ``(n,)`` int64, numbers of the documents in the store, from 0.
        step
            Tokens drawn for these documents before.

        Returns
        -------
        torch.Tensor
            ``(n,)`` int64 ids.

        Raises
        ------
        CorruptDataError
            If a row holds NaN or +inf or no finite logit at all. Its ``row`` is the index into ``logits``.
        """
        logits = logits.float()
        lse = log_sum_exp(logits)
        require_sound(refusals(lse), lse)
        if self.temperature == 0:
            V = logits.shape[1]
            ids = torch.arange(V, device=logits.device).expand_as(logits)
            return ids.masked_fill(logits < logits.amax(1, keepdim=True), V).amin(1)
        scaled = (logits.double() - logits.amax(1, keepdim=True)) / self.temperature
        weights = scaled.exp()
        if self.top_p < 1:
            weights *= self._nucleus(scaled.float())
        # As selections draw: inverse of the cumulative distribution in float64, so an id of weight 0 is never hit.
        cumulative = weights.cumsum(1)
        target = self._uniforms(documents, step)[:, None] * cumulative[:, -1:]
        return torch.searchsorted(cumulative, target, right=True)[:, 0]

    def _nucleus(self, scaled: torch.Tensor) -> torch.Tensor:
        V = scaled.shape[1]
        lse = log_sum_exp(scaled)
        # Most nuclei are small; where one fills all the room it may be larger than that.
        for room in (min(_USUAL_NUCLEUS, V), V):
            ids = top_p_ids(scaled, lse, self.top_p, room, lse - _BELOW_ALL)
            if room == V or bool((ids == UNUSED).any(1).all()):
                break
        inside = torch.zeros((len(scaled), V + 1), dtype=torch.bool, device=scaled.device)
        # Unused slots point behind the vocabulary.
        return inside.scatter_(1, ids.masked_fill(ids == UNUSED, V), True)[:, :V]

    def _uniforms(self, documents: torch.Tensor, step: int) -> torch.Tensor:
        # Selections draw with keys from 0 up. A step is a column of the document's sequence of numbers.
        return uniforms(self.seed, -1 - documents, 1, first=step)[:, 0]
