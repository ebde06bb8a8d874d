from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from logitstore.errors import InvalidArgumentError

__all__ = ["MAX_SAMPLES", "Selection"]

MAX_SAMPLES = 255
"""Draws per row at most: the count of one id is stored as a uint8, and all draws may hit the same id."""


@dataclass(frozen=True)
class Selection:
    """Which entries of a row are kept. Exactly one of five kinds.

    ==========================  ===========================================================================
    arguments                   kept entries
    ==========================  ===========================================================================
    ``top_k``                   the ``top_k`` largest logits
    ``top_fraction``            the largest ``top_fraction`` of the vocabulary (0.05 keeps 5 %)
    ``top_p``, ``max_k``        the fewest largest logits that together hold probability ``top_p``, at most ``max_k``
    ``samples``                 the ids of ``samples`` random draws from the softmax, with the draws per id
    ``top_k``, ``samples``      the union of both; an id that was not drawn counts 0
    ==========================  ===========================================================================

    Ties are cut the same way everywhere: larger logit first, then smaller id.

    Attributes
    ----------
    top_k
        At least 1, at most the vocabulary size.
    top_fraction
        Above 0, at most 1. Rounds to the nearest number of ids, halves up, at least one.
    top_p
        Above 0, at most 1. A probability over the whole vocabulary.
    max_k
        Cap on the entries of a row; required by ``top_p`` and meaningless without it.
    samples
        1 to 255 draws with replacement.
    seed
        Seed of the draws. A draw depends on the seed, the key of its row and its number within the row alone.

    Raises
    ------
    InvalidArgumentError
        If a value is out of its range or the combination is none of the five.

    Examples
    --------
    >>> Selection(top_fraction=0.05).slots(50_257)
    2513
    >>> Selection(top_k=8, samples=50).to_json()
    {'top_k': 8, 'samples': 50, 'seed': 0}
    """

    top_k: int | None = None
    top_fraction: float | None = None
    top_p: float | None = None
    max_k: int | None = None
    samples: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        _check_integer("top_k", self.top_k, 1, None)
        _check_integer("max_k", self.max_k, 1, None)
        _check_integer("samples", self.samples, 1, MAX_SAMPLES)
        _check_integer("seed", self.seed, -(2**63), 2**63 - 1)
        _check_share("top_fraction", self.top_fraction)
        _check_share("top_p", self.top_p)
        if (self.top_p is None) != (self.max_k is None):
            raise InvalidArgumentError(
                f"top_p and max_k belong together: top_p is {self.top_p}, max_k is {self.max_k}"
                " (max_k caps the entries of a row that is nearly uniform)"
            )
        kinds = ("top_k", "top_fraction", "top_p", "samples")
        given = {name for name in kinds if getattr(self, name) is not None}
        if len(given) != 1 and given != {"top_k", "samples"}:
            raise InvalidArgumentError(
                "a selection is one of top_k, top_fraction, top_p with max_k, samples, or top_k with samples; "
                f"got {', '.join(sorted(given)) or 'none of them'}"
            )

    def top_entries(self, vocab_size: int) -> int:
        """How many of the largest logits are candidates of a row; 0 where the selection is draws alone."""
        if self.top_k is not None:
            if self.top_k > vocab_size:
                raise InvalidArgumentError(f"top_k is {self.top_k}, but the vocabulary has {vocab_size} ids")
            return self.top_k
        if self.top_fraction is not None:
            return max(1, math.floor(self.top_fraction * vocab_size + 0.5))
        if self.max_k is not None:
            return min(self.max_k, vocab_size)
        return 0

    def slots(self, vocab_size: int) -> int:
        """Return the slots of a row, ``K``: the most entries that it can keep."""
        return min(self.top_entries(vocab_size) + (self.samples or 0), vocab_size)

    def to_json(self) -> dict[str, int | float]:
        """Return the fields that are set, for the manifest; the seed only where there are draws."""
        fields = {name: value for name, value in asdict(self).items() if value is not None}
        if self.samples is None:
            del fields["seed"]
        return fields

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Selection:
        """Rebuild a selection from what `to_json` returned; raise `InvalidArgumentError` for an unknown field."""
        unknown = sorted(set(fields) - set(cls.__dataclass_fields__))
        if unknown:
            raise InvalidArgumentError(f"a selection has no field {', '.join(unknown)}")
        return cls(**fields)


def _check_integer(name: str, value: object, least: int, most: int | None) -> None:
    if value is None:
        return
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidArgumentError(f"{name} must be an integer, not {value!r}")
    if value < least or (most is not None and value > most):
        limits = f"at least {least}" if most is None else f"{least} to {most}"
        raise InvalidArgumentError(f"{name} must be {limits}, not {value}")


def _check_share(name: str, value: object) -> None:
    if value is None:
        return
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= 1:
        raise InvalidArgumentError(f"{name} must be above 0 and at most 1, not {value!r}")
