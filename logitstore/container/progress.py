"""``progress.json``: how far an unfinished build has come. Replaced at every commit, removed at the end."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from logitstore.container.durable import canonical_json, write_atomically
from logitstore.errors import CorruptDataError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["PROGRESS_FILE", "Progress"]

PROGRESS_FILE = "progress.json"


@dataclass(frozen=True)
class Progress:
    """What is durable.

    Attributes
    ----------
    shards
        Committed shards of the arrays with one row per token.
    rows, documents, entries
        Committed rows; documents that begin in them; entries they keep.
    documents_bytes
        Bytes of ``documents.jsonl`` that speak of those documents.
    cursor
        Where the producer has to start again; its own words.
    codebooks, loss
        Of the ``compact`` codec: `BookChooser.state`, and the sums of a `LossMeter`.
    """

    shards: int = 0
    rows: int = 0
    documents: int = 0
    entries: int = 0
    documents_bytes: int = 0
    cursor: dict[str, Any] | None = None
    codebooks: list[dict[str, Any]] | None = None
    loss: dict[str, Any] | None = None

    def write(self, store: Path) -> None:
        """Make this the durable state."""
        write_atomically(store / PROGRESS_FILE, canonical_json(vars(self)).encode() + b"\n")

    @classmethod
    def read(cls, store: Path) -> Progress:
        """Return the durable state; that of a build which has committed nothing if there is none."""
        path = store / PROGRESS_FILE
        try:
            return cls(**json.loads(path.read_bytes()))
        except FileNotFoundError:
            return cls()
        except (ValueError, TypeError) as error:
            raise CorruptDataError(f"the progress record is broken: {error}", path=path) from None
