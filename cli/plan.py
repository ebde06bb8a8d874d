"""``logitstore plan``: what a store would cost and keep, before the teacher runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from .render import decimal_bytes, percent, print_json, progress_bar, stderr, stdout
from .sizes import COUNT, SIZE

if TYPE_CHECKING:
    from logitstore.audit.planning import Plan, PlanLine

__all__ = ["command"]


@click.command("plan", short_help="What k, selection and codec would cost and keep, before the teacher runs.")
@click.option("--vocab", "vocab_size", type=COUNT, help="Ids of the teacher's vocabulary. Default: the sample's.")
@click.option("--tokens", type=COUNT, help="Tokens of the corpus, like 10e9 or 300M. Default: the sample's rows.")
@click.option(
    "--store",
    "sample",
    type=click.Path(exists=True, file_okay=False),
    help="A small store of the same teacher, to measure instead of estimating.",
)
@click.option("--budget", type=SIZE, help="Bytes the store may take, like 5TB: marks what fits, and recommends.")
@click.option("--top-k", type=click.IntRange(1), multiple=True, help="Plan for this k alone. May be repeated.")
@click.option(
    "--rows",
    type=click.IntRange(8),
    default=32768,
    show_default=True,
    help="Rows of the sample to use; fewer where they are wide.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    vocab_size: int | None,
    tokens: int | None,
    sample: str | None,
    budget: int | None,
    top_k: tuple[int, ...],
    rows: int,
    as_json: bool,
) -> None:
    """Tell what a store of so many tokens would cost and keep with each selection and codec.

    With --store, rows of a sample are cut to each selection and really encoded with each codec, and what is left out is
    measured, too. Without it, bytes are a rule of thumb. A sample is a store like any other, of some 100,000 tokens of
    the corpus, with as many entries as you would ever keep.

    \b
    Examples:
      logitstore plan --vocab 128256 --tokens 10e9
      logitstore plan --store sample.zarr --tokens 10e9 --budget 5TB
    """  # noqa: D301
    from logitstore.audit.planning import plan

    if sample is None and (vocab_size is None or tokens is None):
        raise click.UsageError("without --store, both --vocab and --tokens are needed")
    with progress_bar("measuring", "steps") as progress:
        found = plan(
            sample, vocab_size=vocab_size, tokens=tokens, budget=budget, top_k=top_k, rows=rows, progress=progress
        )
    if as_json:
        print_json(found.to_json())
    else:
        _print(found)
        _advise(found)


def _print(plan: Plan) -> None:
    from rich.table import Table

    title = f"{plan.tokens:,} tokens, V = {plan.vocab_size:,}"
    if plan.budget is not None:
        title += f", budget {decimal_bytes(plan.budget)}"
    title += ": ESTIMATED by rule of thumb" if plan.sample is None else f": measured on {plan.sample}"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    table.add_column("selection", no_wrap=True)
    table.add_column("codec", no_wrap=True)
    measured = ("ids", "B/token", "total", "kept", "1% keep", "labels", "left out", "by codec", "KL")
    for name in measured if plan.sample is not None else ("B/token", "total"):
        table.add_column(name, justify="right", no_wrap=True)
    if plan.budget is not None:
        table.add_column("fits")
    best = plan.recommended
    for line in plan.lines:
        fits = [] if plan.budget is None else ["yes" if plan.fits(line) else "no"]
        style = "bold" if line is best else None if plan.fits(line) in (True, None) else "dim"
        cells = _estimate_cells(plan, line) if plan.sample is None else _cells(plan, line)
        table.add_row(line.selection, line.codec.removeprefix("compact "), *cells, *fits, style=style)
    stdout().print(table)


def _estimate_cells(plan: Plan, line: PlanLine) -> list[str]:
    least = line.bytes_at_least or 0.0
    return [
        f"{least:,.0f} – {line.bytes_per_token:,.0f}",
        f"{decimal_bytes(least * plan.tokens)} – {decimal_bytes(plan.total(line))}",
    ]


def _cells(plan: Plan, line: PlanLine) -> list[str]:
    return [
        f"{line.entries:,.{1 if line.entries < 100 else 0}f}".removesuffix(".0"),
        f"{line.bytes_per_token:,.{1 if line.bytes_per_token < 100 else 0}f}",
        decimal_bytes(plan.total(line)),
        percent(line.kept_mass),
        percent(line.kept_mass_p1),
        percent(line.label_kept),
        *("–" if kl is None else "0" if kl == 0 else f"{kl:.2g}" for kl in (line.kl_left_out, line.kl_of_codec)),
        "–" if line.kl is None else f"{line.kl:.4g}",
    ]


def _advise(plan: Plan) -> None:
    console = stdout()
    best = plan.recommended
    console.print()
    if plan.sample is None:
        k = max(min(512, plan.vocab_size), *(0 if "%" in line.selection else line.entries for line in plan.lines))
        console.print(
            "These are estimates, and say nothing of what is kept. To measure, build a small sample of your corpus, "
            "with as many\nids as you would ever keep, and plan again:\n"
            f"  logitstore build --teacher DIR_OR_ID --data CORPUS --limit 200 --top-k {k:.0f} --out sample.zarr\n"
            f"  logitstore plan --store sample.zarr --tokens {plan.tokens}",
            markup=False, soft_wrap=True,
        )  # fmt: skip
    elif best is not None:
        console.print(
            f"recommended, the least KL within the budget: {best.selection}, {best.codec}: "
            f"{decimal_bytes(plan.total(best))}\n"
            f"  logitstore build --teacher DIR_OR_ID --data CORPUS {best.flags} --out teacher.zarr",
            markup=False, soft_wrap=True,
        )  # fmt: skip
    elif plan.budget is not None:
        smallest = plan.lines[0]
        console.print(
            f"nothing fits: the smallest, {smallest.selection} with {smallest.codec}, takes "
            f"{decimal_bytes(plan.total(smallest))}",
            markup=False,
        )
    else:
        console.print("for a recommendation, give a --budget", markup=False)
    if plan.sample is not None:
        stderr().print(
            "All codecs but exact are --codec compact. kept: probability of the kept ids, mean; 1% keep: 1 % of rows "
            "keep at most this; labels: labels that are kept. KL to the teacher in nats: what the selection leaves "
            "out, what the codec loses (of kept ids and of the sum of all others), and both together.", markup=False,
        )  # fmt: skip
    for note in plan.notes:
        stderr().print(f"note: {note}.", markup=False)
