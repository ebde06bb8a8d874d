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


@pytest.fixture(scope="module")
def schema(spec: Path) -> jsonschema.Draft202012Validator:
    content = json.loads((spec / "manifest.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(content)
    return jsonschema.Draft202012Validator(content)


@pytest.fixture
def manifest(spec: Path) -> dict[str, Any]:
    """As `StoreWriter` writes it."""
    return dict(json.loads((spec / "vectors" / "stores" / "logprob.zarr" / "manifest.json").read_bytes()))


def test_written_manifests_validate(spec: Path, schema: jsonschema.Draft202012Validator) -> None:
    for path in (spec / "vectors" / "stores").glob("*.zarr/manifest.json"):
        schema.validate(json.loads(path.read_bytes()))
        Manifest.read(path.parent)


def test_unfinished_manifest_validates(schema: jsonschema.Draft202012Validator) -> None:
    manifest = Manifest(
        store_id="ab" * 16, complete=False, vocab_size=9, padded_vocab_size=9, slots=1, values="logit",
        rows_per_shard=1, selection={}, teacher={}, tokenizer={}, corpus={}, build={}, versions={},
        temperatures=(0.5, 2),
    )  # fmt: skip
    content = json.loads(manifest.to_json())
    schema.validate(content)
    assert Manifest.from_json(content) == manifest


def test_schema_knows_every_key(schema: jsonschema.Draft202012Validator, manifest: dict[str, Any]) -> None:
    assert set(schema.schema["required"]) == set(schema.schema["properties"]) == set(manifest)


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
