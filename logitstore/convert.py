"""From one container or codec into another: document by document, in bounded memory, resumable, without the teacher."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from logitstore.container.durable import canonical_json
from logitstore.container.manifest import Manifest, is_store
from logitstore.container.progress import PROGRESS_FILE
from logitstore.container.tar_sink import DEFAULT_SHARD_BYTES
from logitstore.container.writer import StoreWriter, prepare_directory
from logitstore.errors import CorruptDataError, InvalidArgumentError
from logitstore.reader import open_store
from logitstore.records import RowBatch, TokenDocument, by_id

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from logitstore.codec.compact import Codebook
    from logitstore.container.codec_record import CodebookSet, CodecRecord
    from logitstore.reader import Document, Store

__all__ = ["convert", "recode"]


def convert(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    to: Literal["webdataset", "zarr"],
    shard_bytes: int = DEFAULT_SHARD_BYTES,
    resume: bool = False,
    overwrite: bool = False,
    workers: int = 2,
    storage_options: dict[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Manifest:
    """Write the documents of a store into a new one. There and back again gives the same bytes.

    Parameters
    ----------
    source
        Directory or URL of a complete store, in either container.
    out
        Directory of the new store.
    to
        Its container.
    shard_bytes
        With ``to="webdataset"``: bytes up to which a tar is filled.
    resume
        Go on with an unfinished conversion at ``out``; start one if there is none.
    overwrite
        Replace a store at ``out``.
    workers
        Threads that encode.
    storage_options
        For fsspec, where the source is a URL.
    progress
        Called with rows done and rows in all.

    Returns
    -------
    Manifest
        Of the new store: but for the container and what depends on it, that of the source.

    Raises
    ------
    InvalidArgumentError
        ``out`` exists, or holds the beginning of something else.
    CorruptDataError
        The source is broken; ``out`` keeps what was committed before.

    Examples
    --------
    >>> convert("teacher.zarr", "teacher.wds", to="webdataset")               # doctest: +SKIP
    """
    _check(to, shard_bytes)
    return _rewrite(
        source, Path(out), lambda manifest: _beginning(manifest, to, shard_bytes), keep_codebooks=True, resume=resume,
        overwrite=overwrite, workers=workers, storage_options=storage_options, progress=progress, on_training=None,
    )  # fmt: skip


def recode(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    codec: CodecRecord,
    to: Literal["webdataset", "zarr"] | None = None,
    shard_bytes: int = DEFAULT_SHARD_BYTES,
    resume: bool = False,
    overwrite: bool = False,
    workers: int = 2,
    storage_options: dict[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
    on_training: Callable[[float], None] | None = None,
) -> Manifest:
    """Write the documents of a store into a new one of another codec.

    Parameters
    ----------
    codec
        The new codec: ``CodecRecord()`` for ``exact``, or `CodecRecord.compact`.
    to
        Container of the new store; that of the source, if None.
    on_training
        Called with the part of a training of codebooks that is done, 0 to 1.

    The others are those of `convert`.

    Returns
    -------
    Manifest
        Of the new store. Its ``build`` has ``recoded_from``: what the source's manifest says of its codec.

    Raises
    ------
    InvalidArgumentError
        As `convert`; or values would be quantised a second time, or by ``max_kl`` though they are logits.
    CorruptDataError
        As `convert`.

    Examples
    --------
    >>> recode("teacher.zarr", "small.zarr", codec=CodecRecord.compact(max_kl=3e-4))       # doctest: +SKIP
    """
    _check(to, shard_bytes)

    def beginning(manifest: Manifest) -> Manifest:
        if codec.is_lossy and manifest.bound.error:
            raise InvalidArgumentError(
                "the values of this store have been quantised already, and errors would add up: recode the store it "
                "was made from, or keep its values with --lossless", path=source,
            )  # fmt: skip
        if codec.max_kl is not None and manifest.values != "logprob":
            raise InvalidArgumentError("max_kl bounds log-probabilities; bound logits by max_error", path=source)
        identity = canonical_json([manifest.store_id, codec.to_json()])
        return dataclasses.replace(
            _beginning(manifest, to or manifest.container, shard_bytes),
            store_id=hashlib.sha256(identity.encode()).hexdigest()[:32],
            codec=codec,
            build={**manifest.build, "recoded_from": _origin(manifest)},
        )

    return _rewrite(
        source, Path(out), beginning, keep_codebooks=False, resume=resume, overwrite=overwrite, workers=workers,
        storage_options=storage_options, progress=progress, on_training=on_training,
    )  # fmt: skip


def _origin(manifest: Manifest) -> dict[str, Any]:
    """Return which codec the values of a store have passed: the one that quantised them, if one did."""
    if not manifest.codec.is_lossy and manifest.bound.error:
        return dict(manifest.build["recoded_from"])
    return dataclasses.replace(manifest.codec, codebooks=()).to_json()


def _check(to: str | None, shard_bytes: int) -> None:
    if to not in ("webdataset", "zarr", None):
        raise InvalidArgumentError(f"a store is converted to 'webdataset' or 'zarr', found {to!r}")
    if shard_bytes < 1:
        raise InvalidArgumentError(f"shard_bytes is at least 1, found {shard_bytes}")


def _rewrite(
    source: str | os.PathLike[str],
    out: Path,
    beginning: Callable[[Manifest], Manifest],
    *,
    keep_codebooks: bool,
    resume: bool,
    overwrite: bool,
    workers: int,
    storage_options: dict[str, Any] | None,
    progress: Callable[[int, int], None] | None,
    on_training: Callable[[float], None] | None,
) -> Manifest:
    if resume and overwrite:
        raise InvalidArgumentError("resume goes on with a store, overwrite replaces it; ask for one of them")
    with open_store(source, order="stored", storage_options=storage_options) as store:
        if isinstance(store.path, Path) and store.path.resolve() == out.resolve():
            raise InvalidArgumentError("a store is not converted into itself", path=out)
        wanted = beginning(store.manifest)
        if resume and is_store(out):
            found = Manifest.read(out)
            _require_same(found, wanted, out)
            if found.complete:
                (out / PROGRESS_FILE).unlink(missing_ok=True)
                return found
        else:
            prepare_directory(out, overwrite=overwrite)
        books = store.codebooks() if keep_codebooks and wanted.codec.name == "compact" else None
        manifest = _copy(store, out, wanted, books, workers, progress or _ignore, on_training)
    for name in ("rows", "documents", "entries"):
        if getattr(manifest, name) != getattr(store.manifest, name):
            raise CorruptDataError(
                f"{getattr(manifest, name)} {name} were written, the source has {getattr(store.manifest, name)}",
                path=out,
            )
    return manifest


def _beginning(source: Manifest, to: str, shard_bytes: int) -> Manifest:
    """Return the manifest of the new store as it is before its first document."""
    return dataclasses.replace(
        source,
        complete=False,
        rows=0,
        documents=0,
        entries=0,
        record_bytes=0,
        bytes_by_field={},
        documents_file=None,
        shard_table=None,
        container=to,
        shard_bytes=shard_bytes if to == "webdataset" else 0,
        index_file=None,
    )


def _require_same(found: Manifest, wanted: Manifest, out: Path) -> None:
    begun = _beginning(found, found.container, found.shard_bytes)
    if not wanted.codec.codebooks:  # if there are, they are the source's
        begun = dataclasses.replace(begun, codec=begun.codec.beginning)
    differing = [
        field.name
        for field in dataclasses.fields(Manifest)
        if getattr(begun, field.name) != getattr(wanted, field.name)
    ]
    if differing:
        raise InvalidArgumentError(
            f"the store was started from another one or otherwise: {', '.join(differing)} differ", path=out
        )


def _copy(
    store: Store,
    out: Path,
    manifest: Manifest,
    books: list[tuple[CodebookSet, dict[str, Codebook]]] | None,
    workers: int,
    progress: Callable[[int, int], None],
    on_training: Callable[[float], None] | None,
) -> Manifest:
    keeps_most_probable = any(store.manifest.selection.get(name) for name in ("top_k", "top_fraction", "top_p"))
    with StoreWriter(
        out, manifest, workers=workers, holds_maximum=keeps_most_probable, bound=store.manifest.bound,
        total_rows=store.manifest.rows, codebooks=books,
    ) as writer:  # fmt: skip
        writer.on_training = on_training
        cursor = writer.progress.cursor or {"document": 0, "row": 0}
        writer.rewind(**cursor)
        progress(writer.rows, store.manifest.rows)
        for number in range(cursor["document"], len(store)):
            document = store.document(number)
            writer.append(*_records(document), cursor={"document": number, "row": document.first_row})
            progress(writer.rows, store.manifest.rows)
        return writer.finish()


def _records(document: Document) -> tuple[TokenDocument, RowBatch]:
    names = [field.name for field in dataclasses.fields(RowBatch)]
    return (
        TokenDocument(document.key, document.tokens, document.mask, document.parent, document.metadata),
        by_id(RowBatch(**{name: getattr(document, name) for name in names})),
    )


def _ignore(_done: int, _total: int) -> None:
    return
