"""``logitstore convert``: from one container into the other."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .render import bytes_text, print_json, progress_bar, stdout
from .sizes import SIZE

if TYPE_CHECKING:
    from logitstore.container.manifest import Manifest

__all__ = ["command", "report"]


@click.command("convert", short_help="Write a store into the other container, without loss.")
@click.argument("source")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--to", type=click.Choice(["webdataset", "zarr"]), required=True, help="Container of the new store.")
@click.option(
    "--shard-size", type=SIZE, default="256MB", show_default=True, help="With webdataset: fill tars up to this size."
)
@click.option("--workers", type=click.IntRange(1), default=2, show_default=True, help="Threads that encode.")
@click.option("--resume", is_flag=True, help="Go on with an unfinished conversion.")
@click.option("--overwrite", is_flag=True, help="Replace a store at OUT.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: container, documents, rows, entries, bytes, shards.")
def command(
    source: str, out: Path, to: str, shard_size: int, workers: int, resume: bool, overwrite: bool, as_json: bool
) -> None:
    """Write all documents of SOURCE, a folder or a URL, into a new store at OUT. Rows, keys and metadata stay the same.

    \b
    Examples:
      logitstore convert teacher.zarr teacher.wds --to webdataset --shard-size 1GB
      logitstore convert teacher.wds again.zarr --to zarr
    """  # noqa: D301
    from logitstore.convert import convert

    with progress_bar("converting", "rows") as progress:
        manifest = convert(
            source, out, to=to, shard_bytes=shard_size, resume=resume, overwrite=overwrite, workers=workers,  # type: ignore[arg-type]
            progress=progress,
        )  # fmt: skip
    report(manifest, out, as_json=as_json)


def report(manifest: Manifest, out: Path, *, as_json: bool, **more: Any) -> None:
    """Print what a store that was written from another one holds; ``more`` stands in the JSON as well."""
    codebooks = sum(file.bytes for file in manifest.codec.files.values())
    size = sum(manifest.bytes_by_field.values()) + codebooks
    result = {
        "container": manifest.container,
        "documents": manifest.documents,
        "rows": manifest.rows,
        "entries": manifest.entries,
        "bytes": size,
        "shards": manifest.row_shards,
    }
    if as_json:
        print_json(result | more)
        return
    stdout().print(
        f"{out}: {manifest.rows:,} rows of {manifest.documents:,} documents in {manifest.row_shards:,} "
        f"{manifest.container} shards, {bytes_text(size)}"
    )
