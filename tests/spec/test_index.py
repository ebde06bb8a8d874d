"""Vectors are golden: none is missing, none has changed, none has come unlisted."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from logitstore import layout

if TYPE_CHECKING:
    from pathlib import Path


INDEXES = {"1.0": "INDEX.json", "1.1": "INDEX-1.1.json", "1.2": "INDEX-1.2.json"}


@pytest.fixture(scope="module")
def indexes(spec: Path) -> dict[str, dict[str, str]]:
    found = {}
    for version, name in INDEXES.items():
        content = json.loads((spec / "vectors" / name).read_text())
        assert content["format_version"] == version
        found[version] = dict(content["files"])
    return found


@pytest.fixture(scope="module")
def index(indexes: dict[str, dict[str, str]]) -> dict[str, str]:
    return {name: digest for files in indexes.values() for name, digest in files.items()}


def test_every_version_has_an_index() -> None:
    assert list(INDEXES)[-1] == ".".join(map(str, layout.FORMAT_VERSION))


def test_the_indexes_are_those_that_were_published(spec: Path) -> None:
    digests = {
        name: hashlib.sha256((spec / "vectors" / name).read_bytes()).hexdigest()[:16] for name in INDEXES.values()
    }
    assert digests == {
        "INDEX.json": "0c15792a67f6d30a",
        "INDEX-1.1.json": "6d62c7a74261b0f9",
        "INDEX-1.2.json": "3b006b3574f5d87d",
    }


def test_no_vector_is_in_two_indexes(indexes: dict[str, dict[str, str]], index: dict[str, str]) -> None:
    assert len(index) == sum(map(len, indexes.values()))


def test_every_vector_is_there_and_unchanged(spec: Path, index: dict[str, str]) -> None:
    assert len(index) > 450
    for name, digest in index.items():
        path = spec / "vectors" / name
        assert path.is_file(), f"the vector {name} is missing"
        assert hashlib.sha256(path.read_bytes()).hexdigest() == digest, f"the vector {name} was changed"


def test_every_vector_is_listed(spec: Path, index: dict[str, str]) -> None:
    folder = spec / "vectors"
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert found - set(INDEXES.values()) == set(index)


def test_every_rule_has_a_vector(spec: Path, index: dict[str, str]) -> None:
    text = "".join((spec / name).read_text(encoding="utf-8") for name in ("FORMAT.md", "COMPACT.md"))
    rules = set(re.findall(r"^\| ([CSDTK]\d+) \|", text, re.MULTILINE))
    named = set()
    for name in ("invalid_stores.json", "invalid_tar_stores.json", "invalid_compact_stores.json"):
        broken = json.loads((spec / "vectors" / name).read_text(encoding="utf-8"))
        named |= {vector["rule"] for vector in broken}
        assert len({vector["name"] for vector in broken}) == len(broken)
    named |= {found[1].upper() for name in index if (found := re.match(r"(?:compact/)?invalid\w*/([cdk]\d+)_", name))}
    assert named == rules


def test_stores_are_small(spec: Path) -> None:
    stores = [path for path in (spec / "vectors" / "stores").iterdir() if path.is_dir()]
    assert len(stores) == 8
    for store in stores:
        assert sum(path.stat().st_size for path in store.rglob("*") if path.is_file()) < 60_000, store


def test_vectors_are_never_written_over(spec: Path) -> None:
    before = (spec / "vectors" / "INDEX.json").stat().st_mtime_ns
    ran = subprocess.run([sys.executable, spec / "make_vectors.py"], capture_output=True, text=True, check=False)
    assert ran.returncode == 2
    assert "not empty" in ran.stderr
    assert (spec / "vectors" / "INDEX.json").stat().st_mtime_ns == before


def test_vectors_of_1_1_come_out_the_same(spec: Path, tmp_path: Path, indexes: dict[str, dict[str, str]]) -> None:
    made = tmp_path / "vectors"
    subprocess.run([sys.executable, spec / "make_vectors.py", "--version", "1.1", made], check=True)
    found = {path.relative_to(made).as_posix(): path for path in made.rglob("*") if path.is_file()}
    assert set(found) == {*indexes["1.1"], "INDEX-1.1.json"}
    for name, path in found.items():
        assert path.read_bytes() == (spec / "vectors" / name).read_bytes(), f"{name} comes out otherwise"
