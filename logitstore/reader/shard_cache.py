"""Shards of a Zarr store, opened as the shard table says."""

from __future__ import annotations

from typing import TYPE_CHECKING

from logitstore.container.shard import ShardReader
from logitstore.container.shard_table import ShardTable, file_record
from logitstore.errors import CorruptDataError
from logitstore.reader.open_files import OpenFiles

if TYPE_CHECKING:
    from logitstore.container.fields import Field
    from logitstore.container.files import StoreFiles
    from logitstore.container.manifest import Manifest

__all__ = ["ShardCache"]


class ShardCache:
    """Open shards on demand and keep some of them; see `OpenFiles`.

    Parameters
    ----------
    files, manifest
        The store.
    verify
        As for `ShardReader`.
    capacity, max_bytes
        As for `OpenFiles`.
    """

    def __init__(
        self, files: StoreFiles, manifest: Manifest, *, verify: str, capacity: int, max_bytes: int = 1 << 62
    ) -> None:
        self._files = files
        self._manifest = manifest
        self._verify = verify
        self._table = ShardTable(files, manifest.record_bytes, manifest.row_shards + manifest.document_shards)
        self._open: OpenFiles[ShardReader] = OpenFiles(capacity, max_bytes)

    def get(self, field: Field, shard: int) -> ShardReader:
        """Return the open shard. Errors as `ShardReader`."""
        return self._open.get((field.name, shard), lambda: self._open_shard(field, shard))

    def _open_shard(self, field: Field, shard: int) -> ShardReader:
        total, rows_per_shard = self._manifest.geometry(field)
        first_row = shard * rows_per_shard
        rows = min(rows_per_shard, total - first_row)
        record = self._table.record(self._manifest.record_number(field, shard))
        if (record.shard, record.first_row, record.rows) != (shard, first_row, rows):
            raise CorruptDataError(
                f"the shard table speaks of shard {record.shard} with {record.rows} rows from row {record.first_row}, "
                f"expected {rows} rows from row {first_row}",
                path=self._table.path, shard=shard,
            )  # fmt: skip
        file = file_record(record, field.name, self._table.path)
        return ShardReader(
            self._files,
            field.file_name(shard),
            store_id=bytes.fromhex(self._manifest.store_id),
            field=field,
            shard=shard,
            first_row=first_row,
            rows=rows,
            chunks=rows_per_shard // field.chunk_rows,
            size=file.bytes,
            digest=file.sha256,
            verify=self._verify,
        )

    def close(self) -> None:
        """Close everything."""
        self._open.close()
