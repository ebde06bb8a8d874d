"""A line of a plan."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["PlanLine"]


@dataclass(frozen=True)
class PlanLine:
    """A selection with a codec: what it takes, and what it keeps of the teacher.

    Attributes
    ----------
    selection, codec
        What people read.
    flags
        Of ``logitstore build``.
    entries
        Entries of a row, mean.
    bytes_per_token
        All bytes of the store, codebooks included. Of an estimate: the most to expect.
    bytes_at_least
        Of an estimate: the least to expect; else None.
    bytes_by_part
        Bytes a token of ``ids``, ``values``, ``counts``, ``codebooks`` and ``other`` (tokens, lse, label_logprob, mask,
        documents).
    codebook_bytes
        Bytes of a set of codebooks.
    capped
        Share of rows in which ``--max-k`` ends a top-p selection.
    kept_mass, kept_mass_p1
        Probability that a row keeps: mean, and the 1st percentile of rows. None in an estimate, as all below.
    label_kept
        Share of the labels that are kept.
    kl_left_out, kl_of_kept, kl_of_tail
        Mean over rows, in nats: what the selection leaves out, what the codec loses of the kept entries, and of the sum
        of all others. `logitstore.audit.planning.codecs.Loss` defines them. ``kl_left_out`` is None for random draws,
        which have no bias, only noise.
    """

    selection: str
    codec: str
    flags: str
    entries: float
    bytes_per_token: float
    bytes_at_least: float | None = None
    bytes_by_part: dict[str, float] = field(default_factory=dict)
    codebook_bytes: int | None = None
    capped: float = 0.0
    kept_mass: float | None = None
    kept_mass_p1: float | None = None
    label_kept: float | None = None
    kl_left_out: float | None = None
    kl_of_kept: float | None = None
    kl_of_tail: float | None = None

    @property
    def kl_of_codec(self) -> float | None:
        """What the codec loses in all."""
        return None if self.kl_of_kept is None or self.kl_of_tail is None else self.kl_of_kept + self.kl_of_tail

    @property
    def kl(self) -> float | None:
        """What selection and codec lose together; None where one of them is."""
        codec = self.kl_of_codec
        return None if self.kl_left_out is None or codec is None else self.kl_left_out + codec
