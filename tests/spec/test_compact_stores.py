"""All readers read the stores of the compact codec to the same rows, and refuse every broken copy alike."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import jsonschema
import numpy as np
import pytest

import logitstore
import logitstore.zarr
from logitstore.audit.verify import verify
from logitstore.container.manifest import Manifest
from tests.spec.vectors import ERRORS, expected_bits, printed, spoiled_copy, store_vector_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import ModuleType

    from numpy.typing import NDArray

    from tests.spec.vectors import StoreVector

SLOTTED = {"ids", "logprobs", "logits", "counts"}


@pytest.fixture(params=["compact.zarr", "quantised.wds"])
def vector(spec: Path, request: pytest.FixtureRequest) -> StoreVector:
    return store_vector_of(spec, request.param)


def check(read: Callable[[str], NDArray[Any]], about: dict[str, Any]) -> None:
    """Compare arrays with a vector. The order of a row's entries is free: here it is that of the ids."""
    order = np.argsort(read("ids"), axis=1, kind="stable")
    for name, array in about["arrays"].items():
        found = read(name)
        if name in SLOTTED:
            found = np.take_along_axis(found, order, axis=1)
        np.testing.assert_array_equal(found.view(f"<u{found.itemsize}"), expected_bits(array, name), err_msg=name)


def test_package_reads(vector: StoreVector) -> None:
    path, about = vector
    with logitstore.open(path, verify="full", order="stored") as store:
        check(lambda name: store.read_field(name, 0, store.manifest.rows), about)
        assert [document.key for document in store] == [document["key"] for document in about["documents"]]
    report = verify(path, workers=1)
    assert (report.ok, list(report.notes)) == (True, [])


def test_vectors_have_every_kind_of_chunk(spec: Path) -> None:
    compact, quantised = (
        Manifest.read(spec / "vectors" / "stores" / name).codec for name in ("compact.zarr", "quantised.wds")
    )
    assert [bool(books.files) for books in compact.codebooks] == [True, True, False]
    assert (compact.is_lossy, quantised.is_lossy) == (False, True)
    assert {"ids", "logits", "counts"} == set(quantised.codebooks[1].files)


def test_zarr_reads(spec: Path) -> None:
    path, about = store_vector_of(spec, "compact.zarr")
    group = logitstore.zarr.open(path)
    check(lambda name: np.asarray(group[name][:]), about)  # type: ignore[index]


def test_standard_library_reads(decoder: ModuleType, vector: StoreVector) -> None:
    path, about = vector
    store = decoder.open_store(path)
    check(lambda name: np.array(store.read(name)).astype(about["arrays"][name]["type"]), about)
    first = 0
    for number, expected in enumerate(about["documents"]):
        assert store.document(number) == {**expected, "first_row": first}
        first += expected["rows"]


def test_command_prints_json(spec: Path, vector: StoreVector) -> None:
    path, about = vector
    lines = [line for line in printed(spec, path) if "row" in line]
    assert [sorted(line["ids"]) for line in lines] == expected_bits(about["arrays"]["ids"], "ids").tolist()
    if path.suffix == ".wds":
        assert [line for line in printed(spec, path, "--sequential") if "row" in line] == lines


@pytest.fixture
def spoiled(spec: Path, tmp_path: Path, broken_compact_store: dict[str, Any]) -> Path:
    path, _ = store_vector_of(spec, broken_compact_store["store"])
    return spoiled_copy(path, tmp_path / path.name, broken_compact_store["edits"])


def test_package_refuses(broken_compact_store: dict[str, Any], spoiled: Path) -> None:
    error = ERRORS[broken_compact_store["error"]]
    with pytest.raises(error) as caught, logitstore.open(spoiled) as store:
        for _ in store:
            pass
    assert type(caught.value) is error
    assert caught.value.path is not None
    assert not verify(spoiled, workers=1).ok


def test_standard_library_refuses(decoder: ModuleType, broken_compact_store: dict[str, Any], spoiled: Path) -> None:
    with pytest.raises(decoder.FormatError) as caught:
        decoder.open_store(spoiled).read("ids")
    assert (caught.value.rule, caught.value.kind) == (broken_compact_store["rule"], broken_compact_store["error"])


def test_broken_manifests_are_refused_by_the_schema(spec: Path, broken_compact_manifest: dict[str, Any]) -> None:
    edit = broken_compact_manifest["edits"][0]
    path, _ = store_vector_of(spec, broken_compact_manifest["store"])
    content = json.loads((path / "manifest.json").read_bytes())
    schema = jsonschema.Draft202012Validator(json.loads((spec / "manifest.schema.json").read_text()))
    schema.validate(content)
    # How sets relate to each other and to the arrays is not said there.
    across = ("sets_descend", "an_array_is_missing")
    assert schema.is_valid(content | edit["set"]) == broken_compact_manifest["name"].endswith(across)
