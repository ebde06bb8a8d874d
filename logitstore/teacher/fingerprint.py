"""What makes two teachers the same: their configuration file and a digest of the weights that is cheap at any size."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

from logitstore.errors import InvalidArgumentError

if TYPE_CHECKING:
    from pathlib import Path
    from typing import BinaryIO

__all__ = ["file_digest", "weight_files", "weights_digest"]

_SAMPLES = 256
_SAMPLE_BYTES = 4096
_MAX_HEADER_BYTES = 100_000_000
"""The limit that safetensors itself sets."""


def file_digest(path: Path) -> str:
    """Return the sha256 of a small file as hexadecimal digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def weight_files(folder: Path) -> list[Path]:
    """Return the files that transformers loads weights from, and the index that lists them, sorted by name.

    Raises
    ------
    InvalidArgumentError
        If the folder holds no weights under one of the usual names.
    """
    for stem, suffix in (("model", "safetensors"), ("pytorch_model", "bin")):
        index = folder / f"{stem}.{suffix}.index.json"
        if index.is_file():
            shards = set(json.loads(index.read_text())["weight_map"].values())
            return sorted([index, *(folder / name for name in shards)], key=lambda path: path.name)
        single = folder / f"{stem}.{suffix}"
        if single.is_file():
            return [single]
    raise InvalidArgumentError(
        "a teacher's folder must hold model.safetensors or pytorch_model.bin, or the index of their parts"
        " (an adapter must be merged into its model first)",
        path=folder,
    )


def weights_digest(folder: Path) -> str:
    """Return a digest of the weights in a folder without reading all of them.

    The sha256 over the lines ``name size digest``, sorted by name. The digest of an index is the sha256 of the file.
    That of a safetensors file is the sha256 of its header (names, types and shapes of all tensors) and of 256 blocks
    of 4 KiB spread evenly over the file, so that fine-tuned weights of the same shapes differ. Of any other weights
    file it is the blocks alone.
    """
    lines = []
    for path in weight_files(folder):
        digest = file_digest(path) if path.suffix == ".json" else _sampled_digest(path)
        lines.append(f"{path.name} {path.stat().st_size} {digest}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _sampled_digest(path: Path) -> str:
    size = path.stat().st_size
    digest = hashlib.sha256()
    with path.open("rb") as file:
        if path.suffix == ".safetensors":
            digest.update(_safetensors_header(file, size))
        last = max(0, size - _SAMPLE_BYTES)
        for start in sorted({last * i // (_SAMPLES - 1) for i in range(_SAMPLES)}):
            file.seek(start)
            digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def _safetensors_header(file: BinaryIO, size: int) -> bytes:
    prefix = file.read(8)
    length = int.from_bytes(prefix, "little")
    if length > min(size, _MAX_HEADER_BYTES):
        raise InvalidArgumentError(f"a safetensors header of {length} bytes does not fit its file of {size} bytes")
    return prefix + file.read(length)
