"""The figure of `logitstore stats --plot`."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import os

    from logitstore.audit.stats import RowStats, Stats

__all__ = ["plot_stats"]

_INK = "#1f2430"
_GREY = "#8b93a1"
_BLUE = "#2f6db5"
_ORANGE = "#d9822b"


def plot_stats(stats: Stats, file: str | os.PathLike[str]) -> None:
    """Draw kept mass, label rank, entropy and bytes into one figure.

    Parameters
    ----------
    stats
        From `collect`.
    file
        Where to write it; the ending decides the format (``.png``, ``.pdf``, ``.svg``).
    """
    # Not through pyplot: that would choose a backend and keep the figure for the whole process.
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(12.5, 7.4), dpi=150, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12))
    axes: Any = figure.subplots(2, 3)
    groups = [("all rows", stats.everything, _BLUE)]
    if stats.targets is not None:
        groups.append(("target rows", stats.targets, _ORANGE))
    _mass_by_k(axes[0, 0], groups)
    _mass(axes[0, 1], groups)
    _tail(axes[0, 2], groups)
    _ranks(axes[1, 0], groups)
    _entropy(axes[1, 1], groups)
    _bytes(axes[1, 2], stats.summary)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.title.set(fontweight="bold", fontsize=11, color=_INK)
        axis.xaxis.label.set(fontsize=9, color=_INK)
        axis.yaxis.label.set(fontsize=9, color=_INK)
        axis.tick_params(colors=_INK, labelsize=8.5)
    s = stats.summary
    figure.suptitle(
        f"{s['path']}   ·   {s['rows']:,} rows of {s['documents']:,} documents   ·   K = {s['k_max']:,}   ·   "
        f"{s['bits_per_entry'] or 0:.1f} bits per entry",
        fontsize=11, color=_INK,
    )  # fmt: skip
    figure.savefig(file)


_Groups = list[tuple[str, "RowStats", str]]


def _mass_by_k(axis: Any, groups: _Groups) -> None:
    for name, group, colour in groups:
        mass = group.mass_by_width / max(1, group.rows)
        axis.plot(group.widths, mass, "o-", color=colour, ms=4, label=name)
    widths, last = groups[0][1].widths, groups[0][1].mass_by_width[-1] / max(1, groups[0][1].rows)
    axis.annotate(
        f"{last:.1%}", (widths[-1], last), (0, 7), textcoords="offset points", ha="right", fontsize=9, color=_INK
    )
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axis.set_ylim(0, 1.05)
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axis.grid(axis="y", alpha=0.25)
    axis.set(title="Kept probability by k", xlabel="most probable entries used", ylabel="mean probability")
    _legend(axis, groups, "lower right")


def _mass(axis: Any, groups: _Groups) -> None:
    for name, group, colour in groups:
        edges, counts = group.mass.merged(50)
        _steps(axis, edges, counts / max(1, group.rows), colour, name)
    median = groups[0][1].mass.percentile(50)
    if median is not None:
        axis.axvline(median, color=_INK, lw=1, ls=":")
        side = ("right", -5) if median > 0.5 else ("left", 5)
        axis.annotate(
            f"median {median:.1%}", (median, 0.97), (side[1], 0), xycoords=("data", "axes fraction"),
            textcoords="offset points", ha=side[0], va="top", fontsize=9, color=_INK,
        )  # fmt: skip
    axis.set_xlim(0, 1)
    _percent(axis.xaxis, axis.yaxis)
    axis.set(title="Kept probability of a row", xlabel="probability of its entries together", ylabel="rows")
    _legend(axis, groups, "center left")


def _tail(axis: Any, groups: _Groups) -> None:
    """Share of rows that miss more than x: the histogram's left end, on scales that show it."""
    for name, group, colour in groups:
        missing = 1 - np.linspace(0, 1, group.mass.bins + 1)[1:]
        share = np.cumsum(group.mass.counts) / max(1, group.rows)
        shown = (share > 0) & (missing > 0)
        axis.plot(missing[shown], share[shown], color=colour, lw=1.8, label=name)
    if groups[0][1].rows:
        axis.set(xscale="log", yscale="log", xlim=(1, 1e-3))
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:.4g}")
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:.4g}")
    axis.grid(alpha=0.25)
    axis.set(
        title="Rows that miss at least so much", xlabel="probability outside the kept entries", ylabel="share of rows"
    )


def _ranks(axis: Any, groups: _Groups) -> None:
    widths = groups[0][1].widths
    names = ["1", *(_range(low + 1, high) for low, high in pairwise(widths)), "outside"]
    places = np.arange(len(names))
    for number, (name, group, colour) in enumerate(groups):
        shares = np.append(group.ranks, group.outside) / max(1, group.labels)
        size = 0.8 / len(groups)
        bars = axis.bar(places + (number - (len(groups) - 1) / 2) * size, shares, size, color=colour, label=name)
        bars[-1].set_alpha(0.55)
    axis.set_xticks(places, names, rotation=45, ha="right")
    _percent(axis.yaxis)
    if len(groups) > 1:
        axis.margins(y=0.3)
    axis.set(title="Rank of the label among the kept", ylabel="labels")
    _legend(axis, groups, "upper right")


def _entropy(axis: Any, groups: _Groups) -> None:
    low, high = groups[0][1].entropy_low, groups[0][1].entropy_high
    filled = np.flatnonzero(low.merged(220)[1] + high.merged(220)[1])
    last = 22.0 / 220 * (int(filled[-1]) + 1) if len(filled) else 1.0
    bins = 220 if last < 8 else 110
    for histogram, colour, name in ((low, _BLUE, "tail as one token"), (high, _GREY, "tail spread evenly")):
        edges, counts = histogram.merged(bins)
        _steps(axis, edges, counts / max(1, groups[0][1].rows), colour, f"{name}: mean {histogram.mean or 0:.2f}")
    axis.set_xlim(0, last)
    _percent(axis.yaxis)
    axis.margins(y=0.3)
    axis.set(title="Entropy of the teacher, two bounds", xlabel="nats", ylabel="rows")
    axis.legend(frameon=False, fontsize=8.5, loc="upper right")


def _bytes(axis: Any, summary: dict[str, Any]) -> None:
    sizes = sorted(summary["bytes_by_field"].items(), key=lambda item: item[1])
    total, rows = max(1, summary["bytes_total"]), max(1, summary["rows"])
    names = [name for name, _ in sizes]
    bars = axis.barh(names, [size for _, size in sizes], color=_BLUE)
    labels = [f"{size / rows:,.1f} B/row · {size / total:.1%}" for _, size in sizes]
    axis.bar_label(bars, labels, padding=4, fontsize=8.5, color=_INK)
    axis.set_xlim(0, max(size for _, size in sizes) * 1.6 or 1)
    axis.set_xticks([])
    axis.spines["bottom"].set_visible(False)
    axis.set(title=f"Bytes by field: {summary['bytes_total'] / rows:,.1f} a row")


def _steps(axis: Any, edges: Any, shares: Any, colour: str, name: str) -> None:
    axis.stairs(shares, edges, fill=True, color=colour, alpha=0.25)
    axis.stairs(shares, edges, color=colour, lw=1.4, label=name)


def _percent(*sides: Any) -> None:
    for side in sides:
        side.set_major_formatter(lambda value, _: f"{100 * value:.3g}%")


def _legend(axis: Any, groups: _Groups, place: str) -> None:
    if len(groups) > 1:
        axis.legend(frameon=False, fontsize=8.5, loc=place)


def _range(low: int, high: int) -> str:
    return f"{low:,}" if low == high else f"{low:,}–{high:,}"
