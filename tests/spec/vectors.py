"""The vectors of stores: where they lie, what is read of them, and their broken copies."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np

import logitstore
from logitstore.errors import CorruptDataError, TruncatedDataError, UnsupportedVersionError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    StoreVector = tuple[Path, dict[str, Any]]

ERRORS = {"corrupt": CorruptDataError, "truncated": TruncatedDataError, "unsupported": UnsupportedVersionError}


def store_vector_of(spec: Path, name: str) -> StoreVector:
    """A store, by the name of its folder, and what it holds."""
    path = spec / "vectors" / "stores" / name
    return path, json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))


def expected_bits(array: dict[str, Any], name: str) -> NDArray[Any]:
    """The bits of a whole array; unused slots are not listed."""
    rows = array["elements"]
    type_ = f"<u{np.dtype(array['type']).itemsize}"
    if array["columns"] is None:
        return np.array(rows, type_)
    unused = {"ids": 0xFFFFFFFF, "logprobs": 0xFC00, "logits": 0xFC00}.get(name, 0)
    bits = np.full((len(rows), array["columns"]), unused, type_)
    for row, elements in enumerate(rows):
        bits[row, : len(elements)] = elements
    return bits


def check_package_reads(vector: StoreVector) -> None:
    path, about = vector
    with logitstore.open(path, verify="full", order="stored") as store:
        for name, array in about["arrays"].items():
            found = store.read_field(name, 0, store.manifest.rows)
            assert found.dtype.name == array["type"]
            np.testing.assert_array_equal(found.view(f"<u{found.itemsize}"), expected_bits(array, name))
        assert len(store) == len(about["documents"])
        for document, expected in zip(store, about["documents"], strict=True):
            parent = document.parent and {"key": document.parent[0], "first_token": document.parent[1]}
            said = {"key": document.key, "rows": len(document), "metadata": document.metadata, "parent": parent}
            assert {key: value for key, value in said.items() if value} == expected


def check_decoder_reads(store: Any, about: dict[str, Any], some: slice) -> None:
    """Compare all and some rows, and the documents, that the standard-library decoder finds."""
    for name, array in about["arrays"].items():
        expected = expected_bits(array, name).view(array["type"])
        np.testing.assert_array_equal(np.array(store.read(name)).astype(array["type"]), expected)
        found = np.array(store.read(name, some.start, some.stop)).astype(array["type"])
        np.testing.assert_array_equal(found, expected[some])
    first = 0
    for number, expected in enumerate(about["documents"]):
        assert store.document(number) == {**expected, "first_row": first}
        first += expected["rows"]


def printed(spec: Path, store: Path, *options: str) -> list[dict[str, Any]]:
    """What the decoder's command prints."""
    # Without site-packages: the decoder needs nothing but the standard library.
    command = [sys.executable, "-S", "-E", spec / "reference_decoder.py", store, *options]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in ran.stdout.splitlines()]


def spoiled_copy(store: Path, copy: Path, edits: list[dict[str, Any]]) -> Path:
    """Copy a store and make the edits of a vector of broken stores."""
    shutil.copytree(store, copy)
    for edit in edits:
        path = copy / edit["file"]
        if edit.get("delete"):
            path.unlink()
        elif "truncate" in edit:
            path.write_bytes(path.read_bytes()[: edit["truncate"]])
        elif "append" in edit:
            path.write_bytes(path.read_bytes() + bytes.fromhex(edit["append"]) * edit["times"])
        elif "bytes" in edit:
            with path.open("r+b") as file:
                file.seek(edit["offset"])
                file.write(bytes.fromhex(edit["bytes"]))
        else:
            content = json.loads(path.read_bytes())
            content.update(edit.get("set", {}))
            for key in edit.get("remove", ()):
                del content[key]
            path.write_text(json.dumps(content), encoding="utf-8")
    return copy
