"""``logitstore stats``: what a store is worth."""

from __future__ import annotations

from typing import Any

import click

from .codec_options import loss_text
from .render import bytes_text, percent, print_json, progress_bar, stderr, stdout

__all__ = ["command"]


@click.command("stats", short_help="Kept mass, entropy, label ranks, perplexity; as a figure, too.")
@click.argument("store", type=click.Path(exists=True, file_okay=False))
@click.option("--plot", type=click.Path(dir_okay=False, writable=True), help="Draw a figure: .png, .pdf or .svg.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(store: str, plot: str | None, as_json: bool) -> None:
    """Measure STORE: kept probability, also for smaller k; entropy; rank of the label; the teacher's perplexity; bytes.

    Entropy is given as two bounds, since the store knows how much probability lies outside the kept entries but not
    how it is spread there.

    \b
    Examples:
      logitstore stats teacher.zarr
      logitstore stats teacher.zarr --plot stats.png --json
    """  # noqa: D301
    from logitstore.audit.stats import collect

    with progress_bar("reading", "rows") as progress:
        stats = collect(store, progress=progress)
    result = stats.to_json()
    if plot is not None:
        from logitstore.audit.plot import plot_stats

        plot_stats(stats, plot)
        stderr().print(f"figure written to {plot}", markup=False)
    if as_json:
        print_json(result)
    else:
        _print(result)


def _print(result: dict[str, Any]) -> None:
    from rich.table import Table

    console = stdout()
    groups = {"all rows": result["all_rows"]}
    if result["target_rows"] is not None:
        groups["target rows"] = result["target_rows"]
    table = Table("", *groups, box=None, pad_edge=False, header_style="bold", title=result["path"])
    table.title_justify = "left"
    for column in table.columns[1:]:
        column.justify = "right"

    def line(name: str, *keys: str, form: Any = percent) -> None:
        values = []
        for group in groups.values():
            value: Any = group
            for key in keys:
                value = value[key]
            values.append(form(value))
        table.add_row(name, *values)

    line("rows with entries", "rows", form=_count)
    line("rows with a label", "labels", form=_count)
    line("kept probability, mean", "kept_mass", "mean")
    for place in result["all_rows"]["kept_mass"]["percentiles"]:
        line(f"  {place} % of rows keep at most", "kept_mass", "percentiles", place)
    for width in result["all_rows"]["kept_mass"]["mean_by_k"]:
        line(f"  with k = {width}", "kept_mass", "mean_by_k", width)
    line("entropy, nats, at least", "entropy", "lower_mean", form=_number)
    line("entropy, nats, at most", "entropy", "upper_mean", form=_number)
    line("label is the most probable", "top1_agreement")
    for width in list(result["all_rows"]["label_rank"]["up_to"])[1:]:
        line(f"  among the first {width}", "label_rank", "up_to", width)
    line("label is not kept", "label_rank", "outside")
    line("teacher perplexity", "perplexity", form=_number)
    console.print(table)
    console.print()
    sizes = Table("field", "size", "bits an entry", "share", box=None, pad_edge=False, header_style="bold")
    for column in sizes.columns[1:]:
        column.justify = "right"
    for name, size in [*result["bytes_by_field"].items(), ("total", result["bytes_total"])]:
        bits = f"{8 * size / max(1, result['entries']):.2f}"
        sizes.add_row(name, bytes_text(size), bits, percent(size / max(1, result["bytes_total"])))
    console.print(sizes)
    console.print()
    console.print(f"values: {loss_text(result['codec'])}", markup=False)


def _count(value: int) -> str:
    return f"{value:,}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:,.2f}"
