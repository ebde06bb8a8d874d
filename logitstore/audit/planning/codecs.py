"""Really encodes rows, as a store would hold them, to know what they take."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from logitstore import layout
from logitstore.codec import encode
from logitstore.codec.compact import IdCodec, ValueCodec, generalised_kl, train_ids, train_values
from logitstore.container.fields import row_fields

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from logitstore.codec import Kind

    Columns = dict[str, NDArray[Any]]
    """``ids`` ``(R, K)`` uint32 ascending, ``values`` float16 and maybe ``counts`` uint8, unused slots last."""

__all__ = ["CODECS", "LEAST_TAIL", "CodecSetting", "CompactRows", "Loss", "Size", "exact_size"]

LEAST_TAIL = 1e-4
"""Log-probabilities stored as float16 sum to 1 within about so much."""
_INDEX_ENTRY_BYTES = 16
"""A shard's index has offset and length of each chunk."""


@dataclass(frozen=True)
class CodecSetting:
    """A codec and what it may lose.

    Attributes
    ----------
    name
        What people read.
    flags
        Of ``logitstore build``.
    bounds
        Of `train_values`; None for the ``exact`` codec.
    """

    name: str
    flags: str
    bounds: dict[str, float] | None = None


CODECS = (
    CodecSetting("exact", ""),
    CodecSetting("compact lossless", "--codec compact --lossless", {}),
    CodecSetting("compact max-error 0.25", "--codec compact --max-error 0.25", {"max_error": 0.25}),
    CodecSetting("compact max-kl 3e-4", "--codec compact --max-kl 3e-4", {"max_kl": 3e-4}),
    CodecSetting("compact max-kl 1e-2", "--codec compact --max-kl 1e-2", {"max_kl": 1e-2}),
)
"""What a plan tries, the exact codec first."""


@dataclass(frozen=True)
class Size:
    """Bytes of measured rows.

    Attributes
    ----------
    fields
        Bytes of ``ids``, ``values`` and ``counts``, in chunks as a store has them, their frames included.
    codebooks
        Bytes of all codebooks.
    """

    fields: dict[str, int]
    codebooks: int = 0


@dataclass(frozen=True)
class Loss:
    """What rows lose, in nats, ``(R,)`` each.

    With ``p`` the teacher's probabilities, ``S`` the kept ids, ``a = sum_S p``, ``p̂`` what is stored and
    ``â = sum_S p̂``:

    Attributes
    ----------
    left_out
        ``-log(a)``: KL of the kept entries, renormalised, from the whole teacher; the least that any distribution over
        ``S`` has.
    of_kept
        ``sum_S p·log(p/p̂) − p + p̂``, the generalised KL that bounds of the codec speak of.
    of_tail
        The same of all other ids as one bucket, which holds ``1 − a`` and is stored as ``1 − â``: what the codec does
        to a loss with a tail bucket, besides. Both are at least LEAST_TAIL, which is what float16 can tell.

    Examples
    --------
    >>> loss = Loss.of(np.log([[0.5, 0.3]]), np.log([[0.45, 0.3]]))
    >>> [float(part[0].round(4)) for part in (loss.left_out, loss.of_kept, loss.of_tail)]
    [0.2231, 0.0027, 0.0054]
    """

    left_out: NDArray[np.float64]
    of_kept: NDArray[np.float64]
    of_tail: NDArray[np.float64]

    @classmethod
    def of(cls, values: NDArray[Any], stored: NDArray[Any]) -> Loss:
        """Compare log-probabilities ``(R, K)`` of rows with entries with what is stored of them."""
        kept, kept_stored = (np.exp(np.asarray(array, np.float64)).sum(axis=1) for array in (values, stored))
        tail, tail_stored = np.maximum(1 - kept, LEAST_TAIL), np.maximum(1 - kept_stored, LEAST_TAIL)
        of_tail = tail * np.log(tail / tail_stored) - tail + tail_stored
        # Probabilities rounded to float16 may sum to a little more than 1.
        return cls(np.maximum(-np.log(kept), 0), generalised_kl(values, stored), of_tail)


