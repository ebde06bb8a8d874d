"""Which codebooks a store is written with: trained on its first rows, and tried again on later ones.

Every ``retrain_rows`` rows documents are held back until there are ``training_rows`` of them. Then the codebooks in
use are tried on these, and new ones are trained if the old ones have got worse. What is chosen follows from the rows
alone, so that a build which was killed and resumed chooses the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from logitstore import layout
from logitstore.codec.compact import IdCodec, parse, train_ids, train_values
from logitstore.container.codebooks import StoreBooks
from logitstore.container.codec_record import CodebookSet, codebook_name
from logitstore.container.durable import write_atomically
from logitstore.container.file_record import FileRecord
from logitstore.container.files import LocalFiles
from logitstore.container.row_coder import BookCodecs, array_of
from logitstore.errors import CorruptDataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from logitstore.codec.compact import Codebook
    from logitstore.container.manifest import Manifest
    from logitstore.container.row_coder import RowCoder
    from logitstore.container.sink import Entry
    from logitstore.stopwatch import Stopwatch

__all__ = ["BookChooser"]

_TRAINED_ENTRIES = 1 << 25
"""Entries of the rows that are held back: training takes no more of them."""
_TRIED_ROWS = 4096
_WORSE = 1.05
"""Codebooks are replaced only where they cost so much more than on the rows they were chosen for."""


@dataclass(frozen=True)
class _Chosen:
    """A set of codebooks, and how many bytes a row took with it when it was chosen."""

    books: CodebookSet
    row_bytes: float


def _chosen_of(item: dict[str, Any]) -> _Chosen:
    """Read what `BookChooser.state` has written of a set."""
    try:
        files = {name: FileRecord.from_json(f"the codebook of {name}", file) for name, file in item["files"].items()}
        return _Chosen(CodebookSet(int(item["first_row"]), files), float(item["row_bytes"]))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CorruptDataError(f"the progress record's codebooks are broken: {error}") from None


class BookChooser:
    """Holds documents back until it is known what they are coded with.

    Parameters
    ----------
    path, manifest
        The store that is written.
    coder
        Gets the codebooks.
    committed_rows, state
        What an interrupted build had committed, and what `state` was then.
    total_rows
        Rows of the whole store, where they are known: codebooks have to earn their bytes.
    given
        Codebooks to use instead of training any; see `StoreWriter`.
    on_training
        Called with the part of a training that is done, 0 to 1, by the thread that hands documents over.
    watch
        Gets the seconds of ``train``.
    """

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        coder: RowCoder,
        *,
        committed_rows: int,
        state: list[dict[str, Any]],
        total_rows: int | None,
        given: Sequence[tuple[CodebookSet, dict[str, Codebook]]] | None,
        on_training: Callable[[float], None],
        watch: Stopwatch,
    ) -> None:
        self._watch = watch
        self._path = path
        self._manifest = manifest
        self._record = manifest.codec
        self._coder = coder
        self._total_rows = total_rows
        self._on_training = on_training
        self._training_rows = min(
            self._record.training_rows, self._record.retrain_rows, max(1, _TRAINED_ENTRIES // manifest.slots)
        )
        self._chosen: list[_Chosen] = []
        self._current: BookCodecs | None = None
        self._held: list[Entry] = []
        self._sampled = 0
        # Rows of what comes behind a boundary are committed only after the choice was made.
        self._boundary: int | None = -(-committed_rows // self._record.retrain_rows) * self._record.retrain_rows
        if given is not None:
            self._boundary = None
            for books, parsed in given:
                self._write(parsed)
                self._use(books, parsed, 0.0)
            return
        source = StoreBooks(LocalFiles(path), manifest)
        for chosen in map(_chosen_of, state):
            if chosen.books.first_row < committed_rows:
                parsed = {name: source.book(name, file) for name, file in chosen.books.files.items()}
                self._use(chosen.books, parsed, chosen.row_bytes)

    @property
    def sets(self) -> tuple[CodebookSet, ...]:
        """What was chosen so far."""
        return tuple(chosen.books for chosen in self._chosen)

    @property
    def state(self) -> list[dict[str, Any]]:
        """What was chosen so far, for ``progress.json``."""
        return [
            {
                "first_row": chosen.books.first_row,
                "files": {name: vars(file) for name, file in chosen.books.files.items()},
                "row_bytes": chosen.row_bytes,
            }
            for chosen in self._chosen
        ]

    def take(self, entry: Entry) -> Iterator[Entry]:
        """Take a document; give those that can be coded now, in order."""
        end = entry.first_row + len(entry.rows)
        if self._boundary is None or (not self._held and end <= self._boundary):
            yield entry
            return
        self._held.append(entry)
        if entry.first_row >= self._boundary:
            self._sampled += len(entry.rows)
        if self._sampled >= self._training_rows:
            yield from self._release(last=False)

    def flush(self) -> Iterator[Entry]:
        """Give the documents that are left: there will be no more."""
        while self._held:
            yield from self._release(last=True)

    def _release(self, *, last: bool) -> Iterator[Entry]:
        assert self._boundary is not None
        with self._watch.measure("train"):
            self._choose(self._boundary, self._sample(), last=last)
        self._boundary += self._record.retrain_rows
        held, self._held, self._sampled = self._held, [], 0
        for entry in held:
            yield from self.take(entry)

    def _sample(self) -> dict[str, NDArray[Any]]:
        """Return the rows that codebooks are trained on, by array."""
        assert self._boundary is not None
        rows = [entry.rows for entry in self._held if entry.first_row >= self._boundary]
        names = [field.name for field in self._coder.fields]
        if not rows:
            return {field.name: field.unused_rows(0) for field in self._coder.fields}
        joined = {name: np.concatenate([array_of(part, name) for part in rows]) for name in names}
        filled = joined["ids"][: self._training_rows, 0] != layout.UNUSED_ID
        return {name: array[: self._training_rows][filled] for name, array in joined.items()}

    def _choose(self, boundary: int, sample: dict[str, NDArray[Any]], *, last: bool) -> None:
        rows = len(sample["ids"])
        # The last rows try what the others have trained.
        split = max(rows - _TRIED_ROWS, rows * 3 // 4)
        tried = {name: array[split:] for name, array in sample.items()}
        before = self._chosen[-1] if self._chosen else None
        now = self._row_bytes(self._current, tried) if rows else 0.0
        if before is not None and (not rows or now <= _WORSE * before.row_bytes):
            return
        if not rows or self._manifest.vocab_size > layout.CODEBOOK_MAX_LISTED:
            self._use(CodebookSet(boundary, {}), {}, now)
            return
        expected = self._expected_rows(boundary, rows, last=last)
        books = self._train({name: array[: max(1, split)] for name, array in sample.items()}, expected)
        codecs = BookCodecs(books, self._manifest.slots)
        trained = self._row_bytes(codecs, tried)
        size = sum(len(book.blob) for book in books.values())
        exact = self._row_bytes(None, tried)
        if trained * expected + size < min(now if before else exact, exact) * expected:
            self._write(books)
            files = {name: FileRecord.of_bytes(book.blob) for name, book in books.items()}
            self._use(CodebookSet(boundary, files), books, trained)
        elif before is None or (self._current is not None and exact < now):
            self._use(CodebookSet(boundary, {}), {}, exact)

    def _expected_rows(self, boundary: int, rows: int, *, last: bool) -> int:
        """Rows that the codebooks will be used for: as far as is known, or else a few times what was held back."""
        if self._total_rows is not None:
            return max(rows, min(self._total_rows - boundary, self._record.retrain_rows))
        return rows if last else 4 * rows

    def _train(self, sample: dict[str, NDArray[Any]], expected_rows: int) -> dict[str, Codebook]:
        slots = self._manifest.slots
        book = train_ids(
            sample["ids"], vocab_size=self._manifest.vocab_size, expected_rows=expected_rows,
            progress=self._on_training,
        )  # fmt: skip
        rows = IdCodec(book, slots).arrange(np.ascontiguousarray(sample["ids"]))
        books: dict[str, Codebook] = {"ids": book}
        for name, array in sample.items():
            if name != "ids":
                bounds = {"max_kl": self._record.max_kl, "max_error": self._record.max_error}
                books[name] = train_values(
                    rows.take(np.ascontiguousarray(array)), expected_rows=expected_rows,
                    **({} if name == "counts" else bounds),
                )  # fmt: skip
        # As a reader will get them: a codebook that cannot be read back must not be used.
        return {name: parse(book.blob) for name, book in books.items()}

    def _row_bytes(self, codecs: BookCodecs | None, rows: dict[str, NDArray[Any]]) -> float:
        """Bytes of a row with these codebooks, or with the exact codec."""
        count, step = len(rows["ids"]), self._coder.fields[0].chunk_rows
        total = 0
        for start in range(0, count, step):
            part = {name: array[start : start + step] for name, array in rows.items()}
            if codecs is None:
                total += sum(len(field.encode_chunk(part[field.name])) for field in self._coder.fields)
            else:
                total += sum(map(len, codecs.encode(part).chunks.values()))
        return total / count

    def _write(self, books: dict[str, Codebook]) -> None:
        """Make codebooks durable before anything that needs them is."""
        for book in books.values():
            path = self._path / codebook_name(FileRecord.of_bytes(book.blob))
            path.parent.mkdir(exist_ok=True)
            write_atomically(path, book.blob)

    def _use(self, books: CodebookSet, parsed: dict[str, Codebook], row_bytes: float) -> None:
        self._chosen.append(_Chosen(books, row_bytes))
        self._current = BookCodecs(parsed, self._manifest.slots) if parsed else None
        self._coder.use(books.first_row, self._current)

    def clear_away(self) -> None:
        """Remove codebooks that no set speaks of: chosen by an earlier run that did not come to use them."""
        folder = self._path / layout.CODEBOOK_FOLDER
        if not folder.is_dir():
            return
        known = {self._path / codebook_name(file) for books in self.sets for file in books.files.values()}
        for path in folder.iterdir():
            if path not in known:
                path.unlink()
        if not known:
            folder.rmdir()
