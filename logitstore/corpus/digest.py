"""A cheap identity of the inputs, to notice that they changed between a build and its resumption."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from logitstore.corpus.hub import dataset_identity
from logitstore.corpus.inputs import CorpusFile, resolve_inputs

if TYPE_CHECKING:
    from logitstore.corpus.config import CorpusConfig

__all__ = ["corpus_digest"]

_EDGE_BYTES = 64 << 10


def corpus_digest(config: CorpusConfig) -> dict[str, Any]:
    """Identify the inputs without reading them through.

    A file counts by its path below what the user named, its size, and its first and last 64 KiB; a change in the
    middle of a longer file that keeps its size is not noticed. Times do not count, so a copied corpus is the same one.

    Returns
    -------
    dict
        JSON: ``inputs``, one object per file (``file``, ``bytes``, ``edges_sha256``) or dataset (``dataset``,
        ``split``, ``fingerprint``), in reading order, and ``digest``, the SHA-256 of it all.

    Raises
    ------
    InvalidArgumentError
        If an input does not exist or is of no supported kind.
    """
    inputs = [
        _file_identity(source) if isinstance(source, CorpusFile) else dataset_identity(source, config.split)
        for source in resolve_inputs(config).inputs
    ]
    canonical = json.dumps(inputs, sort_keys=True, separators=(",", ":")).encode()
    return {"inputs": inputs, "digest": hashlib.sha256(canonical).hexdigest()}


def _file_identity(file: CorpusFile) -> dict[str, Any]:
    edges = hashlib.sha256()
    size = file.filesystem.size(file.path)
    with file.filesystem.open(file.path, "rb") as stream:
        edges.update(stream.read(_EDGE_BYTES))
        # Some web servers name no size; then the start has to do.
        if size is not None and size > _EDGE_BYTES:
            stream.seek(max(_EDGE_BYTES, size - _EDGE_BYTES))
            edges.update(stream.read(_EDGE_BYTES))
    return {"file": file.relative, "bytes": size, "edges_sha256": edges.hexdigest()}
