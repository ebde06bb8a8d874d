"""Both readers read both stores to the same bits, as does plain Zarr, and refuse every broken copy alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import zarr

import logitstore
from logitstore.audit.verify import verify
from tests.spec.vectors import (
    ERRORS,
    check_decoder_reads,
    check_package_reads,
    expected_bits,
    printed,
    spoiled_copy,
    store_vector_of,
)

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType

    from tests.spec.vectors import StoreVector


@pytest.fixture(params=["logprob", "logit", "wide"])
def store_vector(spec: Path, request: pytest.FixtureRequest) -> StoreVector:
    return store_vector_of(spec, f"{request.param}.zarr")


def test_package_reads(store_vector: StoreVector) -> None:
    check_package_reads(store_vector)
    path, about = store_vector
    with logitstore.open(path) as store:
        assert {field.name for field in store.manifest.row_fields} == set(about["arrays"])


def test_package_verifies(store_vector: StoreVector) -> None:
    report = verify(store_vector[0], workers=1)
    assert report.ok, report.errors
    assert report.rows_checked == len(store_vector[1]["arrays"]["tokens"]["elements"])


def test_zarr_reads(store_vector: StoreVector) -> None:
    path, about = store_vector
    group = zarr.open_group(str(path), mode="r")
    for name, array in about["arrays"].items():
        member = group[name]
        assert isinstance(member, zarr.Array)
        found = np.asarray(member[:])
        np.testing.assert_array_equal(found.view(f"<u{found.itemsize}"), expected_bits(array, name))


def test_standard_library_reads(decoder: ModuleType, store_vector: StoreVector) -> None:
    path, about = store_vector
    check_decoder_reads(decoder.Store(path), about, slice(3, 6))


@pytest.mark.parametrize("name", ["logprob", "logit"])
def test_command_prints_json(spec: Path, name: str) -> None:
    path, about = store_vector_of(spec, f"{name}.zarr")
    lines = printed(spec, path)
    assert [line["key"] for line in lines if "document" in line] == [line["key"] for line in about["documents"]]
    rows = [line for line in lines if "row" in line]
    assert [row["ids"] for row in rows] == expected_bits(about["arrays"]["ids"], "ids").tolist()
    assert printed(spec, path, "--rows", "3:5") == rows[3:5]


@pytest.mark.parametrize("rows", ["5:3", "0:1000", "-1:2", "x"])
def test_command_refuses_bad_rows(decoder: ModuleType, spec: Path, rows: str) -> None:
    with pytest.raises(SystemExit) as caught:
        decoder.main([str(spec / "vectors" / "stores" / "logit.zarr"), f"--rows={rows}"])
    assert caught.value.code == 2


def test_command_says_what_is_broken(decoder: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert decoder.main([str(tmp_path)]) == 1
    assert "S1 (truncated)" in capsys.readouterr().err


@pytest.fixture
def spoiled(spec: Path, tmp_path: Path, broken_store: dict[str, Any]) -> Path:
    path, _ = store_vector_of(spec, f"{broken_store['store']}.zarr")
    return spoiled_copy(path, tmp_path / "store.zarr", broken_store["edits"])


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
