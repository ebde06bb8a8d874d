"""Write ``spec/vectors/``: chunks, document files and stores, valid and invalid, and indexes of their digests.

Vectors are written once per format version. Those of 1.0 are listed in ``INDEX.json``, those that 1.1 and 1.2 added in
``INDEX-1.1.json`` and ``INDEX-1.2.json``. This refuses a folder that is not empty::

    python spec/make_vectors.py [FOLDER]                          # the vectors of all versions
    python spec/make_vectors.py --version 1.1 EMPTY_FOLDER        # only what 1.1 added
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vector_chunks import invalid_chunks, valid_chunks
from vector_compact import compact_files
from vector_compact_stores import COMPACT_STORES, broken_compact_stores, write_compact_store
from vector_documents import invalid_documents, valid_documents
from vector_stores import STORES, broken_stores, write_store
from vector_tars import TAR_STORES, broken_tar_stores, write_tar_store

if TYPE_CHECKING:
    from collections.abc import Iterable


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as file:
        file.write(data)


def _json(value: Any) -> bytes:
    """One key a line: short to read, and a changed element is a changed line."""
    lines = ",\n".join(f" {json.dumps(key)}: {json.dumps(item)}" for key, item in value.items())
    return f"{{\n{lines}\n}}\n".encode()


def _json_lines(values: Iterable[Any]) -> bytes:
    lines = ",\n".join(json.dumps(about) for about in values)
    return f"[\n{lines}\n]\n".encode()


def _write_index(folder: Path, name: str, version: str, known: set[str]) -> set[str]:
    """List every file that is not known yet; return all files."""
    found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    digests = {path: hashlib.sha256(found[path].read_bytes()).hexdigest() for path in found if path not in known}
    _write(folder / name, json.dumps({"format_version": version, "files": digests}, indent=1).encode() + b"\n")
    return {*found, name}


def make_1_0(folder: Path) -> None:
    """Write what version 1.0 has."""
    for kind, vectors in (("valid", valid_chunks()), ("invalid", invalid_chunks())):
        for vector in vectors:
            _write(folder / kind / f"{vector.name}.bin", vector.chunk)
            _write(folder / kind / f"{vector.name}.json", _json(vector.about))
    for name in STORES:
        _write(folder / "stores" / f"{name}.json", _json(write_store(folder / "stores" / f"{name}.zarr", name)))
    _write(folder / "invalid_stores.json", _json_lines(broken_stores(folder / "stores" / "logprob.zarr")))


def make_1_1(folder: Path) -> None:
    """Write what version 1.1 added."""
    for kind, vectors in (("documents", valid_documents()), ("invalid_documents", invalid_documents())):
        for vector in vectors:
            _write(folder / kind / f"{vector.name}.bin", vector.data)
            _write(folder / kind / f"{vector.name}.json", _json(vector.about))
    for name in TAR_STORES:
        _write(folder / "stores" / f"{name}.json", _json(write_tar_store(folder / "stores" / f"{name}.wds", name)))
    _write(folder / "invalid_tar_stores.json", _json_lines(broken_tar_stores(folder / "stores" / "plain.wds")))


def make_1_2(folder: Path) -> None:
    """Write what version 1.2 added."""
    for name, data in compact_files():
        _write(folder / "compact" / name, data)
    stores = folder / "stores"
    for name in COMPACT_STORES:
        _write(stores / f"{Path(name).stem}.json", _json(write_compact_store(stores / name, name)))
    _write(folder / "invalid_compact_stores.json", _json_lines(broken_compact_stores(stores)))


VERSIONS = {
    "1.0": (make_1_0, "INDEX.json"),
    "1.1": (make_1_1, "INDEX-1.1.json"),
    "1.2": (make_1_2, "INDEX-1.2.json"),
}


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, nargs="?", default=Path(__file__).parent / "vectors")
    parser.add_argument("--version", choices=VERSIONS, help="only what this version added")
    options = parser.parse_args()
    folder = options.folder
    if folder.exists() and any(folder.iterdir()):
        sys.stderr.write(f"{folder} is not empty: vectors are written once per format version\n")
        return 2
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        made = Path(temporary) / "vectors"
        known: set[str] = set()
        for version, (make, index) in VERSIONS.items():
            if options.version in (None, version):
                make(made)
                known = _write_index(made, index, version, known)
        made.rename(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
