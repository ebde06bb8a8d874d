"""Rules of thumb for bytes a token, where there is no sample to measure.

An arbitrary set of k of V ids takes log2(C(V, k)) bits, about ``k·(log2(V/k) + 1.44)``. The sets that teachers keep
are not arbitrary, and how far from it differs from one teacher to the next: so there are two figures, the least and the
most that was measured.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from logitstore.audit.planning.codecs import CODECS
from logitstore.audit.planning.line import PlanLine
from logitstore.audit.planning.selections import Top, usual_tops
from logitstore.errors import InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["estimated_lines"]

_WIDEST = 512
"""The largest k that is not a share of the vocabulary."""
_MEASURED = {
    "exact": ((0.70, 1.15), (8.7, 10.0)),
    "compact lossless": ((0.17, 0.50), (8.2, 11.9)),
    "compact max-error 0.25": ((0.17, 0.50), (2.2, 3.6)),
    "compact max-kl 3e-4": ((0.17, 0.50), (3.6, 5.6)),
    "compact max-kl 1e-2": ((0.17, 0.50), (1.8, 3.2)),
}
"""Per codec: bits of an id as a part of those of an arbitrary set, and bits of a value, the least and the most.

Measured on small teachers with vocabularies of 512, 2,048 and 50,257 and k from 5 to 2,513: "Size" and "The compact
codec" of ``benchmarks/RESULTS.md``, and `logitstore.audit.plan` of the same stores."""
_ROW_BITS_OF_EXACT = 40
"""The exact codec's table of rows, for values: what the figures above leave out, up to 5 bytes a row."""
_OTHER_BYTES = (8.0, 10.0)
"""Tokens, lse, label_logprob, mask, documents: 0.52 bits an entry of 128, and more where documents are short."""


def estimated_lines(vocab_size: int, top_k: Sequence[int]) -> list[PlanLine]:
    """Estimate all codecs for numbers of ids to keep, or a ladder of them.

    Raises
    ------
    InvalidArgumentError
        More ids are asked for than the vocabulary has.
    """
    if wrong := [k for k in top_k if not 1 <= k <= vocab_size]:
        raise InvalidArgumentError(f"k is 1 to {vocab_size}, the size of the vocabulary, asked for {wrong[0]}")
    tops = {k: Top(k) for k in top_k} or _ladder(vocab_size)
    return [_line(tops[k], codec.name, codec.flags, vocab_size) for k in sorted(tops) for codec in CODECS]


def _ladder(vocab_size: int) -> dict[int, Top]:
    usual = usual_tops(vocab_size, vocab_size)
    return {k: top for k, top in usual.items() if k <= _WIDEST or top.share is not None} or {
        vocab_size: Top(vocab_size)
    }


def _line(selection: Top, codec: str, flags: str, vocab_size: int) -> PlanLine:
    k = selection.slots
    set_bits = math.log2(vocab_size / k) + 1.44
    parts, values = _MEASURED[codec]
    table = (0, _ROW_BITS_OF_EXACT / k) if codec == "exact" else (0, 0)
    least, most = (
        k * (part * set_bits + value + row) / 8 + other
        for part, value, row, other in zip(parts, values, table, _OTHER_BYTES, strict=True)
    )
    return PlanLine(
        selection=selection.name,
        codec=codec,
        flags=f"{selection.flags} {flags}".strip(),
        entries=k,
        bytes_per_token=most,
        bytes_at_least=least,
    )
