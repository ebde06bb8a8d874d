"""The manifest a build starts with, and whether an unfinished store was started by the same build."""

from __future__ import annotations

import hashlib
import platform
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from logitstore.build.generation import generation_settings
from logitstore.container.durable import canonical_json
from logitstore.container.manifest import Manifest
from logitstore.corpus import corpus_digest, tokenizer_fingerprint
from logitstore.errors import InvalidArgumentError
from logitstore.version import __version__

if TYPE_CHECKING:
    from pathlib import Path

    from logitstore.build.config import BuildConfig
    from logitstore.teacher import Teacher

__all__ = ["require_same_build", "start_manifest", "versions"]

_PARTS = ("vocab_size", "padded_vocab_size", "slots", "values", "rows_per_shard", "selection", "temperatures", "build")


def start_manifest(config: BuildConfig, teacher: Teacher) -> Manifest:
    """Return the manifest of the store that ``config`` makes, without totals."""
    slots = config.selection.slots(teacher.vocab_size)
    described = teacher.describe()
    settings = config.run_settings()
    if config.generation is not None:
        settings["generation"] = generation_settings(config.generation, teacher)
    parts: dict[str, Any] = {
        "vocab_size": teacher.vocab_size,
        "padded_vocab_size": teacher.padded_vocab_size,
        "slots": slots,
        "values": config.values,
        "rows_per_shard": config.shard_rows(slots),
        "selection": config.selection.to_json(),
        "temperatures": tuple(config.temperatures),
        "teacher": {key: value for key, value in described.items() if key != "versions"},
        "tokenizer": tokenizer_fingerprint(teacher.tokenizer),
        "corpus": corpus_digest(config.corpus),
        "build": settings,
    }
    # Of the codecs, those that change what is stored are part of what the store is.
    coded = [] if config.codec.name == "exact" else [config.codec.to_json()]
    identity = canonical_json([*(parts[name] for name in _PARTS), _identities(parts), *coded])
    return Manifest(
        codec=config.codec,
        container=config.container,
        shard_bytes=config.shard_bytes if config.container == "webdataset" else 0,
        store_id=hashlib.sha256(identity.encode()).hexdigest()[:32],
        complete=False,
        has_counts=config.selection.samples is not None,
        versions=versions(),
        **parts,
    )


def require_same_build(found: Manifest, wanted: Manifest, path: Path) -> None:
    """Compare an unfinished store with what is to be built.

    Raises
    ------
    InvalidArgumentError
        Names every setting that differs. Where the teacher and the corpus lie, and versions of software, may differ.
    """
    # The container is not part of the store's id: the rows are the same in either.
    names = (*_PARTS, "container", "shard_bytes")
    before, after = (
        {name: getattr(manifest, name) for name in names}
        | _identities(vars(manifest))
        | {"codec": manifest.codec.beginning.to_json()}
        for manifest in (found, wanted)
    )
    differences = list(_differences("", before, after))
    if differences:
        raise InvalidArgumentError(
            "the store was started with another configuration and cannot be resumed with this one: "
            + "; ".join(differences),
            path=path,
        )


def versions() -> dict[str, str]:
    """Versions of the software whose work shows in a store."""
    names = ("numpy", "numba", "torch", "transformers", "tokenizers")
    return {"logitstore": __version__, "python": platform.python_version(), **{name: version(name) for name in names}}


def _identities(parts: dict[str, Any]) -> dict[str, Any]:
    teacher = parts["teacher"]
    tokenizer = parts["tokenizer"]
    return {
        "teacher": {"head_path": teacher.get("head_path"), **teacher.get("identity", {})},
        "tokenizer": {name: tokenizer.get(name) for name in ("digest", "chat_template")},
        "corpus": parts["corpus"].get("digest"),
    }


def _differences(place: str, before: Any, after: Any) -> list[str]:
    if isinstance(before, dict) and isinstance(after, dict):
        return [
            difference
            for name in sorted({*before, *after})
            for difference in _differences(f"{place}.{name}" if place else name, before.get(name), after.get(name))
        ]
    return [] if before == after else [f"{place} was {before!r} and is now {after!r}"]
