"""Is a store sound? Every file, every checksum, every row; all that is wrong, not only the first thing."""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from logitstore.audit.parallel import map_in_order
from logitstore.audit.report import Findings, Report, problem_of
from logitstore.audit.verify_documents import check_documents
from logitstore.audit.verify_files import check_files
from logitstore.audit.verify_shards import FileResult, ShardChecker
from logitstore.audit.verify_tars import verify_tars
from logitstore.container.fields import DOCUMENT_FIELDS
from logitstore.container.files import LocalFiles
from logitstore.container.manifest import Manifest
from logitstore.container.progress import Progress
from logitstore.errors import LogitStoreError
from logitstore.layout import MANIFEST_FILE
from logitstore.reader.shard_cache import ShardCache

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence

    from logitstore.container.fields import Field

__all__ = ["verify"]


def verify(
    path: str | os.PathLike[str],
    *,
    progress: Callable[[int, int], None] | None = None,
    workers: int | None = None,
) -> Report:
    """Check a store.

    Checked are: the manifest; the digests of ``documents.jsonl`` and ``shards.jsonl``; each array's Zarr metadata;
    size, sha256, identity and index of every shard; frame and checksums of every chunk (of a store in tars: its index,
    every member, and that there are no others); every row's invariants (``spec/FORMAT.md``, "Rows"); documents, their
    keys and offsets; and that the label's log-probability is the value stored for the next token, which rows that are
    off by one would not survive.

    Parameters
    ----------
    path
        Directory of the store.
    progress
        Called with rows done and rows in all.
    workers
        Threads; as many as there are cores, up to eight, by default.

    Returns
    -------
    Report
        All problems found. Broken data raises nothing.

    Examples
    --------
    >>> report = verify("teacher.zarr")                       # doctest: +SKIP
    >>> report.ok, report.rows_checked                        # doctest: +SKIP
    (True, 65536)
    """
    path = Path(path)
    found = Findings()
    try:
        manifest = Manifest.read(path)
    except LogitStoreError as error:
        found.add(problem_of(error, MANIFEST_FILE, "manifest"))
        return found.report(0)
    if not manifest.complete:
        _report_unfinished(path, found)
        return found.report(0)
    if manifest.container == "webdataset":
        return found.report(verify_tars(path, manifest, found, progress, workers))
    check_files(path, manifest, found)
    shards = ShardCache(LocalFiles(path), manifest, verify="lazy", capacity=4 * len(manifest.row_fields))
    try:
        ends = check_documents(path, manifest, shards, found)
        checker = ShardChecker(path, manifest, shards, ends)
        return found.report(_check_shards(manifest, checker, found, progress, workers))
    finally:
        shards.close()


def _report_unfinished(path: Path, found: Findings) -> None:
    try:
        done = Progress.read(path)
    except LogitStoreError as error:
        found.add(problem_of(error, "progress.json", "complete"))
        return
    found.error(
        MANIFEST_FILE, "complete",
        f"the build was not finished: {done.rows} rows of {done.documents} documents are committed in {done.shards} "
        "shards; `logitstore build --resume` goes on from there",
    )  # fmt: skip


def _check_shards(
    manifest: Manifest,
    checker: ShardChecker,
    found: Findings,
    progress: Callable[[int, int], None] | None,
    workers: int | None,
) -> int:
    sizes: Counter[str] = Counter()

    def check_files_of(shard: int, fields: Sequence[Field]) -> dict[str, FileResult]:
        results = list(map_in_order(partial(checker.check_file, shard), fields, workers))
        for result in results:
            found.add(*result.problems)
            sizes[result.field.name] += result.bytes
        return {result.field.name: result for result in results}

    for shard in range(manifest.document_shards):
        check_files_of(shard, DOCUMENT_FIELDS)
    done = checked = entries = 0
    for shard in range(manifest.row_shards):
        files = check_files_of(shard, checker.fields)
        first = shard * manifest.rows_per_shard
        stop = min(first + manifest.rows_per_shard, manifest.rows)
        blocks = range(first, stop, checker.block_rows)
        for result in map_in_order(partial(checker.check_rows, files), blocks, workers):
            found.add(*result.problems)
            done += result.rows
            checked += result.rows_checked
            entries += result.entries
            if progress is not None:
                progress(done, manifest.rows)
    if checked == manifest.rows and entries != manifest.entries:
        found.error(MANIFEST_FILE, "entries", f"the manifest says {manifest.entries} entries, the rows keep {entries}")
    if sizes != Counter(manifest.bytes_by_field):
        message = f"the manifest says {manifest.bytes_by_field}, the files have {dict(sizes)}"
        found.error(MANIFEST_FILE, "bytes-by-field", message)
    return checked
