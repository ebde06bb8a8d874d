"""The JSON Schema, the package and the standard-library decoder agree on what a manifest is."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest

from logitstore.container.manifest import Manifest
from logitstore.errors import CorruptDataError, LogitStoreError, UnsupportedVersionError

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType

ACROSS_KEYS = {"s6_padded_vocab_size_0", "s6_documents_0", "s6_entries_0", "s6_record_bytes_1", "s6_shard_table_1"}
"""Rules that relate one key to another: JSON Schema has no words for them."""


TARS_ACROSS_KEYS = {
    "s6_no_container",  # then it is a Zarr store with too short a shard table
    "s6_index_file_3",
    "s6_shard_table_0",
    "s6_shard_table_1",
}


@pytest.fixture(scope="module")
def schema(spec: Path) -> jsonschema.Draft202012Validator:
    content = json.loads((spec / "manifest.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(content)
    return jsonschema.Draft202012Validator(content)


@pytest.fixture
def manifest(spec: Path) -> dict[str, Any]:
    """As `StoreWriter` writes it."""
    return dict(json.loads((spec / "vectors" / "stores" / "logprob.zarr" / "manifest.json").read_bytes()))


@pytest.fixture
def tar_manifest(spec: Path) -> dict[str, Any]:
    return dict(json.loads((spec / "vectors" / "stores" / "plain.wds" / "manifest.json").read_bytes()))


def test_written_manifests_validate(spec: Path, schema: jsonschema.Draft202012Validator) -> None:
    versions = {".zarr": "1.0", ".wds": "1.1", "compact.zarr": "1.2", "quantised.wds": "1.2"}
    paths = list((spec / "vectors" / "stores").glob("*/manifest.json"))
    assert len(paths) == 8
    for path in paths:
        content = json.loads(path.read_bytes())
        assert content["format_version"] == versions.get(path.parent.name, versions[path.parent.suffix])
        schema.validate(content)
        Manifest.read(path.parent)


@pytest.mark.parametrize("container", ["zarr", "webdataset"])
def test_unfinished_manifest_validates(schema: jsonschema.Draft202012Validator, container: str) -> None:
    manifest = Manifest(
        store_id="ab" * 16, complete=False, vocab_size=9, padded_vocab_size=9, slots=1, values="logit",
        rows_per_shard=1, selection={}, teacher={}, tokenizer={}, corpus={}, build={}, versions={},
        temperatures=(0.5, 2), container=container,
    )  # fmt: skip
    content = json.loads(manifest.to_json())
    assert ("index_file" in content) == (container == "webdataset")
    schema.validate(content)
    assert Manifest.from_json(content) == manifest


def test_schema_knows_every_key(
    schema: jsonschema.Draft202012Validator, manifest: dict[str, Any], tar_manifest: dict[str, Any]
) -> None:
    assert set(schema.schema["required"]) == set(manifest)
    assert set(schema.schema["properties"]) == set(tar_manifest)
    assert set(tar_manifest) - set(manifest) == {"container", "shard_bytes", "index_file"}


def test_unknown_keys_are_passed_over(
    decoder: ModuleType, schema: jsonschema.Draft202012Validator, manifest: dict[str, Any]
) -> None:
    newer = manifest | {"format_version": "1.7", "a key of version 1.7": [1]}
    schema.validate(newer)
    assert Manifest.from_json(newer) == Manifest.from_json(manifest)
    decoder.check_manifest(newer)


def test_broken_rules_are_refused(
    schema: jsonschema.Draft202012Validator, manifest: dict[str, Any], broken_manifest: dict[str, Any]
) -> None:
    edit = broken_manifest["edits"][0]
    broken = {key: value for key, value in manifest.items() if key not in edit.get("remove", ())} | edit.get("set", {})
    assert schema.is_valid(broken) == (broken_manifest["name"] in ACROSS_KEYS)
    with pytest.raises((CorruptDataError, UnsupportedVersionError)):
        Manifest.from_json(broken)


def test_broken_rules_about_tars_are_refused(
    schema: jsonschema.Draft202012Validator, tar_manifest: dict[str, Any], broken_tar_manifest: dict[str, Any]
) -> None:
    edit = broken_tar_manifest["edits"][0]
    kept = {key: value for key, value in tar_manifest.items() if key not in edit.get("remove", ())}
    broken = kept | edit.get("set", {})
    assert schema.is_valid(broken) == (broken_tar_manifest["name"] in TARS_ACROSS_KEYS)
    with pytest.raises((CorruptDataError, UnsupportedVersionError)):
        Manifest.from_json(broken)


@pytest.mark.parametrize("number", ["1" + "0" * 400, "1e999", "Infinity", "NaN", "1" + "0" * 5000])
@pytest.mark.parametrize("key", ["temperatures", "rows", "documents_file"])
def test_numbers_beyond_all_bounds(
    decoder: ModuleType, manifest: dict[str, Any], tmp_path: Path, key: str, number: str
) -> None:
    values = {"temperatures": "[#]", "rows": "#", "documents_file": json.dumps({"bytes": "#", "sha256": "0" * 64})}
    text = json.dumps(manifest | {key: "@"}).replace('"@"', values[key].replace('"#"', "#")).replace("#", number)
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(CorruptDataError):
        Manifest.read(tmp_path)
    with pytest.raises(decoder.FormatError) as caught:
        decoder.Store(tmp_path)
    assert caught.value.kind == "corrupt"


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[]", b"null", b"[" * 100_000, b'{"format": "logitstore"}'])
def test_what_is_no_manifest(decoder: ModuleType, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(LogitStoreError):
        Manifest.read(tmp_path)
    with pytest.raises(decoder.FormatError):
        decoder.Store(tmp_path)
