"""What is in a store: its totals, and single documents in words."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from logitstore import layout
from logitstore.container.manifest import Manifest
from logitstore.container.progress import Progress
from logitstore.container.shard_table import ShardRecord

if TYPE_CHECKING:
    import os

__all__ = ["summarise"]


def summarise(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Describe a store, finished or not, as JSON. Reads metadata only.

    Returns
    -------
    dict
        ``container``, ``format_version``, ``documents``, ``rows``, ``vocab_size``, ``padded_vocab_size``, ``k_max``,
        ``entries``, ``values``, ``bytes_total`` (all files of the directory), ``bytes_per_row`` and ``bits_per_entry``
        (of that total; None for a store without rows), ``bytes_by_field`` (shard files of each array, or its chunks in
        tars, ``codebooks`` where there are any, and ``metadata`` for all else), ``selection``, ``codec`` (bounds, and
        what was lost), ``teacher``, ``tokenizer``, ``corpus``, ``versions``, ``rows_per_shard``, ``complete``; for an
        unfinished store ``progress`` says what is committed, and the totals are those of the committed rows.

    Raises
    ------
    TruncatedDataError, CorruptDataError, UnsupportedVersionError
        There is no store with a readable manifest.
    """
    path = Path(path)
    manifest = Manifest.read(path)
    progress = None if manifest.complete else Progress.read(path)
    totals = manifest if progress is None else progress
    by_field = _bytes_by_field(path, manifest)
    total = sum(by_field.values())
    summary: dict[str, Any] = {
        "path": str(path),
        "container": manifest.container,
        "format_version": manifest.format_version,
        "complete": manifest.complete,
        "documents": totals.documents,
        "rows": totals.rows,
        "vocab_size": manifest.vocab_size,
        "padded_vocab_size": manifest.padded_vocab_size,
        "k_max": manifest.slots,
        "values": manifest.values,
        "entries": totals.entries,
        "bytes_total": total,
        "bytes_per_row": total / totals.rows if totals.rows else None,
        "bits_per_entry": 8 * total / totals.entries if totals.entries else None,
        "bytes_by_field": by_field,
        "rows_per_shard": manifest.rows_per_shard,
        "shards": manifest.row_shards if progress is None else progress.shards,
        "selection": manifest.selection,
        "temperatures": list(manifest.temperatures),
        "codec": manifest.codec.to_json(),
        "teacher": manifest.teacher,
        "tokenizer": manifest.tokenizer,
        "corpus": manifest.corpus,
        "build": manifest.build,
        "versions": manifest.versions,
    }
    if progress is not None:
        summary["progress"] = {name: getattr(progress, name) for name in ("shards", "rows", "documents", "entries")}
    return summary


def _bytes_by_field(path: Path, manifest: Manifest) -> dict[str, int]:
    """Sizes on disk: by array, and of everything else as ``metadata``."""
    sizes: dict[str, int] = dict.fromkeys((field.name for field in manifest.row_fields), 0)
    total = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    if manifest.container == "webdataset":
        # Arrays share the tars: the table of committed shards says how much is whose.
        with (path / layout.SHARD_TABLE_FILE).open("rb") as table:
            for line in table:
                for name, size in ShardRecord.from_line(line).fields.items():
                    sizes[name] = sizes.get(name, 0) + size
    else:
        for file in path.glob("*/c.*"):
            name = file.parent.name
            sizes[name] = sizes.get(name, 0) + file.stat().st_size
    if codebooks := list(path.glob(f"{layout.CODEBOOK_FOLDER}/*{layout.CODEBOOK_SUFFIX}")):
        sizes["codebooks"] = sum(file.stat().st_size for file in codebooks)
    return {**sizes, "metadata": total - sum(sizes.values())}
