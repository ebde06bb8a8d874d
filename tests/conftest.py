from __future__ import annotations

import hashlib
import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from logitstore import layout
from logitstore.container import book_choice
from logitstore.container.manifest import Manifest
from logitstore.container.writer import StoreWriter, prepare_directory
from logitstore.records import RowBatch, TokenDocument

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

Documents = list[tuple[TokenDocument, RowBatch]]


class StoreMaker:
    """Makes stores out of random logits, without a teacher: consistent in every rule that `verify` knows."""

    VOCAB_SIZE = 97

    def manifest(self, slots: int = 5, **changes: Any) -> Manifest:
        settings: dict[str, Any] = {
            "store_id": "0123456789abcdef" * 2, "complete": False, "vocab_size": self.VOCAB_SIZE,
            "padded_vocab_size": 128, "slots": slots, "values": "logprob", "rows_per_shard": 32,
            "selection": {"top_k": slots}, "teacher": {}, "tokenizer": {}, "corpus": {}, "build": {"rows": "all"},
            "versions": {},
        }  # fmt: skip
        return Manifest(**(settings | changes))

    def documents(self, lengths: list[int], manifest: Manifest, *, seed: int = 0, ragged: bool = False) -> Documents:
        """Documents of so many tokens each; ragged rows keep 1 to K entries, as a top-p selection does."""
        generator = np.random.default_rng(seed)
        return [self._document(number, n, manifest, generator, ragged) for number, n in enumerate(lengths)]

    def _document(
        self, number: int, n: int, manifest: Manifest, generator: np.random.Generator, ragged: bool
    ) -> tuple[TokenDocument, RowBatch]:
        V, K = manifest.vocab_size, manifest.slots
        logits = (generator.standard_normal((n, V)) * 3).astype(np.float32)
        tokens = generator.integers(0, V, n).astype(np.uint32)
        lse = np.log(np.exp(logits.astype(np.float64)).sum(axis=1)).astype(np.float32)
        mask = generator.integers(0, 2, n).astype(np.uint8)
        mask[-1] = 0
        asked = mask != 0 if manifest.build["rows"] == "masked" else np.ones(n, bool)
        kept = np.argsort(-logits, axis=1, kind="stable")[:, :K]
        used = np.arange(K) < (generator.integers(1, K + 1, n)[:, None] if ragged else K)
        used = used & asked[:, None]
        ids = np.where(used, kept, layout.UNUSED_ID).astype(np.uint32)
        order = np.argsort(ids, axis=1)
        ids = np.take_along_axis(ids, order, axis=1)
        used = np.take_along_axis(used, order, axis=1)
        at = np.take_along_axis(logits, np.where(used, ids, 0), axis=1)
        if manifest.values == "logprob":
            at = at - lse[:, None]
        label = np.full(n, np.nan, np.float32)
        label[:-1] = logits[np.arange(n - 1), tokens[1:]] - lse[:-1]
        counts = None
        if manifest.has_counts:
            shares = used / np.maximum(1, used.sum(axis=1, keepdims=True))
            draws = np.array([generator.multinomial(50, p) if p.any() else 0 * p for p in shares])
            counts = draws.astype(np.uint8).reshape(n, K)
        lse_T = None
        if manifest.temperatures:
            scaled = [np.log(np.exp(logits.astype(np.float64) / T).sum(axis=1)) for T in manifest.temperatures]
            lse_T = np.where(asked[:, None], np.stack(scaled, 1), np.nan).astype(np.float32)
        rows = RowBatch(
            tokens=tokens,
            ids=ids,
            values=np.where(used, at, -np.inf).astype(np.float16),
            lse=np.where(asked, lse, np.nan).astype(np.float32),
            label_logprob=np.where(asked, label, np.nan).astype(np.float32),
            mask=mask,
            counts=counts,
            lse_T=lse_T,
        )
        metadata = {"source": "a"} if number % 2 else {}
        parent = ("long", 7 * number) if number % 3 == 0 else None
        return TokenDocument(f"document {number}", tokens, mask, parent, metadata), rows

    def write(self, path: Path, documents: Documents, manifest: Manifest, *, workers: int = 2) -> Path:
        prepare_directory(path)
        with StoreWriter(path, manifest, workers=workers) as writer:
            for document, rows in documents:
                writer.append(document, rows)
            writer.finish()
        return path

    def make(self, path: Path, lengths: list[int], *, seed: int = 0, ragged: bool = False, **changes: Any) -> Path:
        """Write a store of random documents."""
        manifest = self.manifest(**changes)
        return self.write(path, self.documents(lengths, manifest, seed=seed, ragged=ragged), manifest)

    @staticmethod
    def joined(documents: Documents, field: str) -> Any:
        """One field of all documents, row after row."""
        return np.concatenate([getattr(rows, field) for _, rows in documents])

    @staticmethod
    def digests(path: Path) -> dict[str, str]:
        """sha256 of every file."""
        files = (file for file in path.rglob("*") if file.is_file())
        return {str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.fixture(scope="session")
def stores() -> StoreMaker:
    return StoreMaker()


def use_codebooks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Codebooks are used whatever they cost: the stores of tests are too small to earn them."""
    measure = book_choice.BookChooser._row_bytes

    def row_bytes(self: Any, codecs: Any, rows: Any) -> float:
        return 1e9 if codecs is None else measure(self, codecs, rows)

    monkeypatch.setattr(book_choice.BookChooser, "_row_bytes", row_bytes)


def use_codebooks_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every other set has new codebooks, and those between have none: their chunks are of the exact codec."""
    measure = book_choice.BookChooser._row_bytes

    def row_bytes(self: Any, codecs: Any, rows: Any) -> float:
        if self._boundary // self._record.retrain_rows % 2:
            return 1.0 if codecs is None else 1e6
        return 1e9 if codecs is None else measure(self, codecs, rows)

    monkeypatch.setattr(book_choice.BookChooser, "_row_bytes", row_bytes)


@pytest.fixture
def codebooks_always(monkeypatch: pytest.MonkeyPatch) -> None:
    use_codebooks(monkeypatch)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """PyTorch computes in one thread, which is quicker for tiny models; afterwards in as many as before."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def decoder() -> ModuleType:
    """The standard-library decoder, which lies beside the specification and not in the package."""
    folder = str(Path(__file__).parent.parent / "spec")
    sys.path.insert(0, folder)
    try:
        return importlib.import_module("reference_decoder")
    finally:
        sys.path.remove(folder)
