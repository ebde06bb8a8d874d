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

__all__ = ["CODECS", "CodecSetting", "CompactRows", "Loss", "Size", "exact_size", "kl_from_teacher"]

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

    Attributes
    ----------
    left_out
        What a selection leaves out: that of entries stored as they are.
    of_codec
        Generalised KL of the kept entries, which bounds of the codec speak of.
    from_teacher
        Both together. See `kl_from_teacher`.
    """

    left_out: NDArray[np.float64]
    of_codec: NDArray[np.float64]
    from_teacher: NDArray[np.float64]

    @classmethod
    def of(cls, values: NDArray[Any], stored: NDArray[Any]) -> Loss:
        """Compare log-probabilities ``(R, K)`` with what is stored of them."""
        return cls(kl_from_teacher(values, values), generalised_kl(values, stored), kl_from_teacher(values, stored))


def kl_from_teacher(values: NDArray[Any], stored: NDArray[Any]) -> NDArray[np.float64]:
    """Return the KL of stored entries, renormalised, from the whole teacher, ``(R,)``.

    With ``p`` the teacher's probabilities, ``p̂`` the stored ones and ``q = p̂ / sum(p̂)`` it is ``sum(q·log(q/p))``,
    which for entries stored as they are is ``-log(sum(p))``: the least that any distribution over the kept ids can
    have. (In the other direction it is infinite for all that leave ids out.)

    Parameters
    ----------
    values, stored
        ``(R, K)`` log-probabilities over the whole vocabulary; unused slots hold -inf in both. 0 for a row without
        entries.

    Examples
    --------
    >>> kl_from_teacher(np.log([[0.5, 0.3]]), np.log([[0.5, 0.3]])).round(4).tolist()
    [0.2231]
    """
    values, stored = np.asarray(values, np.float64), np.asarray(stored, np.float64)
    used = values > -np.inf
    p_stored = np.where(used, np.exp(stored), 0)
    total = p_stored.sum(axis=-1)
    some = total > 0
    total = np.where(some, total, 1)
    difference = np.subtract(stored, values, out=np.zeros_like(values), where=used)
    # Probabilities rounded to float16 may sum to a little more than 1.
    return np.where(some, np.maximum((p_stored * difference).sum(axis=-1) / total - np.log(total), 0), 0)


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
