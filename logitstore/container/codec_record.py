"""Which codec a store is written with, as its manifest says it: bounds, codebooks, and what was lost."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from logitstore import layout
from logitstore.container.file_record import FileRecord
from logitstore.errors import CorruptDataError, InvalidArgumentError, UnsupportedVersionError

__all__ = ["CodebookSet", "CodecRecord", "LossRecord"]

DEFAULT_TRAINING_ROWS = 1 << 17
DEFAULT_RETRAIN_ROWS = 1 << 22


@dataclass(frozen=True)
class CodebookSet:
    """Codebooks of the chunks that begin at a row or behind it, up to the next set.

    Attributes
    ----------
    first_row
        That row.
    files
        Array name → the file of its codebook. Empty where these chunks are of the exact codec.
    """

    first_row: int
    files: dict[str, FileRecord]


@dataclass(frozen=True)
class LossRecord:
    """What quantising lost, measured on every row when it was written.

    Attributes
    ----------
    rows, entries
        How many were measured.
    kl_mean, kl_p99, kl_worst
        Generalised KL of a row's kept entries, in nats (`logitstore.codec.compact.generalised_kl`); the 99th percentile
        is rounded up, by at most 5 %. None in a store of logits.
    error_mean, error_worst
        Difference of a value, in nats.
    """

    rows: int
    entries: int
    kl_mean: float | None
    kl_p99: float | None
    kl_worst: float | None
    error_mean: float
    error_worst: float


@dataclass(frozen=True)
class CodecRecord:
    """The codec of a store.

    Attributes
    ----------
    name
        ``"exact"`` or ``"compact"``.
    max_kl, max_error
        Bounds of the ``compact`` codec: generalised KL of a row, error of a value; both None if values are kept bit for
        bit.
    training_rows
        First rows that codebooks are trained on, at most.
    retrain_rows
        After so many rows the codebooks are tried on the rows to come, and replaced where that is worth it.
    codebooks
        In the order of their first rows; empty until the first rows have come.
    loss
        None where nothing is lost, and while the build is running.
    """

    name: str = "exact"
    max_kl: float | None = None
    max_error: float | None = None
    training_rows: int = 0
    retrain_rows: int = 0
    codebooks: tuple[CodebookSet, ...] = ()
    loss: LossRecord | None = None

    @classmethod
    def compact(
        cls,
        *,
        max_kl: float | None = None,
        max_error: float | None = None,
        training_rows: int = DEFAULT_TRAINING_ROWS,
        retrain_rows: int = DEFAULT_RETRAIN_ROWS,
    ) -> CodecRecord:
        """Return the record that a store of the ``compact`` codec starts with; lossless without a bound.

        Raises
        ------
        InvalidArgumentError
            Both bounds are given, a bound is not positive and finite, or the numbers of rows do not fit.
        """
        if max_kl is not None and max_error is not None:
            raise InvalidArgumentError("values are bound by max_kl or by max_error, not by both")
        for name, bound in (("max_kl", max_kl), ("max_error", max_error)):
            if bound is not None and not 0 < bound < math.inf:
                raise InvalidArgumentError(f"{name} is positive and finite, found {bound}")
        if training_rows < 1 or retrain_rows < 1 or retrain_rows & (retrain_rows - 1):
            raise InvalidArgumentError(
                f"training_rows is at least 1, retrain_rows a power of two; found {training_rows}, {retrain_rows}"
            )
        return cls("compact", max_kl, max_error, training_rows, retrain_rows)

    @property
    def is_lossy(self) -> bool:
        """Whether values are quantised."""
        return self.max_kl is not None or self.max_error is not None

    @property
    def beginning(self) -> CodecRecord:
        """The record as it is before the first row."""
        return dataclasses.replace(self, codebooks=(), loss=None)

    @property
    def files(self) -> dict[str, FileRecord]:
        """Files of all codebooks, by name below the store."""
        return {codebook_name(file): file for books in self.codebooks for file in books.files.values()}

    def to_json(self) -> dict[str, Any]:
        """Return what stands in the manifest."""
        head: dict[str, Any] = {"name": f"logitstore.{self.name}", "version": layout.CODEC_VERSION[self.name]}
        if self.name == "exact":
            return head
        sets = [
            {"first_row": books.first_row, "files": {name: vars(file) for name, file in sorted(books.files.items())}}
            for books in self.codebooks
        ]
        return {
            **head,
            "max_kl": self.max_kl,
            "max_error": self.max_error,
            "training_rows": self.training_rows,
            "retrain_rows": self.retrain_rows,
            "codebooks": sets,
            "loss": None if self.loss is None else vars(self.loss),
        }

    @classmethod
    def from_json(cls, content: Any) -> CodecRecord:
        """Check what a manifest says.

        Raises
        ------
        CorruptDataError
            It breaks a rule.
        UnsupportedVersionError
            The codec is not known.
        """
        _require(isinstance(content, dict), "codec is an object", content)
        name, version = content.get("name"), content.get("version")
        known = {f"logitstore.{codec}": number for codec, number in layout.CODEC_VERSION.items()}
        if not isinstance(name, str) or type(version) is not int or known.get(name) != version:
            raise UnsupportedVersionError(f"codec {name!r} version {version!r} is not known to this logitstore")
        if name == "logitstore.exact":
            return cls()
        bounds = {key: _number(content, key) for key in ("max_kl", "max_error")}
        _require(None in bounds.values(), "values have one bound at most", bounds)
        sizes = {key: _whole(content, key) for key in ("training_rows", "retrain_rows")}
        sets = content.get("codebooks")
        _require(isinstance(sets, list), "codebooks is a list", sets)
        books = tuple(_codebook_set(item) for item in sets)
        firsts = [item.first_row for item in books]
        _require(
            firsts == sorted(set(firsts)) and (not firsts or firsts[0] == 0),
            "sets of codebooks ascend from row 0", firsts,
        )  # fmt: skip
        return cls(
            "compact",
            bounds["max_kl"],
            bounds["max_error"],
            **sizes,
            codebooks=books,
            loss=_loss(content.get("loss", "")),
        )


def codebook_name(file: FileRecord) -> str:
    """Return the name of a codebook's file: that of the digest by which chunks speak of it."""
    digest = file.sha256[: 2 * layout.CODEBOOK_DIGEST_BYTES]
    return f"{layout.CODEBOOK_FOLDER}/{digest}{layout.CODEBOOK_SUFFIX}"


