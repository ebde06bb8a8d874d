"""``logitstore bench``: how fast a store is here, and what the kernels reach on a GPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .render import bytes_text, print_json, seconds_text, status_line, stdout

if TYPE_CHECKING:
    from logitstore.audit.bench import BenchResult
    from logitstore.bench import DeviceBench

__all__ = ["command"]


@click.command("bench", short_help="Measure reading against plain Zarr and raw memory maps; or a GPU.")
@click.argument("store", type=click.Path(exists=True, file_okay=False), required=False)
@click.option(
    "--rows", type=click.IntRange(1), help="Rows to use. Default: as many as decode to 64 MiB; 4,096 on a GPU."
)
@click.option("--device", metavar="DEVICE", help="cuda, cuda:1, …: measure what runs there, instead of a store.")
@click.option(
    "--only",
    multiple=True,
    metavar="WHAT",
    help="select, encode, decode, loss, fused-loss, capture or step; may be given several times. Default: all.",
)
@click.option(
    "--scale",
    type=click.Choice(["full", "tiny"]),
    default="full",
    show_default=True,
    help="With a device: tiny runs all of it in seconds, on --device cpu too, and its figures say nothing.",
)
@click.option(
    "--scratch",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="With a device: folder on the disk to capture to, with room for 10 GB. Default: that for temporary files.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    store: str | None,
    rows: int | None,
    device: str | None,
    only: tuple[str, ...],
    scale: str,
    scratch: Path | None,
    as_json: bool,
) -> None:
    """Measure how fast STORE is read here, beside memory copies, plain Zarr and a raw memory map, in one run.

    With --device, and no STORE: selection, codec and losses on random logits of that GPU, beside torch, and Liger if it
    is installed; capturing the logits of random Llamas of 1B and 8B to the disk, beside their plain forward; and a
    student's step from a store, beside cross-entropy on tokens. Every figure is a median, and stands beside its bound:
    what a copy of the bytes that must move, or the matrix products alone, take. Then, what was asked for.

    \b
    Examples:
      logitstore bench teacher.zarr
      logitstore bench teacher.zarr --rows 10000 --json
      logitstore bench --device cuda
      logitstore bench --device cuda --only capture --scratch /mnt/disk
    """  # noqa: D301
    if (store is None) == (device is None):
        raise click.UsageError("say what to measure: a STORE, or a GPU with --device cuda")
    if store is not None:
        _bench_store(store, rows, as_json)
    elif device is not None:
        _bench_device(device, rows, only, scale, scratch, as_json)


def _bench_store(store: str, rows: int | None, as_json: bool) -> None:
    from logitstore.audit.bench import bench

    with status_line("measuring") as say:
        result = bench(store, rows=rows, progress=say)
    if as_json:
        print_json(result.to_json())
    else:
        _print(result)


def _bench_device(
    device: str, rows: int | None, only: tuple[str, ...], scale: str, scratch: Path | None, as_json: bool
) -> None:
    from logitstore.bench import FULL, TINY, device_bench, find_device

    found = find_device(device, cpu=scale == "tiny")
    sizes = TINY if scale == "tiny" else FULL
    if rows is not None:
        sizes = replace(sizes, rows=rows)
    with status_line("measuring") as say:
        result = device_bench(found, sizes, only=only, scratch=scratch, progress=say)
    if as_json:
        print_json(result.to_json())
    else:
        _print_device(result)


def _print_device(result: DeviceBench) -> None:
    from rich.table import Table

    console = stdout()
    sizes = ", ".join(f"{name} {value}" for name, value in result.sizes.items())
    console.print(f"{result.device}: a copy moves {result.copy_bytes_per_second / 1e9:,.0f} GB/s; {sizes}")
    if result.device == "cpu":
        console.print("No CUDA device: this shows that everything runs; its figures say nothing, and answer no goal.")
    table = Table(
        "", "", "takes", "G entries/s", "memory", "bound", "which takes", "times that", box=None, header_style="bold"
    )
    for column in (2, 3, 4, 6, 7):
        table.columns[column].justify = "right"
    shown: set[str] = set()
    for figure in result.figures:
        first = figure.case not in shown
        shown.add(figure.case)
        table.add_row(
            figure.case if first else "",
            figure.contender,
            seconds_text(figure.seconds),
            "" if figure.entries_per_second is None else f"{figure.entries_per_second / 1e9:.3g}",
            "" if figure.peak_bytes is None else bytes_text(figure.peak_bytes),
            figure.bound if first else "",
            seconds_text(figure.bound_seconds) if first else "",
            f"{figure.times_bound:.3g}",
        )
    console.print(table)
    goals = Table("", "asked for", "found", "", box=None, header_style="bold")
    for verdict in result.verdicts:
        found = "not measured" if verdict.found is None else f"{verdict.found:.4g}"
        goals.add_row(verdict.case, verdict.asked, found, {True: "reached", False: "missed", None: ""}[verdict.reached])
    console.print(goals)


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