def exact_size(columns: Columns, vocab_size: int) -> Size:
    """Return what the ``exact`` codec makes of rows."""
    sizes: Counter[str] = Counter()
    for part in _chunks(columns, vocab_size):
        for name, array in part.items():
            kind: Kind = "ids" if name == "ids" else "values"
            sizes[name] += _framed(encode(array, kind, vocab_size=vocab_size if name == "ids" else 0))
    return Size(dict(sizes))


class CompactRows:
    """Rows and a ``compact`` codebook of ids for them, to be coded with one bound of the loss after the other.

    Parameters
    ----------
    training, columns
        Rows to train codebooks on, and others to code.
    vocab_size
        Of the teacher.
    expected_rows
        Rows of the store that is planned, which decides how large codebooks may get.
    progress
        Called with the part of the training that is done, 0 to 1.
    """

    def __init__(
        self,
        training: Columns,
        columns: Columns,
        *,
        vocab_size: int,
        expected_rows: int,
        progress: Callable[[float], None] | None = None,
    ) -> None:
        self._expected = expected_rows
        self._slots = columns["ids"].shape[1]
        book = train_ids(training["ids"], vocab_size=vocab_size, expected_rows=expected_rows, progress=progress)
        self._ids = IdCodec(book, self._slots)
        self._training = _joined([self._arranged(part) for part in _chunks(training, vocab_size)])
        self._parts = [self._arranged(part) for part in _chunks(columns, vocab_size)]
        self._size = {"ids": sum(_framed(self._ids.encode(part["ids"])) for part in self._parts)}
        self._codebooks = len(book.blob)
        if "counts" in columns:
            codec, size = self._trained("counts", {})
            self._codebooks += size
            self._size["counts"] = sum(_framed(codec.encode(part["counts"])) for part in self._parts)

    def coded(self, bounds: dict[str, float]) -> tuple[Size, Columns]:
        """Code the rows with a bound of the loss.

        Returns
        -------
        Size
            What they take.
        dict
            ``ids``, ``values`` and ``stored``, what a reader gives for the values, in the order of the rows' classes.
        """
        codec, book = self._trained("values", bounds)
        size, parts = 0, []
        for part in self._parts:
            chunk = codec.encode(part["values"])
            size += _framed(chunk)
            stored = codec.decode(chunk, len(part["values"]))
            parts.append({"ids": part["ids"], "values": part["values"], "stored": stored})
        return Size({**self._size, "values": size}, self._codebooks + book), _joined(parts)

    def _trained(self, name: str, bounds: dict[str, float]) -> tuple[ValueCodec, int]:
        book = train_values(self._training[name], expected_rows=self._expected, **bounds)
        return ValueCodec(book, self._slots), len(book.blob)

    def _arranged(self, part: Columns) -> Columns:
        arrangement = self._ids.arrange(part["ids"])
        others = {
            name: np.take_along_axis(array, arrangement.order, 1) for name, array in part.items() if name != "ids"
        }
        return {"ids": arrangement.ids, **others}


def _chunks(columns: Columns, vocab_size: int) -> Iterator[Columns]:
    """Cut rows into chunks of as many rows as a store's."""
    rows, slots = columns["ids"].shape
    fields = row_fields(
        slots=slots, vocab_size=vocab_size, values="logprob", counts=False, temperatures=0, rows_per_shard=1 << 30
    )
    step = next(field.chunk_rows for field in fields if field.name == "ids")
    for start in range(0, rows, step):
        yield {name: array[start : start + step] for name, array in columns.items()}


def _joined(parts: list[Columns]) -> Columns:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _framed(chunk: bytes) -> int:
    """Bytes that a chunk takes in a shard file."""
    aligned = -(-len(chunk) // layout.FRAME_ALIGNMENT) * layout.FRAME_ALIGNMENT
    return aligned + layout.FRAME_HEADER_BYTES + _INDEX_ENTRY_BYTES
