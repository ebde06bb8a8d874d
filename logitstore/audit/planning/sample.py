"""The rows of a sample store that a plan looks at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from logitstore import layout
from logitstore.errors import InvalidArgumentError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from logitstore.reader import Store

__all__ = ["NO_LABEL", "SampleRows", "read_sample"]

MAX_ENTRIES = 1 << 25
"""A plan looks at no more entries than these: about 2 GB of memory at the most."""
NO_LABEL = -2
_NOT_KEPT = -1
_PIECE_ROWS = 512


@dataclass(frozen=True)
class SampleRows:
    """Rows of a sample, the first three quarters for training.

    Attributes
    ----------
    ids
        ``(R, K)`` uint32, most probable first, unused slots last.
    logprobs
        ``(R, K)`` float16.
    labels
        ``(R,)`` int64: at which place the label is; -1 where it is not kept, -2 where there is none.
    vocab_size
        Of the teacher.
    training
        Rows that codebooks are trained on; the others are measured.
    pieces
        Places of the sample that the rows are from.
    """

    ids: NDArray[np.uint32]
    logprobs: NDArray[np.float16]
    labels: NDArray[np.int64]
    vocab_size: int
    training: int
    pieces: int

    @property
    def used(self) -> NDArray[np.bool_]:
        """``(R, K)``, true where a slot holds an entry."""
        return np.asarray(self.ids != layout.UNUSED_ID)


def read_sample(store: Store, most_rows: int) -> SampleRows:
    """Read rows of a store opened by falling logit: all, or pieces that are spread evenly over it.

    Raises
    ------
    InvalidArgumentError
        The store has fewer than 8 rows, keeps nothing but random draws, or holds quantised values.
    """
    manifest = store.manifest
    slots = manifest.selection.get("top_k", 0) if manifest.has_counts else store.k_max
    if not slots:
        raise InvalidArgumentError(
            "a sample of random draws does not say which ids are the most probable: build it with --top-k, "
            "--top-fraction or --top-p", path=store.path,
        )  # fmt: skip
    if manifest.bound.error:
        raise InvalidArgumentError(
            "the values of this store have been quantised, but what a codec loses is measured on the teacher's own: "
            "build the sample with the exact codec", path=store.path,
        )  # fmt: skip
    if manifest.rows < 8:
        raise InvalidArgumentError(f"a sample has 8 rows at least, found {manifest.rows}", path=store.path)
    most = max(8, min(most_rows, MAX_ENTRIES // slots))
    size = min(manifest.rows if manifest.rows <= most else _PIECE_ROWS, most)
    pieces = max(1, min(manifest.rows, most) // size)
    starts = np.linspace(0, manifest.rows - size, pieces).astype(int).tolist()
    parts = [_read(store, start, start + size, slots) for start in starts]
    ids, logprobs, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    if not (ids[:, 0] != layout.UNUSED_ID).any():
        raise InvalidArgumentError("none of the sample's rows holds entries", path=store.path)
    return SampleRows(ids, logprobs, labels, store.vocab_size, len(ids) * 3 // 4, pieces)


def _read(store: Store, start: int, stop: int, slots: int) -> tuple[NDArray[Any], ...]:
    rows = store.read(start, stop, ["ids", "values", "lse", "label_logprob"])
    tokens = store.read_field("tokens", start, min(stop + 1, len(store.rows)))
    ids = rows.ids[:, :slots]
    logprobs = np.where(ids == layout.UNUSED_ID, -np.inf, rows.logprobs[:, :slots]).astype(np.float16)
    labels = np.append(tokens[1:], np.full(stop - start + 1 - len(tokens), layout.UNUSED_ID, np.uint32))
    at_label = (ids == labels[:, None]) & (ids != layout.UNUSED_ID)
    places = np.where(at_label.any(axis=1), at_label.argmax(axis=1), _NOT_KEPT)
    return ids, logprobs, np.where(np.isnan(rows.label_logprob), NO_LABEL, places)
