"""Records of Hugging Face datasets, by name or from a folder that ``save_to_disk`` wrote."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from logitstore.corpus.content import columns_to_read
from logitstore.corpus.inputs import CorpusDataset, InputRecord
from logitstore.corpus.keys import record_key
from logitstore.errors import InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from logitstore.corpus.config import CorpusConfig

__all__ = ["dataset_identity", "dataset_size", "read_dataset"]


def read_dataset(dataset: CorpusDataset, config: CorpusConfig) -> Iterator[tuple[InputRecord, int]]:
    """Yield every record of one split, streamed, each with the number of records read so far.

    Raises
    ------
    InvalidArgumentError
        If ``datasets`` is not installed, or there is no such dataset or split.
    """
    rows = _load(dataset, config.split)
    columns = columns_to_read(rows.column_names or [], config)
    if columns is not None:
        # Columns nobody asked for are not decoded: images and audio need packages of their own.
        rows = rows.select_columns(columns)
    for index, fields in enumerate(rows):
        yield InputRecord(dict(fields), record_key(dataset.name, index), dataset.url, f"row {index}"), index + 1


def dataset_size(dataset: CorpusDataset, split: str) -> int | None:
    """Return the rows of a saved dataset; None for a named one, which says nothing of its size."""
    return len(_load(dataset, split)) if dataset.saved else None


def dataset_identity(dataset: CorpusDataset, split: str) -> dict[str, Any]:
    """Return what tells one version of a dataset from another; JSON.

    A saved dataset has a fingerprint and a number of rows. For a named one it is the hash of its builder, which
    follows the revision on the hub.
    """
    if dataset.saved:
        rows = _load(dataset, split)
        return {"dataset": dataset.name, "split": split, "fingerprint": rows._fingerprint, "rows": len(rows)}
    datasets = _import_datasets()
    name, configuration = _name_and_configuration(dataset.source)
    try:
        builder = datasets.load_dataset_builder(name, configuration)
    except Exception as error:
        raise _not_loadable(dataset, split, error) from error
    return {"dataset": dataset.source, "split": split, "fingerprint": str(builder.hash)}


def _load(dataset: CorpusDataset, split: str) -> Any:
    datasets = _import_datasets()
    # The package raises whatever the network, the hub client or the loading script raises; all of it means the same.
    try:
        if not dataset.saved:
            name, configuration = _name_and_configuration(dataset.source)
            return datasets.load_dataset(name, configuration, split=split, streaming=True)
        loaded = datasets.load_from_disk(dataset.source)
    except Exception as error:
        raise _not_loadable(dataset, split, error) from error
    if not isinstance(loaded, datasets.DatasetDict):
        return loaded
    if split not in loaded:
        raise InvalidArgumentError(
            f"split must be one of {', '.join(sorted(loaded))}, found {split!r}", path=dataset.url
        )
    return loaded[split]


def _import_datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise InvalidArgumentError(
            "Hugging Face datasets need a package that is not installed: pip install 'logitstore[datasets]'"
        ) from error
    return datasets


def _name_and_configuration(source: str) -> tuple[str, str | None]:
    name, _, configuration = source.partition(":")
    return name, configuration or None


def _not_loadable(dataset: CorpusDataset, split: str, error: Exception) -> InvalidArgumentError:
    what = "saved dataset" if dataset.saved else "file or folder of this name, and no Hugging Face dataset"
    return InvalidArgumentError(
        f"{dataset.source}: no {what} with split {split!r} could be loaded: {type(error).__name__}: {error}"
    )
