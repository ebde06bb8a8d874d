"""``build.json``: when, how long and with which command a store was made, run by run.

Apart from the manifest, so that an interrupted and resumed build ends with the same bytes in every other file.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from logitstore.container.durable import write_atomically
from logitstore.layout import BUILD_RECORD_FILE

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["append_run"]


def append_run(store: Path, run: dict[str, Any]) -> None:
    """Add a run to the record."""
    path = store / BUILD_RECORD_FILE
    try:
        runs = json.loads(path.read_bytes())["runs"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        # A record that cannot be read says nothing; the store does not depend on it.
        runs = []
    write_atomically(path, json.dumps({"runs": [*runs, run]}, indent=1).encode() + b"\n")
