"""The shard files a reader has open: few, however many the store has."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from logitstore import layout
from logitstore.container.shard import ShardReader
from logitstore.container.shard_table import ShardTable, file_record
from logitstore.errors import CorruptDataError

if TYPE_CHECKING:
    from pathlib import Path

    from logitstore.container.fields import Field
    from logitstore.container.manifest import Manifest

__all__ = ["ShardCache"]


class ShardCache:
    """Open shards on demand and keep the most recently used ones.

    Safe to use from several threads. A forked child and an unpickled copy start with nothing open.

    Parameters
    ----------
    path, manifest
        The store.
    verify
        As for `ShardReader`.
    capacity
        Files kept open, at least one.
    """

    def __init__(self, path: Path, manifest: Manifest, *, verify: str, capacity: int) -> None:
        self._path = path
        self._manifest = manifest
        self._verify = verify
        self._capacity = max(1, capacity)
        records = manifest.row_shards + manifest.document_shards
        self._table = ShardTable(path / layout.SHARD_TABLE_FILE, manifest.record_bytes, records)
        self._start()

    def _start(self) -> None:
        self._open: OrderedDict[tuple[str, int], ShardReader] = OrderedDict()
        self._lock = threading.Lock()
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_open", "_lock", "_process")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    def get(self, field: Field, shard: int) -> ShardReader:
        """Return the open shard. Errors as `ShardReader`."""
        if self._process != os.getpid():
            self._start()
        key = (field.name, shard)
        with self._lock:
            reader = self._open.get(key)
            if reader is not None:
                self._open.move_to_end(key)
                return reader
            reader = self._open_shard(field, shard)
            self._open[key] = reader
            if len(self._open) > self._capacity:
                # Dropped, not closed: another thread may be reading it. The last reference unmaps the file.
                self._open.popitem(last=False)
            return reader

    def _open_shard(self, field: Field, shard: int) -> ShardReader:
        total, rows_per_shard = self._manifest.geometry(field)
        first_row = shard * rows_per_shard
        rows = min(rows_per_shard, total - first_row)
        path = self._path / field.file_name(shard)
        record = self._table.record(self._manifest.record_number(field, shard))
        if (record.shard, record.first_row, record.rows) != (shard, first_row, rows):
            raise CorruptDataError(
                f"the shard table speaks of shard {record.shard} with {record.rows} rows from row {record.first_row}, "
                f"expected {rows} rows from row {first_row}",
                path=self._table.path, shard=shard,
            )  # fmt: skip
        file = file_record(record, field, path.parent)
        return ShardReader(
            path,
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
        with self._lock:
            for reader in self._open.values():
                reader.close()
            self._open.clear()
