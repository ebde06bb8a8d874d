"""Fidelity against bytes: what a student is given, against the teacher's whole distribution, for every way to store it.

    python benchmarks/fidelity.py --teacher TEACHER --text TEXT --figure fidelity.png

The teacher is run over the beginning of the text. Codebooks are trained on the first rows, everything is measured on
the ones behind them; a codebook's bytes are spread over the rows of a store that is assumed. Bytes are those of ids and
values and of all that decoding them needs. See `fidelity_rows.distances` for what is compared. With 5 % of 50,257 ids
and 37,000 rows it takes 5 GB of memory.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from compact import DISTILLKIT, DistillKit
from fidelity_figure import plot
from fidelity_rows import DRAWS, Rows, distances, error_of_draws, teacher_rows
from harness import machine, show, write_json
from peers import Parquet
from rich.progress import track
from size import TIGHT

from logitstore.audit.planning.codecs import CompactRows, Size, exact_size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fidelity_rows import Columns
    from numpy.typing import NDArray

SHARE = 0.05
BOUNDS: dict[str, list[dict[str, float]]] = {
    "compact, lossless": [{}],
    "compact, max-kl": [{"max_kl": bound} for bound in (1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)],
    "compact, max-error": [{"max_error": bound} for bound in (0.03, 0.1, 0.25, 0.5, 1.0)],
}


class Point:
    """A way to store rows with k entries: its bytes a row, and the log-probabilities a reader gets, by ascending id."""

    def __init__(self, method: str, setting: str, size: float, stored: NDArray[Any]) -> None:
        self.method, self.setting, self.size, self.stored = method, setting, size, stored.astype(np.float64)


def ours(training: Columns, columns: Columns, vocab_size: int, expected: int) -> Iterator[Point]:
    rows = len(columns["ids"])
    yield Point("exact", "", bytes_of(exact_size(columns, vocab_size), rows, expected), columns["values"])
    compact = CompactRows(training, columns, vocab_size=vocab_size, expected_rows=expected)
    for method, settings in BOUNDS.items():
        for bounds in settings:
            size, coded = compact.coded(bounds)
            by_id = np.argsort(coded["ids"], axis=1)
            setting = ", ".join(f"{value:g}" for value in bounds.values())
            stored = np.take_along_axis(coded["stored"], by_id, 1)
            yield Point(method, setting, bytes_of(size, rows, expected), stored)


def bytes_of(size: Size, rows: int, expected: int) -> float:
    return sum(size.fields.values()) / rows + size.codebooks / expected


def peers(columns: Columns, exact: NDArray[np.float64], vocab_size: int, distillkit: Path | None) -> Iterator[Point]:
    values = columns["values"]
    rows, k = values.shape
    id_bits = (vocab_size - 1).bit_length()
    yield Point("packed ids + fp16", "", k * (id_bits + 16) / 8, values)
    # Two float16 a row, and 256 even steps between them.
    low, high = (found.astype(np.float16).astype(np.float64)[:, None] for found in (exact.min(1), exact.max(1)))
    step = np.maximum(high - low, 1e-6) / 255
    eight = low + np.clip(np.rint((exact - low) / step), 0, 255) * step
    yield Point("packed ids + 8 bits", "", k * (id_bits + 8) / 8 + 4, eight)
    by_logit = np.argsort(-exact, axis=1)
    orders = columns, {name: np.take_along_axis(array, by_logit, 1) for name, array in columns.items()}
    variants = Parquet("default"), Parquet("delta ids, byte-split values", TIGHT)
    size = min(sum(variant.size(variant.encode({name: array})) for name, array in order.items())
               for order in orders for variant in variants)  # fmt: skip
    yield Point("Parquet + zstd 3", "", size / rows, values)
    if distillkit is not None and k in DISTILLKIT:
        codec = DistillKit(distillkit, k, vocab_size)
        encoded = codec.encode({"ids": columns["ids"], "values": exact})
        decoded = codec.decode(encoded, rows)
        by_id = np.argsort(decoded["ids"], axis=1)
        assert np.array_equal(np.take_along_axis(decoded["ids"], by_id, 1), columns["ids"])
        size = sum(array.numel() * array.element_size() for array in encoded.values())
        yield Point("DistillKit", "", size / rows, np.take_along_axis(decoded["values"], by_id, 1))


def draws(training: Rows, rows: Rows, expected: int) -> Iterator[dict[str, Any]]:
    """Random draws: as the paper packs them, and with our codecs, ids and counts alone."""
    ids = np.count_nonzero(rows.draws["counts"], axis=1).mean()
    packed = ids * ((rows.vocab_size - 1).bit_length() + 7) / 8
    compact = CompactRows(training.draws, rows.draws, vocab_size=rows.vocab_size, expected_rows=expected)
    coded, _ = compact.coded({})
    for method, size in (
        ("RS-KD, packed", packed),
        ("RS-KD, exact", bytes_of(without_values(exact_size(rows.draws, rows.vocab_size)), len(rows.ids), expected)),
        ("RS-KD, compact", bytes_of(without_values(coded), len(rows.ids), expected)),
    ):
        yield {
            "method": method, "setting": f"{DRAWS} draws", "k": round(float(ids), 1), "B/row": size,
            "kept mass": None, "KL, full": None, "KL, kept": None,
            "squared error": error_of_draws(rows),
        }  # fmt: skip


def without_values(size: Size) -> Size:
    return Size({name: part for name, part in size.fields.items() if name != "values"}, size.codebooks)


@click.command(help=__doc__.splitlines()[0])
@click.option("--teacher", required=True, help="Folder or Hugging Face id of a causal language model.")
@click.option("--text", required=True, multiple=True, help="As --data of logitstore build.")
@click.option("--k", "ks", type=int, multiple=True, help="Default: 16, 50, 128, 512 and 5 % of the vocabulary.")
@click.option("--train-rows", default=32768, show_default=True)
@click.option("--rows", default=4096, show_default=True, help="Rows that are measured, behind those.")
@click.option(
    "--expected-rows", default=300_000, show_default=True, help="Rows that a codebook's bytes are spread over."
)
@click.option("--seq-len", default=512, show_default=True, help="Tokens of a document at most.")
@click.option("--distillkit", type=click.Path(exists=True, file_okay=False, path_type=Path), help="A checkout of it.")
@click.option("--figure", type=click.Path(dir_okay=False, path_type=Path), help="Draw the figure here.")
@click.option("--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Write the numbers here.")
def main(
    teacher: str, text: tuple[str, ...], ks: tuple[int, ...], train_rows: int, rows: int, expected_rows: int,
    seq_len: int, distillkit: Path | None, figure: Path | None, json_path: Path | None,
) -> None:  # fmt: skip
    widest = max(ks) if ks else SHARE
    whole = teacher_rows(teacher, text, rows=train_rows + rows, widest=widest, seq_len=seq_len)
    if len(whole.ids) < train_rows + rows:
        raise click.BadParameter(f"the text has {len(whole.ids)} rows, asked for {train_rows + rows}")
    ks = ks or (16, 50, 128, 512, round(SHARE * whole.vocab_size))
    if not 0 < min(ks) <= max(ks) < whole.vocab_size:
        raise click.BadParameter(f"k is 1 to {whole.vocab_size - 1}, found {sorted(ks)}", param_hint="--k")
    training, measured = whole[:train_rows], whole[train_rows:]
    table = []
    for k in track(ks, "codecs"):
        (first, _), (columns, exact) = training.top(k), measured.top(k)
        for point in (
            *peers(columns, exact, whole.vocab_size, distillkit),
            *ours(first, columns, whole.vocab_size, expected_rows),
        ):
            found = distances(measured, exact, point.stored)
            table.append({"method": point.method, "setting": point.setting, "k": k, "B/row": point.size, **found})
    table += draws(training, measured, expected_rows)
    title = f"{rows:,} rows, V = {whole.vocab_size:,}, codebooks of {train_rows:,} rows spread over {expected_rows:,}"
    print(machine())
    show(title, table)
    if figure:
        plot(figure, table, title)
    write_json(json_path, {title: table})


if __name__ == "__main__":
    main()