def _codebook_set(item: Any) -> CodebookSet:
    _require(isinstance(item, dict) and isinstance(item.get("files"), dict), "a set of codebooks has files", item)
    files = {}
    for name, file in item["files"].items():
        _require(name in ("ids", "logprobs", "logits", "counts"), "an array with a codebook is one of entries", name)
        files[name] = FileRecord.from_json(f"the codebook of {name}", file)
    return CodebookSet(_whole(item, "first_row"), files)


def _loss(content: Any) -> LossRecord | None:
    if content is None:
        return None
    _require(isinstance(content, dict), "loss is an object", content)
    counts = {name: _whole(content, name) for name in ("rows", "entries")}
    numbers = {name: _number(content, name) for name in ("kl_mean", "kl_p99", "kl_worst", "error_mean", "error_worst")}
    for name in ("error_mean", "error_worst"):
        _require(numbers[name] is not None, f"{name} is a number", None)
    return LossRecord(**counts, **numbers)  # type: ignore[arg-type]


def _whole(content: dict[str, Any], name: str) -> int:
    value = content.get(name)
    _require(type(value) is int and 0 <= value < 1 << 63, f"{name} is a whole number", value)
    return int(value)  # type: ignore[arg-type]


def _number(content: dict[str, Any], name: str) -> float | None:
    _require(name in content, f"there is {name}", "nothing")
    value = content[name]
    if value is None:
        return None
    sound = type(value) in (int, float) and 0 <= value < math.inf
    _require(sound, f"{name} is a number that is not negative, or null", value)
    return float(value)


def _require(condition: bool, rule: str, found: object) -> None:
    if not condition:
        raise CorruptDataError(f"{rule}; found {found!r}")
