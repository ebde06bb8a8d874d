"""Rows delivered per second into training batches: here, WebDataset with .npz, Hugging Face datasets with Parquet.

    python benchmarks/stream.py STORES/k64-logprob-float32.zarr

Everybody delivers batches of padded tensors: tokens, ids, logprobs, lse, label_logprob, mask. Peers read in the order
in which they were written; ours shuffles, and delivers labels and positions as well. Datasets are made once and then
iterated, an epoch at a time.
"""

from __future__ import annotations

import io
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from harness import in_turns, median_ratio, show, use_one_core, write_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.utils.data import DataLoader

FIELDS = ("tokens", "ids", "logprobs", "lse", "label_logprob", "mask")


def write_npz(store: Any, folder: Path, *, compressed: bool) -> None:
    """Write a sample per document, as WebDataset's own writer does for .npz (compressed) or with plain numpy.savez."""
    import numpy as np
    import webdataset as wds

    folder.mkdir()
    with wds.ShardWriter(str(folder / "%06d.tar"), maxsize=256_000_000, verbose=0) as writer:
        for document in store:
            arrays = {name: getattr(document, name) for name in FIELDS}
            if compressed:
                content: Any = arrays
            else:
                stream = io.BytesIO()
                np.savez(stream, **arrays)
                content = stream.getvalue()
            writer.write({"__key__": f"{document.index:010d}", "npz": content})


def write_parquet(store: Any, folder: Path) -> None:
    """Write a row per document, rows of the store flattened, several files, zstd."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir()
    writer = None
    for document in store:
        columns = {name: pa.array([getattr(document, name).reshape(-1)]) for name in FIELDS}
        table = pa.table(columns)
        if writer is None or document.index % 32 == 0:
            if writer is not None:
                writer.close()
            writer = pq.ParquetWriter(folder / f"{document.index:06d}.parquet", table.schema, compression="zstd")
        writer.write_table(table)
    if writer is not None:
        writer.close()


def to_batch(documents: list[dict[str, Any]]) -> dict[str, Any]:
    """Pad and stack what a peer has decoded."""
    import numpy as np
    import torch

    longest = max(len(document["tokens"]) for document in documents)
    batch = {}
    for name, like in documents[0].items():
        array = np.zeros((len(documents), longest, *like.shape[1:]), np.int64 if name == "tokens" else like.dtype)
        for row, document in zip(array, documents, strict=True):
            row[: len(document[name])] = document[name]
        batch[name] = torch.from_numpy(array.view(np.int32) if name == "ids" else array)
    return batch


def npz_batches(samples: list[dict[str, Any]]) -> dict[str, Any]:
    return to_batch([{name: sample["npz"][name] for name in FIELDS} for sample in samples])


def parquet_batches(slots: int, rows: list[dict[str, Any]]) -> dict[str, Any]:
    wide = ("ids", "logprobs")
    return to_batch(
        [{name: row[name].reshape(-1, slots) if name in wide else row[name] for name in FIELDS} for row in rows]
    )


def contenders(path: Path, tars: Path, scratch: Path, batch: int, workers: int) -> dict[str, Callable[[], int]]:
    """Return, by name, what delivers an epoch and returns its rows."""
    import datasets
    import webdataset as wds
    from torch.utils.data import DataLoader

    import logitstore
    from logitstore.stream import BatchStream

    datasets.disable_progress_bars()
    slots = logitstore.open(path).k_max
    # Their default types for these columns would be wider.
    parquet = datasets.load_dataset(
        "parquet", data_files=sorted(map(str, (scratch / "parquet").glob("*.parquet"))), split="train", streaming=True,
        cache_dir=str(scratch / "cache"),
    ).with_format("numpy")  # fmt: skip

    def loader(dataset: Any, **options: Any) -> DataLoader[Any]:
        return DataLoader(dataset, num_workers=workers, persistent_workers=bool(workers), **options)

    def ours(where: Path) -> DataLoader[Any]:
        return loader(BatchStream(where, batch, prefetch=2 if workers else 0), batch_size=None)

    def npz(folder: str) -> DataLoader[Any]:
        urls = sorted(map(str, (scratch / folder).glob("*.tar")))
        pipeline = wds.WebDataset(urls, shardshuffle=False, workersplitter=wds.split_by_worker, empty_check=False)
        return loader(pipeline.decode().batched(batch, collation_fn=npz_batches), batch_size=None)

    loaders: dict[str, DataLoader[Any]] = {
        "logitstore, Zarr shards": ours(path),
        "logitstore, tar shards": ours(tars),
        "WebDataset, .npz": npz("npz"),
        "WebDataset, .npz not compressed": npz("npz-plain"),
        "datasets, Parquet": loader(parquet, batch_size=batch, collate_fn=partial(parquet_batches, slots)),
    }

    def epoch(batches: DataLoader[Any]) -> int:
        return sum(batch["tokens"].numel() for batch in batches)

    return {name: partial(epoch, batches) for name, batches in loaders.items()}


def bytes_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


@click.command(help=__doc__.splitlines()[0])
@click.argument("store", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--batch", default=8, show_default=True, help="Documents of a batch.")
@click.option("--rounds", default=5, show_default=True)
@click.option("--workers", default=0, show_default=True, help="DataLoader workers; 0 measures one process on one core.")
@click.option("--folder", type=click.Path(exists=True, file_okay=False, path_type=Path), help="For the peers' files.")
@click.option("--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Write the numbers here.")
def main(
    store: Path,
    batch: int,
    rounds: int,
    workers: int,
    folder: Path | None,
    json_path: Path | None,
) -> None:
    if not workers:
        use_one_core()
    import warnings

    import torch

    import logitstore
    from logitstore.convert import convert

    warnings.filterwarnings("ignore")  # peers' about arrays that cannot be written
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        scratch = Path(name)
        tars = scratch / "tars"
        convert(store, tars, to="webdataset")
        with logitstore.open(store, order="stored") as opened:
            rows = len(opened.rows)
            write_npz(opened, scratch / "npz", compressed=True)
            write_npz(opened, scratch / "npz-plain", compressed=False)
            write_parquet(opened, scratch / "parquet")
        found = contenders(store, tars, scratch, batch, workers)
        for contender, epoch in found.items():
            if epoch() != rows:
                raise click.ClickException(f"{contender} does not deliver the {rows} rows of the store")
        seconds = in_turns(found, rounds)
        sizes = dict(
            zip(
                found,
                map(bytes_of, (store, tars, *(scratch / n for n in ("npz", "npz-plain", "parquet")))),
                strict=True,
            )
        )
    table = [
        {
            "reader": contender,
            "rows/s": rows / sorted(times)[len(times) // 2],
            "ours, Zarr: times as fast": median_ratio(times, seconds["logitstore, Zarr shards"]),
            "ours, tar: times as fast": median_ratio(times, seconds["logitstore, tar shards"]),
            "bytes a row": sizes[contender] / rows,
        }
        for contender, times in seconds.items()
    ]
    where = f"{workers} DataLoader workers" if workers else "one process, one core, no threads"
    show(f"{store.name}: batches of {batch} documents, {where}", table)
    write_json(json_path, {"stream": table})


if __name__ == "__main__":
    main()
