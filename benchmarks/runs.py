"""What long benchmarks keep, so that the same command goes on where it was stopped: stores, and finished runs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click
from make_rows import is_complete

from logitstore.build import BuildConfig, build
from logitstore.corpus import CorpusConfig
from logitstore.teacher import TeacherConfig

if TYPE_CHECKING:
    from pathlib import Path

    from logitstore.select import Selection


def make_store(path: Path, teacher: str, text: str, selection: Selection, **corpus: Any) -> Path:
    """Build a store of a text, unless it is there; what else is given goes to the corpus."""
    if not is_complete(path):
        config = BuildConfig(
            TeacherConfig(teacher, dtype="float32"),
            CorpusConfig(data=(text,), **corpus),
            selection,
            # The same for all selections: the order of an epoch goes by shards.
            rows_per_shard=1 << 14,
        )
        build(config, path, resume=True)
    return path


class Runs:
    """Finished runs, kept in a file."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self._path = path
        self._found = json.loads(path.read_text()) if path.exists() else {"settings": settings, "runs": {}}
        if self._found["settings"] != settings:
            raise click.ClickException(f"{path} is of other settings: {self._found['settings']}")
        self._write()  # before anything is made for these settings

    def get(self, *key: object) -> dict[str, float] | None:
        """Return what a run found, or None if it is not finished."""
        return self._found["runs"].get(" | ".join(map(str, key)))

    def add(self, *key: object, found: dict[str, float]) -> None:
        """Keep what a run found."""
        self._found["runs"][" | ".join(map(str, key))] = found
        self._write()

    def _write(self) -> None:
        partial = self._path.with_suffix(".partial")
        partial.write_text(json.dumps(self._found, indent=1))
        partial.replace(self._path)
