"""Documents of a store for a plain DataLoader."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any, Literal

import torch.utils.data

import logitstore
from logitstore.reader import Document, Store

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

__all__ = ["DocumentDataset", "opened"]


class DocumentDataset(torch.utils.data.Dataset[Document]):
    """A map-style dataset of whole documents. Picklable; safe in forked and spawned workers.

    For exact resuming, packing and ranks, and for speed, use `BatchStream`.

    Parameters
    ----------
    store_or_path
        A store, which is used as it is, or where there is one.
    verify, order, storage_options
        As for `logitstore.open`, if a path is given. Entries are in the stored order by default, which is faster.

    Examples
    --------
    >>> from torch.utils.data import DataLoader
    >>> from logitstore.stream import Collate
    >>> dataset = DocumentDataset("teacher.zarr")                                  # doctest: +SKIP
    >>> loader = DataLoader(dataset, batch_size=8, shuffle=True, collate_fn=Collate(), num_workers=2)  # doctest: +SKIP
    """

    def __init__(
        self,
        store_or_path: Store | str | os.PathLike[str],
        *,
        verify: Literal["none", "lazy", "full"] = "lazy",
        order: Literal["logit", "stored"] = "stored",
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        self.store = opened(store_or_path, verify=verify, order=order, storage_options=storage_options)

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, index: int) -> Document:
        """Return a document; negative numbers count from the end. Raises IndexError behind either."""
        return self.store[operator.index(index)]

    def __getitems__(self, indices: Sequence[int]) -> list[Document]:
        """Return several documents in the order asked for. They are read in the order of the store, each once."""
        numbers = [range(len(self))[index] for index in indices]
        documents = {number: self[number] for number in sorted(set(numbers))}
        return [documents[number] for number in numbers]


def opened(
    store_or_path: Store | str | os.PathLike[str],
    *,
    storage_options: Mapping[str, Any] | None,
    **settings: Any,
) -> Store:
    """Return the store, or open the one at a path."""
    if isinstance(store_or_path, Store):
        return store_or_path
    if storage_options is not None:
        settings["storage_options"] = storage_options
    return logitstore.open(store_or_path, **settings)
