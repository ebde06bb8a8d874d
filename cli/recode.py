"""``logitstore recode``: from one codec into another."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from .codec_options import codec_options, codec_record, loss_text
from .convert import report
from .render import recoding_progress, stdout
from .sizes import SIZE

__all__ = ["command"]


@click.command("recode", short_help="Write a store with another codec, without the teacher.")
@click.argument("source")
@click.argument("out", type=click.Path(path_type=Path))
@codec_options(default=None)
@click.option("--to", type=click.Choice(["webdataset", "zarr"]), help="Container of the new store. Default: the same.")
@click.option(
    "--shard-size", type=SIZE, default="256MB", show_default=True, help="With webdataset: fill tars up to this size."
)
@click.option("--workers", type=click.IntRange(1), help="Threads that encode. Default: as many as there are cores.")
@click.option("--resume", is_flag=True, help="Go on with what was interrupted.")
@click.option("--overwrite", is_flag=True, help="Replace a store at OUT.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: sizes, as convert does, and the codec.")
def command(
    source: str,
    out: Path,
    to: str | None,
    shard_size: int,
    workers: int | None,
    resume: bool,
    overwrite: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Write all documents of SOURCE, a folder or a URL, into a new store at OUT with another codec.

    Keys, metadata, tokens and ids stay the same, and values too unless a bound is given. A store that was quantised
    is not quantised again.

    \b
    Examples:
      logitstore recode teacher.zarr small.zarr --codec compact --max-kl 3e-4
      logitstore recode small.zarr exact.wds --codec exact --to webdataset
    """  # noqa: D301
    from logitstore.convert import recode

    codec = codec_record(options)
    with recoding_progress() as (progress, on_training):
        manifest = recode(
            source, out, codec=codec, to=to, shard_bytes=shard_size, resume=resume, overwrite=overwrite,  # type: ignore[arg-type]
            workers=workers or os.cpu_count() or 1, progress=progress, on_training=on_training,
        )  # fmt: skip
    report(manifest, out, as_json=as_json, codec=manifest.codec.to_json())
    if not as_json:
        stdout().print(f"values: {loss_text(manifest.codec.to_json())}", markup=False)
