"""Both readers read both stores to the same bits, as does plain Zarr, and refuse every broken copy alike."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import zarr

import logitstore
from logitstore.audit.verify import verify
from logitstore.errors import CorruptDataError, TruncatedDataError, UnsupportedVersionError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import ModuleType

    from numpy.typing import NDArray

ERRORS = {"corrupt": CorruptDataError, "truncated": TruncatedDataError, "unsupported": UnsupportedVersionError}


@pytest.fixture(params=["logprob", "logit", "wide"])
def store_vector(spec: Path, request: pytest.FixtureRequest) -> tuple[Path, dict[str, Any]]:
    stores = spec / "vectors" / "stores"
    return stores / f"{request.param}.zarr", json.loads((stores / f"{request.param}.json").read_text(encoding="utf-8"))


def _expected(array: dict[str, Any], name: str) -> NDArray[Any]:
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


def test_package_reads(store_vector: tuple[Path, dict[str, Any]]) -> None:
    path, about = store_vector
    with logitstore.open(path, verify="full", order="stored") as store:
        assert {field.name for field in store.manifest.row_fields} == set(about["arrays"])
        for name, array in about["arrays"].items():
            found = store.read_field(name, 0, store.manifest.rows)
            assert found.dtype.name == array["type"]
            np.testing.assert_array_equal(found.view(f"<u{found.itemsize}"), _expected(array, name))
        assert len(store) == len(about["documents"])
        for document, expected in zip(store, about["documents"], strict=True):
            parent = document.parent and {"key": document.parent[0], "first_token": document.parent[1]}
            found = {"key": document.key, "rows": len(document), "metadata": document.metadata, "parent": parent}
            assert {key: value for key, value in found.items() if value} == expected


def test_package_verifies(store_vector: tuple[Path, dict[str, Any]]) -> None:
    report = verify(store_vector[0], workers=1)
    assert report.ok, report.errors
    assert report.rows_checked == len(store_vector[1]["arrays"]["tokens"]["elements"])


def test_zarr_reads(store_vector: tuple[Path, dict[str, Any]]) -> None:
    path, about = store_vector
    group = zarr.open_group(str(path), mode="r")
    for name, array in about["arrays"].items():
        member = group[name]
        assert isinstance(member, zarr.Array)
        found = np.asarray(member[:])
        np.testing.assert_array_equal(found.view(f"<u{found.itemsize}"), _expected(array, name))


def test_standard_library_reads(decoder: ModuleType, store_vector: tuple[Path, dict[str, Any]]) -> None:
    path, about = store_vector
    store = decoder.Store(path)
    for name, array in about["arrays"].items():
        expected = _expected(array, name).view(array["type"])
        np.testing.assert_array_equal(np.array(store.read(name)).astype(array["type"]), expected)
        np.testing.assert_array_equal(np.array(store.read(name, 3, 6)).astype(array["type"]), expected[3:6])
    first = 0
    for number, expected in enumerate(about["documents"]):
        assert store.document(number) == {**expected, "first_row": first}
        first += expected["rows"]


@pytest.mark.parametrize("name", ["logprob", "logit"])
def test_command_prints_json(spec: Path, name: str) -> None:
    stores = spec / "vectors" / "stores"
    about = json.loads((stores / f"{name}.json").read_text(encoding="utf-8"))

    def printed(*options: str) -> list[dict[str, Any]]:
        # Without site-packages: the decoder needs nothing but the standard library.
        command = [sys.executable, "-S", "-E", spec / "reference_decoder.py", stores / f"{name}.zarr", *options]
        ran = subprocess.run(command, capture_output=True, text=True, check=True)
        return [json.loads(line) for line in ran.stdout.splitlines()]

    lines = printed()
    assert [line["key"] for line in lines if "document" in line] == [line["key"] for line in about["documents"]]
    rows = [line for line in lines if "row" in line]
    assert [row["ids"] for row in rows] == _expected(about["arrays"]["ids"], "ids").tolist()
    assert printed("--rows", "3:5") == rows[3:5]


@pytest.mark.parametrize("rows", ["5:3", "0:1000", "-1:2", "x"])
def test_command_refuses_bad_rows(decoder: ModuleType, spec: Path, rows: str) -> None:
    with pytest.raises(SystemExit) as caught:
        decoder.main([str(spec / "vectors" / "stores" / "logit.zarr"), f"--rows={rows}"])
    assert caught.value.code == 2


def test_command_says_what_is_broken(decoder: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert decoder.main([str(tmp_path)]) == 1
    assert "S1 (truncated)" in capsys.readouterr().err


@pytest.fixture
def spoiled(spec: Path, tmp_path: Path, broken_store: dict[str, Any], spoil: Callable[..., None]) -> Path:
    path = tmp_path / "store.zarr"
    shutil.copytree(spec / "vectors" / "stores" / f"{broken_store['store']}.zarr", path)
    spoil(path, broken_store["edits"])
    return path


def test_package_refuses(broken_store: dict[str, Any], spoiled: Path) -> None:
    error = ERRORS[broken_store["error"]]
    with pytest.raises(error) as caught, logitstore.open(spoiled) as store:
        for _ in store:
            pass
    assert type(caught.value) is error
    assert caught.value.path is not None


def _read_everything(decoder: ModuleType, path: Path) -> None:
    store = decoder.Store(path)
    for number in range(store.manifest["documents"]):
        store.document(number)
    for name in store.arrays:
        store.read(name)


def test_standard_library_refuses(decoder: ModuleType, broken_store: dict[str, Any], spoiled: Path) -> None:
    with pytest.raises(decoder.FormatError) as caught:
        _read_everything(decoder, spoiled)
    assert caught.value.kind == broken_store["error"]
    if broken_store["rule"] != "S21":
        assert caught.value.rule == broken_store["rule"]
