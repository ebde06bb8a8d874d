"""The figure of fidelity.py."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

PANELS = (
    ("KL, full", "KL to the teacher's whole distribution, nats"),
    ("KL, kept", "generalised KL of the kept entries, nats"),
    ("squared error", "squared error of the target"),
)
LINES = {"compact, max-kl": "o-", "compact, max-error": "v:"}
MARKERS = {
    "compact, lossless": "*", "exact": "P", "packed ids + fp16": "s", "packed ids + 8 bits": "D",
    "Parquet + zstd 3": "X", "DistillKit": "^", "RS-KD, packed": "<", "RS-KD, exact": ">", "RS-KD, compact": "h",
}  # fmt: skip


def plot(path: Path, table: Sequence[dict[str, Any]], title: str) -> None:
    """Draw three panels over bytes a row: ours in the colours of k, others as marks of the same colours."""
    figure, axes = plt.subplots(1, len(PANELS), figsize=(14, 5.6), layout="constrained")
    kept = [row for row in table if not row["method"].startswith("RS-KD")]
    ks = sorted({row["k"] for row in kept})
    colours = dict(zip(ks, plt.cm.viridis([0.85 * i / max(1, len(ks) - 1) for i in range(len(ks))]), strict=True))
    for axis, (measure, label) in zip(axes, PANELS, strict=True):
        for k in ks:
            rows = [row for row in kept if row["k"] == k]
            for method, style in LINES.items():
                line = sorted((row["B/row"], row[measure]) for row in rows if row["method"] == method)
                axis.plot(*zip(*line, strict=True), style, color=colours[k], ms=4, lw=1.4)
        for row in table:
            if row["method"] in MARKERS and row[measure] is not None:
                colour = colours.get(row["k"], "crimson")
                axis.plot(row["B/row"], row[measure], MARKERS[row["method"]], color=colour, ms=7, mec="black", mew=0.5)
        axis.set(xscale="log", yscale="log", xlabel="bytes a row: ids, values, codebooks", ylabel=label)
        axis.grid(which="major", alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    used = {row["method"] for row in table}
    handles = [
        *(plt.Line2D([], [], color=colour, lw=3, label=f"k = {k:,}") for k, colour in colours.items()),
        *(
            plt.Line2D([], [], color="grey", linestyle=style[1:], marker=style[0], ms=5, label=method)
            for method, style in LINES.items()
        ),
        *(
            plt.Line2D([], [], color="crimson" if "RS-KD" in method else "grey", ls="", marker=mark, ms=7, mec="black",
                       label=method)
            for method, mark in MARKERS.items() if method in used
        ),
    ]  # fmt: skip
    figure.legend(handles=handles, loc="outside lower center", ncols=8, frameon=False, fontsize=9)
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=120)
