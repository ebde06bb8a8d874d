"""What FORMAT.md shows is what the code does."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import jsonschema
import numpy as np
import pytest

from logitstore import layout
from logitstore.codec import decode, encode
from logitstore.container.fields import DOCUMENT_FIELDS, array_metadata
from logitstore.container.manifest import Manifest
from logitstore.container.shard_table import ShardRecord

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType

ROWS = [[2, 3, 9, 300], [5, 40, 0xFFFFFFFF, 0xFFFFFFFF], [0xFFFFFFFF] * 4]


@pytest.fixture(scope="module")
def text(spec: Path) -> str:
    return (spec / "FORMAT.md").read_text(encoding="utf-8")


def _block(text: str, name: str) -> str:
    found = re.search(rf"^```{name}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert found, f"FORMAT.md has no block {name!r}"
    return found[1]


def _json(text: str, name: str) -> dict[str, Any]:
    return dict(json.loads(_block(text, f"json {name}")))


def test_no_other_json_blocks(text: str) -> None:
    assert set(re.findall(r"^```json (.*)$", text, re.MULTILINE)) == {
        "manifest",
        "manifest-webdataset",
        "codec-compact",
        "document",
        "shard-record",
        "tar-record",
        "tar-json",
        "zarr ids",
    }
    assert not re.search(r"^```json$", text, re.MULTILINE)


def test_version(text: str) -> None:
    assert text.startswith(f"# The logitstore format, version {'.'.join(map(str, layout.FORMAT_VERSION))}\n")


def test_manifest(spec: Path, text: str) -> None:
    content = _json(text, "manifest")
    jsonschema.validate(content, json.loads((spec / "manifest.schema.json").read_text()))
    Manifest.from_json(content)
    table = text[text.index("## 4. Manifest") : text.index("`complete` is false from")]
    documented = {
        key for line in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for key in re.findall(r"`(\w+)`", line)
    }
    tars = content | _json(text, "manifest-webdataset")
    jsonschema.validate(tars, json.loads((spec / "manifest.schema.json").read_text()))
    assert Manifest.from_json(tars).row_shards == 2
    assert documented == set(tars)
    assert set(tars) - set(content) == {"container", "shard_bytes", "index_file"}


def test_compact_codec(spec: Path, text: str) -> None:
    content = _json(text, "manifest") | {"format_version": "1.2", "codec": _json(text, "codec-compact")}
    jsonschema.validate(content, json.loads((spec / "manifest.schema.json").read_text()))
    manifest = Manifest.from_json(content)
    assert json.loads(manifest.to_json())["codec"] == content["codec"]
    assert manifest.format_version == "1.2"
    table = text[text.index("| key of `codec` |") : text.index("```json codec-compact")]
    documented = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*?) \|", table, re.MULTILINE))))
    assert documented | {"name", "version"} == set(content["codec"])


def test_zarr_metadata(text: str) -> None:
    manifest = Manifest.from_json(_json(text, "manifest"))
    ids = next(field for field in manifest.row_fields if field.name == "ids")
    metadata = array_metadata(ids, *manifest.geometry(ids))
    assert _json(text, "zarr ids") == json.loads(json.dumps(metadata))


def test_shard_record(text: str) -> None:
    block = _block(text, "json shard-record")
    record = ShardRecord.from_line(block.encode())
    assert set(record.files) == {field.name for field in DOCUMENT_FIELDS}
    assert record.rows == _json(text, "manifest")["documents"] + 1


def test_tar_record(text: str) -> None:
    record = ShardRecord.from_line(_block(text, "json tar-record").encode())
    manifest = _json(text, "manifest")
    assert set(record.files) == {"tar"}
    assert record.first_document is not None
    assert record.documents is not None
    assert record.first_document + record.documents == manifest["documents"]
    assert record.first_row + record.rows == manifest["rows"]
    assert record.files["tar"].bytes % layout.TAR_BLOCK == 0


def test_tar_json(text: str) -> None:
    block = _block(text, "json tar-json")
    assert set(_json(text, "tar-json")) == {"key", "rows", "metadata", "document", "first_row"}
    assert block == json.dumps(json.loads(block), sort_keys=True) + "\n"


def test_document_example(decoder: ModuleType, spec: Path, text: str) -> None:
    data = bytes.fromhex(_block(text, "hex document-example"))
    assert data == (spec / "vectors" / "documents" / "worked_example.bin").read_bytes()
    file = decoder.DocumentFile(data)
    shown = text[text.index("### 16.3") : text.index("```hex document-example")]
    rows = [
        [[float(number.replace("−", "-")) for number in cell.split(", ")] for cell in line.strip("|\n ").split(" | ")]
        for line in re.findall(r"^\| \d.*\n", shown, re.MULTILINE)
    ]
    names = ["tokens", "ids", "logprobs", "lse", "label_logprob", "mask"]
    assert list(file.arrays) == names
    for row, cells in enumerate(rows):
        for name, cell in zip(names, cells, strict=True):
            value = file.read(name)[row]
            found = value[: len(cell)] if isinstance(value, list) else [value]
            np.testing.assert_array_equal(found, cell)
            unused = {0xFFFFFFFF, float("-inf")}
            assert not isinstance(value, list) or set(value[len(cell) :]) <= unused
    assert len(rows) == file.header.rows
    assert f"0x{int.from_bytes(data[60:64], 'little'):08x}" in text
    for name, array in file.arrays.items():
        (offset, size), *_ = array.chunks
        end = offset + size + -size % 8 - 1
        assert re.search(rf"^\| {offset} – {end} \| chunk of `{name}`", text, re.MULTILINE)


def test_index_record_table(text: str) -> None:
    table = text[text.index("## 18.") :]
    types = re.findall(r"^\| (\d+) \| (u32|u64|4 bytes) \|", table, re.MULTILINE)
    position = 0
    for offset, kind in types:
        assert int(offset) == position
        position += {"u32": 4, "u64": 8, "4 bytes": 4}[kind]
    assert position == layout.INDEX_RECORD_BYTES


def test_document(text: str) -> None:
    assert set(_json(text, "document")) == {"key", "rows", "parent", "metadata"}


def test_worked_example(decoder: ModuleType, text: str) -> None:
    chunk = bytes.fromhex(_block(text, "hex ids-example"))
    assert chunk == encode(np.array(ROWS, np.uint32), "ids", vocab_size=512)
    assert decode(chunk, "ids", shape=(3, 4), dtype="u4", vocab_size=512).tolist() == ROWS
    assert decoder.decode_chunk(chunk, "ids", "uint32", (3, 4), bound=512) == ROWS
    shown = re.sub(r"[\s|]", "", _block(text, "text payload-bits"))
    bits = "".join(str(byte >> i & 1) for byte in chunk[56:72] for i in range(8))
    assert bits.startswith(shown)
    assert "1" not in bits[len(shown) :]


def test_crc32c_example(decoder: ModuleType, text: str) -> None:
    assert f"0x{decoder.crc32c(b'123456789'):X}" in text


@pytest.mark.parametrize(
    ("offset", "name", "value"),
    [(0, "magic", b"LGX1"), (5, "type", 3), (12, "slots", 4), (16, "bound", 512), (22, "lengths_width", 6)],
)
def test_header_table(text: str, offset: int, name: str, value: bytes | int) -> None:
    chunk = bytes.fromhex(_block(text, "hex ids-example"))
    kind = re.search(rf"^\| {offset} \| (\S+?)(?: bytes)? \| {name} \|", text, re.MULTILINE)
    assert kind, f"the header table has no {name} at {offset}"
    size = {"u8": 1, "u32": 4, "4": 4}[kind[1]]
    raw = chunk[offset : offset + size]
    assert value == (raw if isinstance(value, bytes) else int.from_bytes(raw, "little"))
