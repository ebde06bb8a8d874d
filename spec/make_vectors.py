"""Write ``spec/vectors/``: chunks and stores, valid and invalid, and ``INDEX.json`` with their digests.

Vectors are written once per format version. This refuses a folder that is not empty::

    python spec/make_vectors.py [FOLDER]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from vector_chunks import invalid_chunks, valid_chunks
from vector_stores import STORES, broken_stores, write_store

from logitstore import layout


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as file:
        file.write(data)


def _json(value: Any) -> bytes:
    """One key a line: short to read, and a changed element is a changed line."""
    lines = ",\n".join(f" {json.dumps(key)}: {json.dumps(item)}" for key, item in value.items())
    return f"{{\n{lines}\n}}\n".encode()


def make(folder: Path) -> None:
    """Fill an empty folder."""
    for kind, vectors in (("valid", valid_chunks()), ("invalid", invalid_chunks())):
        for vector in vectors:
            _write(folder / kind / f"{vector.name}.bin", vector.chunk)
            _write(folder / kind / f"{vector.name}.json", _json(vector.about))
    for name in STORES:
        _write(folder / "stores" / f"{name}.json", _json(write_store(folder / "stores" / f"{name}.zarr", name)))
    broken = ",\n".join(json.dumps(about) for about in broken_stores(folder / "stores" / "logprob.zarr"))
    _write(folder / "invalid_stores.json", f"[\n{broken}\n]\n".encode())
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    digests = {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    version = ".".join(map(str, layout.FORMAT_VERSION))
    _write(folder / "INDEX.json", json.dumps({"format_version": version, "files": digests}, indent=1).encode() + b"\n")


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, nargs="?", default=Path(__file__).parent / "vectors")
    folder = parser.parse_args().folder
    if folder.exists() and any(folder.iterdir()):
        sys.stderr.write(f"{folder} is not empty: vectors are written once per format version\n")
        return 2
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        made = Path(temporary) / "vectors"
        make(made)
        made.rename(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
