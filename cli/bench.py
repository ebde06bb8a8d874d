"""``logitstore bench``: how fast a store is here."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from .render import bytes_text, print_json, seconds_text, status_line, stdout

if TYPE_CHECKING:
    from logitstore.audit.bench import BenchResult

__all__ = ["command"]


@click.command("bench", short_help="Measure reading against plain Zarr and raw memory maps.")
@click.argument("store", type=click.Path(exists=True, file_okay=False))
@click.option("--rows", type=click.IntRange(1), help="Rows to use. Default: as many as decode to 64 MiB.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(store: str, rows: int | None, as_json: bool) -> None:
    """Measure how fast STORE is read here, beside memory copies, plain Zarr and a raw memory map, in one run.

    \b
    Examples:
      logitstore bench teacher.zarr
      logitstore bench teacher.zarr --rows 10000 --json
    """  # noqa: D301
    from logitstore.audit.bench import bench

    with status_line("measuring") as say:
        result = bench(store, rows=rows, progress=say)
    if as_json:
        print_json(result.to_json())
    else:
        _print(result)


_MEASURED = {
    "decode": "decode everything",
    "encode": "encode everything",
    "row": "a random row",
    "document": "a random document",
}


def _print(result: BenchResult) -> None:
    from rich.table import Table

    console = stdout()
    seconds, ratios = result.seconds, result.ratios
    console.print(
        f"ids and values of {result.rows:,} rows: {result.entries:,} entries, {bytes_text(result.decoded_bytes)} "
        f"decoded; {result.entries_per_second / 1e6:,.0f} M entries/s on one thread"
    )
    table = Table("", "takes", "compared with", "which takes", "times as fast", box=None, header_style="bold")
    table.columns[1].justify = table.columns[3].justify = table.columns[4].justify = "right"
    shown: set[str] = set()
    for key, peer, peer_key, ratio in (
        ("decode", "a memory copy", "copy", "decode_speed_to_copy"),
        ("decode", "zarr's zstd, raw arrays", "zarr_zstd_decode", "decode_speed_to_zarr_zstd"),
        ("encode", "a memory copy", "copy", "encode_speed_to_copy"),
        ("row", "plain zarr, same files", "row_zarr", "row_speed_to_zarr"),
        ("row", "raw memory map", "row_memmap", "row_speed_to_memmap"),
        ("document", "plain zarr, same files", "document_zarr", "document_speed_to_zarr"),
        ("document", "raw memory map", "document_memmap", "document_speed_to_memmap"),
    ):
        if ratio not in ratios:  # the store has no Zarr files
            continue
        takes = "" if key in shown else seconds_text(seconds[key])
        name = "" if key in shown else _MEASURED[key]
        shown.add(key)
        table.add_row(name, takes, peer, seconds_text(seconds[peer_key]), f"{ratios[ratio]:.3g}")
    console.print(table)
