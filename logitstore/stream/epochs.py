"""What decides which batches an epoch has, and nothing that does not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from logitstore.stream.order import DocumentOrder, block_documents
from logitstore.stream.plan import Plan

if TYPE_CHECKING:
    from logitstore.reader import Store
    from logitstore.stream.collate import Collate

__all__ = ["Epochs"]


@dataclass(frozen=True)
class Epochs:
    """The epochs of a stream; see `BatchStream` for the settings."""

    store: Store
    batch_size: int
    collate: Collate
    shuffle: bool
    seed: int
    window: int

    def plan(self, epoch: int) -> Plan:
        """Return the batches of an epoch."""
        return Plan(self.store, self._order(epoch), self.batch_size, self.collate.seq_len, self.collate.pack)

    def settings(self) -> dict[str, Any]:
        """Return what a state must have in common with a stream, as plain JSON."""
        manifest = self.store.manifest
        return {
            "store": {
                "store_id": manifest.store_id,
                "documents": manifest.documents,
                "rows": manifest.rows,
                "documents_sha256": manifest.documents_file.sha256 if manifest.documents_file else None,
            },
            "order": self._order(0).name,
            "shuffle": self.shuffle,
            "seed": self.seed,
            "window": self.window,
            "batch_size": self.batch_size,
            "seq_len": self.collate.seq_len,
            "pack": self.collate.pack,
        }

    def _order(self, epoch: int) -> DocumentOrder:
        manifest = self.store.manifest
        block = block_documents(manifest.documents, manifest.rows, manifest.rows_per_shard)
        return DocumentOrder(manifest.documents, self.window, block, self.seed, epoch, self.shuffle)
