"""The compact codec on the rows of a store: bytes, what was lost, and speed, with every codebook counted.

    python benchmarks/compact.py STORE --setting lossless --setting max_kl=3e-4 --setting max_error=0.25

Codebooks are trained on the first rows of the store and measured on the ones behind. DistillKit's codec is compared
where ``--distillkit`` names a checkout of it; ``--top`` keeps the most probable entries of every row alone.
"""

# ruff: noqa: D102 - all codecs have the same two methods.
from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from harness import machine, median_ratio, show, use_one_core, write_json

use_one_core()

import numpy as np  # noqa: E402

import logitstore  # noqa: E402
from logitstore.codec import decode, encode  # noqa: E402
from logitstore.codec.compact import (  # noqa: E402
    IdCodec,
    ValueCodec,
    generalised_kl,
    train_ids,
    train_values,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

CHUNK_ENTRIES = 131072
DISTILLKIT = {
    128: {"k": 128, "exact_k": 16, "exact_dtype": "bfloat16", "polynomial_terms": [0, 1, 2, 3, 4, "sqrt"]},
    50: {"k": 50, "exact_k": 1, "exact_dtype": "bfloat16", "polynomial_terms": [0, 1, "sqrt"]},
}
"""Its README's settings. It gets float64 values, so that it fits in float64: in float32 it is much worse."""


class Rows:
    """Ids, values and, where a store has them, counts of a store's rows."""

    def __init__(self, path: Path, top: int | None) -> None:
        self._store = logitstore.open(path, order="logit" if top else "stored")
        self.manifest = self._store.manifest
        self.slots = top or self._store.k_max
        self.vocab_size = self._store.vocab_size
        self._fields = ("ids", "values", *(["counts"] if self.manifest.has_counts else []))

    def read(self, start: int, stop: int) -> dict[str, NDArray[Any]]:
        rows = self._store.read(start, stop, self._fields)
        found = {name: getattr(rows, name) for name in self._fields}
        if self.slots < self._store.k_max:
            # The store was opened by falling logit; ids ascend again, as the exact codec has them.
            order = np.argsort(found["ids"][:, : self.slots], axis=1)
            found = {name: np.take_along_axis(array[:, : self.slots], order, 1) for name, array in found.items()}
        return found

    def parts(self, start: int, stop: int, rows: int) -> Iterator[dict[str, NDArray[Any]]]:
        step = rows * max(1, 32768 // rows)
        for first in range(start, stop, step):
            block = self.read(first, min(first + step, stop))
            for at in range(0, len(block["ids"]), rows):
                yield {name: array[at : at + rows] for name, array in block.items()}


class Compact:
    """Codecs of all arrays with one setting."""

    def __init__(
        self, rows: Rows, first: dict[str, NDArray[Any]], ids: IdCodec, expected: int, options: dict[str, float]
    ) -> None:
        self.ids = ids
        arranged = ids.arrange(first["ids"])
        self.codecs = {}
        self.book_bytes = {}
        for name in ("values", "counts"):
            if name in first:
                book = train_values(
                    arranged.take(first[name]),
                    expected_rows=expected,
                    **(options if name == "values" else {}),
                )
                self.codecs[name] = ValueCodec(book, rows.slots)
                self.book_bytes[name] = len(book.blob)

    def encode(self, part: dict[str, NDArray[Any]]) -> dict[str, bytes]:
        arranged = self.ids.arrange(part["ids"])
        chunks = {"ids": self.ids.encode(arranged)}
        for name, codec in self.codecs.items():
            chunks[name] = codec.encode(arranged.take(part[name]))
        return chunks

    def decode(self, chunks: dict[str, bytes], rows: int) -> dict[str, NDArray[Any]]:
        return {name: (self.codecs.get(name) or self.ids).decode(chunk, rows) for name, chunk in chunks.items()}


class Exact:
    """The exact codec behind the same interface."""

    def __init__(self, rows: Rows) -> None:
        self._vocab_size, self._slots = rows.vocab_size, rows.slots

    def encode(self, part: dict[str, NDArray[Any]]) -> dict[str, bytes]:
        return {
            name: encode(array, "ids" if name == "ids" else "values", vocab_size=self._vocab_size)
            for name, array in part.items()
        }

    def decode(self, chunks: dict[str, bytes], rows: int) -> dict[str, NDArray[Any]]:
        types = {"ids": "u4", "values": "f2", "counts": "u1"}
        return {
            name: decode(
                chunk,
                "ids" if name == "ids" else "values",
                shape=(rows, self._slots),
                dtype=types[name],
                vocab_size=self._vocab_size if name == "ids" else 0,
            )
            for name, chunk in chunks.items()
        }


def measure(rows: Rows, compact: Compact, id_book_bytes: int, start: int, stop: int) -> dict[str, float]:
    """Bits per entry and what was lost, over rows ``start:stop``."""
    sizes = {"ids": id_book_bytes, **compact.book_bytes}
    books = sum(sizes.values())
    entries, kls, errors, largest, exactly = 0, [], 0.0, 0.0, 0
    for part in rows.parts(start, stop, chunk_rows(rows.slots)):
        chunks = compact.encode(part)
        for name, chunk in chunks.items():
            sizes[name] += len(chunk)
        decoded = compact.decode(chunks, len(part["ids"]))
        arranged = compact.ids.arrange(part["ids"])
        assert np.array_equal(decoded["ids"], arranged.ids)
        values = arranged.take(part["values"])
        used = decoded["ids"] != np.uint32(0xFFFFFFFF)
        entries += int(used.sum())
        kls.append(generalised_kl(values, decoded["values"]))
        difference = np.abs(values[used].astype(np.float32) - decoded["values"][used].astype(np.float32))
        errors += float(difference.sum())
        largest = max(largest, float(difference.max(initial=0)))
        exactly += int((values == decoded["values"]).all(axis=1).sum())
    kl = np.concatenate(kls)
    total = sum(sizes.values())
    return {
        "B/row": total / (stop - start),
        **{f"{name} bits": 8 * size / entries for name, size in sizes.items()},
        "of it codebooks": 8 * books / entries,
        "KL mean": float(kl.mean()),
        "KL p99": float(np.quantile(kl, 0.99)),
        "KL max": float(kl.max()),
        "error mean": errors / entries,
        "error max": largest,
        "rows bit for bit": exactly / (stop - start),
    }


def chunk_rows(slots: int) -> int:
    return 1 << max(0, (CHUNK_ENTRIES // slots).bit_length() - 1)


def speeds(codecs: dict[str, Any], parts: list[dict[str, NDArray[Any]]], rounds: int) -> list[dict[str, Any]]:
    """Time each codec in turns, in processor time, as multiples of a memory copy of what is decoded."""
    pairs = [(np.zeros_like(array), array) for part in parts for array in part.values()]
    encoded = {name: [codec.encode(part) for part in parts] for name, codec in codecs.items()}

    def timed(call: Callable[[Any, int], Any], arguments: list[Any]) -> float:
        start = time.process_time()
        for argument, part in zip(arguments, parts, strict=True):
            call(argument, len(part["ids"]))
        return time.process_time() - start

    def copy() -> float:
        start = time.process_time()
        for target, array in pairs:
            np.copyto(target, array)
        return time.process_time() - start

    times: dict[str, list[float]] = {}
    for turn in range(rounds + 1):
        for name, codec in list(codecs.items())[:: 1 if turn % 2 == 0 else -1]:
            took = {
                f"{name} decode": timed(codec.decode, encoded[name]),
                f"{name} encode": timed(lambda part, _rows, codec=codec: codec.encode(part), parts),
                f"{name} copy": copy(),
            }
            for key, seconds in took.items() if turn else ():
                times.setdefault(key, []).append(seconds)
    return [
        {
            "codec": name,
            "decode: copies": median_ratio(times[f"{name} decode"], times[f"{name} copy"]),
            "encode: copies": median_ratio(times[f"{name} encode"], times[f"{name} copy"]),
        }
        for name in codecs
    ]


class DistillKit:
    """DistillKit's codec, row by row as its capture does, a batch of rows at a time."""

    def __init__(self, checkout: Path, slots: int, vocab_size: int) -> None:
        import torch

        torch.set_num_threads(1)
        sys.path.insert(0, str(checkout))
        from distillkit.compression import DistributionQuantizationConfig, LogprobCompressor

        self._torch = torch
        self._compressor = LogprobCompressor(
            DistributionQuantizationConfig(
                d=vocab_size, term_dtype="float32", residual_bins=[], delta_encoding=False, **DISTILLKIT[slots]
            )
        )

    def encode(self, part: dict[str, NDArray[Any]]) -> dict[str, Any]:
        ids = self._torch.from_numpy(part["ids"].astype(np.int64))
        values = self._torch.from_numpy(part["values"].astype(np.float64))
        return self._compressor.compress_from_sparse(ids, values)

    def decode(self, encoded: dict[str, Any], _rows: int) -> dict[str, NDArray[Any]]:
        ids, values = self._compressor.decompress_to_sparse(encoded)
        return {"ids": ids.numpy(), "values": values.float().numpy()}


def distillkit_row(codec: DistillKit, parts: list[dict[str, NDArray[Any]]]) -> dict[str, Any]:
    kls, size, errors = [], 0, []
    for part in parts:
        encoded = codec.encode(part)
        size += sum(array.numel() * array.element_size() for array in encoded.values())
        decoded = codec.decode(encoded, len(part["ids"]))
        values = -np.sort(-part["values"].astype(np.float64), axis=1)
        kls.append(generalised_kl(values, decoded["values"]))
        errors.append(np.abs(values - decoded["values"]))
    kl, error = np.concatenate(kls), np.concatenate(errors)
    return {
        "setting": "DistillKit",
        "B/row": size / len(kl),
        "KL mean": float(kl.mean()),
        "KL p99": float(np.quantile(kl, 0.99)),
        "KL max": float(kl.max()),
        "error mean": float(error.mean()),
        "error max": float(error.max()),
    }


def options_of(setting: str) -> dict[str, float]:
    """``max_kl=3e-4,max_error=0.5`` or ``lossless``."""
    return {} if setting == "lossless" else {k: float(v) for k, v in (part.split("=") for part in setting.split(","))}


def plot(path: Path, table: list[dict[str, Any]]) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    ours = sorted(
        (row["B/row"], row["KL mean"]) for row in table if row["KL mean"] > 0 and row["setting"] != "DistillKit"
    )
    axes.loglog(*zip(*ours, strict=True), "o-", label="compact, codebooks included")
    for row in table:
        if row["setting"] == "DistillKit":
            axes.loglog(row["B/row"], row["KL mean"], "s", label="DistillKit, its README's settings")
    axes.set_xlabel("bytes per row")
    axes.set_ylabel("generalised KL of the kept entries, mean (nats)")
    axes.grid(which="both", alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


@click.command(help=__doc__.splitlines()[0])
@click.argument("store", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--setting", "settings", multiple=True, default=("lossless", "max_kl=3e-4"), show_default=True)
@click.option("--top", type=int, help="Keep only the most probable entries of a row.")
@click.option("--train-rows", default=1 << 17, show_default=True)
@click.option("--rows", type=int, help="Rows that are measured; all behind the first ones, if not given.")
@click.option("--speed-rows", default=8192, show_default=True)
@click.option("--rounds", default=5, show_default=True)
@click.option("--distillkit", type=click.Path(exists=True, file_okay=False, path_type=Path), help="A checkout of it.")
@click.option("--figure", type=click.Path(dir_okay=False, path_type=Path), help="Draw fidelity against bytes here.")
@click.option("--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Write the numbers here.")
def main(
    store: Path, settings: tuple[str, ...], top: int | None, train_rows: int, rows: int | None, speed_rows: int,
    rounds: int, distillkit: Path | None, figure: Path | None, json_path: Path | None,
) -> None:  # fmt: skip
    source = Rows(store, top)
    stop = source.manifest.rows if rows is None else min(source.manifest.rows, train_rows + rows)
    if stop <= train_rows:
        raise click.BadParameter(f"the store has {stop} rows, none are left behind the first {train_rows}")
    first = source.read(0, train_rows)
    began = time.perf_counter()
    book = train_ids(first["ids"], vocab_size=source.vocab_size, expected_rows=stop - train_rows)
    print(f"{book.classes} classes in {time.perf_counter() - began:.0f} s, codebook of {len(book.blob):,} bytes")
    ids = IdCodec(book, source.slots)
    sample = {name: array[: 1 << 16] for name, array in first.items()}
    table, codecs = [], {"exact": Exact(source)}
    for setting in settings:
        compact = Compact(source, sample, ids, stop - train_rows, options_of(setting))
        codecs[f"compact {setting}"] = compact
        table.append({"setting": setting, **measure(source, compact, len(book.blob), train_rows, stop)})
    parts = list(source.parts(train_rows, min(stop, train_rows + speed_rows), chunk_rows(source.slots)))
    peers = []
    if distillkit is not None and source.slots in DISTILLKIT:
        codecs["DistillKit"] = DistillKit(distillkit, source.slots, source.vocab_size)
        peers.append(distillkit_row(codecs["DistillKit"], parts))
    what = f"{stop - train_rows:,} rows of {store.name}, K = {source.slots}"
    tables = {f"bytes and what was lost: {what}": table, f"one core: {what}": speeds(codecs, parts, rounds)}
    if peers:
        tables[f"DistillKit, {sum(len(part['ids']) for part in parts):,} of these rows"] = peers
    print(machine())
    for title, lines in tables.items():
        show(title, lines)
    if figure:
        plot(figure, [*table, *peers])
    write_json(json_path, tables)


if __name__ == "__main__":
    main()
