"""Rows out of Zarr shards."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from logitstore.container.fields import DOCUMENT_FIELDS, metadata_differences
from logitstore.errors import CorruptDataError, TruncatedDataError
from logitstore.reader.shard_cache import ShardCache

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from logitstore.codec import CutRows
    from logitstore.container.fields import Field
    from logitstore.container.files import StoreFiles
    from logitstore.container.manifest import Manifest

__all__ = ["ZarrRows"]


class ZarrRows:
    """See `RowFiles`. Making one compares each array's Zarr metadata with the manifest."""

    def __init__(
        self,
        files: StoreFiles,
        manifest: Manifest,
        fields: Sequence[Field],
        *,
        verify: str,
        open_files: int,
        max_bytes: int,
    ) -> None:
        self._files = files
        self._manifest = manifest
        self._fields = {field.name: field for field in (*fields, *DOCUMENT_FIELDS)}
        self._rows_per_shard = {name: manifest.geometry(field)[1] for name, field in self._fields.items()}
        self._check_arrays()
        self._shards = ShardCache(files, manifest, verify=verify, capacity=open_files, max_bytes=max_bytes)

    def _check_arrays(self) -> None:
        """Refuse edited metadata: another shape must not change what is read."""
        names = [f"{name}/zarr.json" for name in self._fields]
        for field, name, raw in zip(self._fields.values(), names, self._files.read_many(names), strict=True):
            path = self._files.place(name)
            if raw is None:
                raise TruncatedDataError("the array's metadata is missing", path=path)
            try:
                found = json.loads(raw)
            except (ValueError, RecursionError) as error:
                raise CorruptDataError(f"the array's metadata is not JSON: {error}", path=path) from None
            if not isinstance(found, dict):
                raise CorruptDataError("the array's metadata is an object", path=path)
            for key, value, expected in metadata_differences(found, field, *self._manifest.geometry(field)):
                raise CorruptDataError(f"the array's {key} is {value}, the manifest gives {expected}", path=path)

    def offsets(self, start: int, stop: int) -> NDArray[Any]:
        """See `RowFiles`."""
        return self._document_array("doc_offsets", start, stop + 1)

    def line(self, document: int) -> tuple[int, int]:
        """See `RowFiles`."""
        first, last = self._document_array("doc_lines", document, document + 2).tolist()
        return first, last

    def _document_array(self, name: str, start: int, stop: int) -> NDArray[Any]:
        out = np.empty(stop - start, np.int64)
        self.read(start, stop, {name: out})
        return out

    def read(self, start: int, stop: int, out: Mapping[str, NDArray[Any] | CutRows]) -> None:
        """See `RowFiles`. Takes the arrays about documents as well, whose rows are documents."""
        for name, target in out.items():
            field, rows_per_shard = self._fields[name], self._rows_per_shard[name]
            for shard in range(start // rows_per_shard, -(-stop // rows_per_shard)):
                base = shard * rows_per_shard
                low, high = max(start, base), min(stop, base + rows_per_shard)
                self._shards.get(field, shard).read_into(low - base, high - base, target[low - start : high - start])

    def close(self) -> None:
        """See `RowFiles`."""
        self._shards.close()
