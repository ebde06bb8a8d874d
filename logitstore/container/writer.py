"""Writing a store: documents go in, whole shards come out, each committed before the next one starts.

A commit is: sync and rename the shard's files, sync their directories, sync ``documents.jsonl``, append the record to
``shards.jsonl`` and sync it, replace ``progress.json``. The manifest that says ``complete`` comes last of all. How a
shard looks is the container's affair; see `ShardSink`.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from logitstore import layout
from logitstore.container.book_choice import BookChooser
from logitstore.container.durable import canonical_json, cut_file, sync_directory, sync_file, write_atomically
from logitstore.container.file_record import FileRecord
from logitstore.container.invariants import EXACT, Bound, Violation, check_rows
from logitstore.container.loss_meter import LossMeter
from logitstore.container.manifest import Manifest, is_store
from logitstore.container.progress import PROGRESS_FILE, Progress
from logitstore.container.row_coder import RowCoder
from logitstore.container.sink import Commit, Entry, ShardSink
from logitstore.container.tar_sink import TarSink
from logitstore.container.zarr_sink import ZarrSink
from logitstore.errors import CorruptDataError, InvalidArgumentError
from logitstore.records import RowsCodedElsewhere
from logitstore.stopwatch import Stopwatch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from logitstore.codec.compact import Codebook
    from logitstore.container.codec_record import CodebookSet, CodecRecord
    from logitstore.records import RowBatch, TokenDocument

__all__ = ["DOCUMENTS_FILE", "StoreWriter", "prepare_directory", "refuse_directory"]

DOCUMENTS_FILE = "documents.jsonl"
_DEBRIS = {f".{layout.MANIFEST_FILE}.partial"}
"""All that a crash can leave of a store before it has a manifest."""


def refuse_directory(path: Path, *, overwrite: bool = False) -> None:
    """Raise what `prepare_directory` would raise, and touch nothing.

    Raises
    ------
    InvalidArgumentError
        There is something at ``path``: a store and ``overwrite`` is False, or anything else.
    """
    if not path.exists() or (path.is_dir() and all(entry.name in _DEBRIS for entry in path.iterdir())):
        return
    if not is_store(path):
        raise InvalidArgumentError("the path exists and is not a logitstore; choose another one", path=path)
    if not overwrite:
        raise InvalidArgumentError("the store exists; ask for resume, or for overwrite to replace it", path=path)


def prepare_directory(path: Path, *, overwrite: bool = False) -> None:
    """Make ``path`` an empty directory for a new store. Errors as `refuse_directory`."""
    refuse_directory(path, overwrite=overwrite)
    if path.exists():
        shutil.rmtree(path)
    path.mkdir(parents=True)


class StoreWriter:
    """Write documents and their rows, in order.

    Parameters
    ----------
    path
        Directory of the store, made by `prepare_directory`, or one with an unfinished store to go on with.
    manifest
        What the store is. Its totals are ignored.
    workers
        Threads that encode.
    holds_maximum
        Whether every row keeps its most probable id; see `check_rows`.
    watch
        Gets the seconds of ``encode``, ``check``, ``train`` and ``write``.
    total_rows
        Rows the store will have, where that is known; codebooks of the ``compact`` codec are sized by it.
    codebooks
        Sets of codebooks to use instead of training any, and the codebooks of each by array: those of the store whose
        rows are written, which then get the same bytes. What the manifest says of losses stays as it is.
    bound
        Of the values that are appended, if they have been quantised before.
    coded
        Chunks that are encoded elsewhere, see `ZarrSink` and `TarSink`; rows are then `RowsCodedElsewhere`, and their
        entries have been checked.

    Attributes
    ----------
    on_training
        Called with the part of a training of codebooks that is done, 0 to 1, by the thread that appends; None at first.

    Examples
    --------
    >>> prepare_directory(path)                                    # doctest: +SKIP
    >>> with StoreWriter(path, manifest) as writer:                # doctest: +SKIP
    ...     for document, rows in teacher_says(corpus):
    ...         writer.append(document, rows)
    ...     writer.finish()
    """

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        *,
        workers: int = 2,
        holds_maximum: bool = True,
        watch: Stopwatch | None = None,
        total_rows: int | None = None,
        codebooks: Sequence[tuple[CodebookSet, dict[str, Codebook]]] | None = None,
        bound: Bound = EXACT,
        coded: Mapping[str, deque[bytes]] | None = None,
    ) -> None:
        self.path = path
        self.manifest = manifest
        self.on_training: Callable[[float], None] | None = None
        self._holds_maximum = holds_maximum
        self._bound = bound
        self._watch = watch or Stopwatch()
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="logitstore-encode")
        backlog = 2 * workers
        coder = RowCoder(manifest.row_fields)
        self._sink: ShardSink = (
            TarSink(path, manifest, coder, self._pool, backlog, self._watch, coded)
            if manifest.container == "webdataset"
            else ZarrSink(path, path / DOCUMENTS_FILE, manifest, coder, self._pool, backlog, self._watch, coded)
        )
        self.progress = Progress.read(path)
        # First of all, so that whatever is interrupted from here on is an unfinished store and says so.
        write_atomically(path / layout.MANIFEST_FILE, dataclasses.replace(manifest, complete=False).to_json())
        self._measures_loss = manifest.codec.is_lossy and codebooks is None
        self._loss = LossMeter.from_json(self.progress.loss) if self.progress.loss else LossMeter()
        self._chooser = None
        if manifest.codec.name == "compact":
            self._chooser = BookChooser(
                path, manifest, coder, committed_rows=self.progress.rows, state=self.progress.codebooks or [],
                total_rows=total_rows, given=codebooks, on_training=self._training, watch=self._watch,
            )  # fmt: skip
        self._start_files()
        self._checks: deque[tuple[int, Future[list[Violation]]]] = deque()
        self._row = self.progress.rows
        self._document = self.progress.documents
        self.rewound_rows = self._row
        self._entries = self._entries_before = self.progress.entries

    def _start_files(self) -> None:
        cut_file(self.path / DOCUMENTS_FILE, self.progress.documents_bytes)
        cut_file(self.path / layout.SHARD_TABLE_FILE, self.progress.shards * self._sink.record_bytes)
        self._sink.start(self.progress)
        self._documents = (self.path / DOCUMENTS_FILE).open("ab")
        self._table = (self.path / layout.SHARD_TABLE_FILE).open("ab")

    def rewind(self, document: int, row: int) -> None:
        """Go back to a document at or before the committed rows; what is appended again is passed over.

        A producer that resumes at its own cursor says with this where that is.
        """
        if document > self.progress.documents or row > self.progress.rows:
            raise InvalidArgumentError(
                f"cannot rewind to document {document}, row {row}: only {self.progress.documents} documents and "
                f"{self.progress.rows} rows are committed",
                path=self.path,
            )
        self._document, self._row = document, row
        self.rewound_rows = row

    @property
    def rows(self) -> int:
        """Rows that were appended or passed over so far."""
        return self._row

    @property
    def new_entries(self) -> int:
        """Entries appended since the writer was made."""
        return self._entries + self._sink.open_entries - self._entries_before

    @property
    def new_bytes(self) -> int:
        """Bytes of chunks written since the writer was made."""
        return self._sink.bytes_written

    def is_committed(self, rows: int) -> bool:
        """Whether the next ``rows`` rows are on disk already."""
        return self._row + rows <= self.progress.rows

    def append(self, document: TokenDocument, rows: RowBatch | None, cursor: dict[str, Any] | None = None) -> None:
        """Store a document.

        Parameters
        ----------
        document
            What the teacher read.
        rows
            What it said, one row per token. None is allowed where all rows are committed already.
        cursor
            Where the producer would have to start again to give this document once more; kept in ``progress.json``.
        """
        length = len(document.tokens)
        if not length:
            raise InvalidArgumentError(f"document {document.key!r} has no token", path=self.path, row=self._row)
        if rows is None:
            if not self.is_committed(length):
                raise InvalidArgumentError(f"document {document.key!r} needs its rows", path=self.path, row=self._row)
        elif len(rows) != length or not np.array_equal(rows.tokens, document.tokens):
            raise InvalidArgumentError(
                f"document {document.key!r} has {length} tokens, the rows speak of {len(rows)} others or as many",
                path=self.path, row=self._row,
            )  # fmt: skip
        about = _about(document)
        line = canonical_json(about).encode() + b"\n"
        start = self._documents.tell()
        if self._document >= self.progress.documents:
            self._documents.write(line)
        number, first = self._document, self._row
        self._document += 1
        self._row += length
        if rows is None:
            return
        skip = max(0, min(length, self.progress.rows - first))
        if skip < length:
            self._check(first, rows)
        entry = Entry(number, first, about, (start, self._documents.tell()), rows, skip, cursor)
        if self._chooser is None:
            self._append([entry])
        else:
            self._append(self._chooser.take(entry))

    def _append(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            for seal in self._sink.append(entry):
                self._commit(seal)

    def _check(self, first: int, rows: RowBatch) -> None:
        self._checks.append((first, self._pool.submit(self._violations, rows)))
        while len(self._checks) > 8:
            self._finish_check()

    def _violations(self, rows: RowBatch) -> list[Violation]:
        with self._watch.measure("check"):
            return check_rows(
                rows,
                vocab_size=self.manifest.vocab_size,
                values=self.manifest.values,
                holds_maximum=self._holds_maximum and not isinstance(rows, RowsCodedElsewhere),
                bound=self._bound,
            )

    def _finish_check(self) -> None:
        first, future = self._checks.popleft()
        for violation in future.result():
            raise CorruptDataError(
                f"the teacher's rows break the rule {violation.rule}: {violation.message}",
                path=self.path, row=first + violation.row,
            )  # fmt: skip

    def _commit(self, seal: Callable[[], Commit]) -> None:
        while self._checks:
            self._finish_check()
        commit = seal()
        sync_file(self._documents)
        self._table.write(commit.record.to_line(self._sink.record_bytes))
        sync_file(self._table)
        self._entries += commit.entries
        for loss in commit.losses:
            self._loss.merge(loss)
        progress = Progress(
            shards=commit.record.shard + 1,
            rows=commit.rows,
            documents=commit.documents,
            entries=self._entries,
            documents_bytes=commit.documents_bytes,
            cursor=commit.cursor,
            codebooks=None if self._chooser is None else self._chooser.state,
            loss=self._loss.to_json() if self._measures_loss else None,
        )
        progress.write(self.path)
        self.progress = progress  # others look at it meanwhile: what it says is on disk

    def finish(self) -> Manifest:
        """Commit the last shard, write the records and all metadata, and call the store complete."""
        if self._chooser is not None:
            self._append(self._chooser.flush())
        for seal in self._sink.flush():
            self._commit(seal)
        sync_file(self._documents)
        records, described = self._sink.finish()
        for record in records:
            self._table.write(record.to_line(self._sink.record_bytes))
        sync_file(self._table)
        manifest = dataclasses.replace(
            self.manifest,
            complete=True,
            rows=self._row,
            documents=self._document,
            entries=self._entries,
            record_bytes=self._sink.record_bytes,
            documents_file=FileRecord.of(self.path / DOCUMENTS_FILE),
            shard_table=FileRecord.of(self.path / layout.SHARD_TABLE_FILE),
            codec=self._codec_record(),
            **described,
        )
        self._sink.describe(manifest)
        write_atomically(self.path / layout.MANIFEST_FILE, manifest.to_json())
        (self.path / PROGRESS_FILE).unlink(missing_ok=True)
        sync_directory(self.path)
        self.manifest = manifest
        return manifest

    def _training(self, part: float) -> None:
        if self.on_training is not None:
            self.on_training(part)

    def _codec_record(self) -> CodecRecord:
        """Return what the manifest says of the codec when all is written."""
        record = self.manifest.codec
        if self._chooser is None:
            return record
        self._chooser.clear_away()
        record = dataclasses.replace(record, codebooks=self._chooser.sets)
        if self._measures_loss:
            record = dataclasses.replace(record, loss=self._loss.record(has_kl=self.manifest.values == "logprob"))
        return record

    def close(self) -> None:
        """Stop without finishing: what is committed stays, the shard in flight is dropped."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._sink.close()
        self._documents.close()
        self._table.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _about(document: TokenDocument) -> dict[str, Any]:
    """Return what the document's line in ``documents.jsonl`` says."""
    about: dict[str, Any] = {"key": document.key, "rows": len(document.tokens)}
    if document.parent is not None:
        about["parent"] = {"key": document.parent[0], "first_token": document.parent[1]}
    if document.metadata:
        about["metadata"] = document.metadata
    return about
