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


@pytest.fixture(scope="module")
def index(spec: Path) -> dict[str, str]:
    content = json.loads((spec / "vectors" / "INDEX.json").read_text())
    assert content["format_version"] == ".".join(map(str, layout.FORMAT_VERSION))
    return dict(content["files"])


def test_every_vector_is_there_and_unchanged(spec: Path, index: dict[str, str]) -> None:
    assert len(index) > 150
    for name, digest in index.items():
        path = spec / "vectors" / name
        assert path.is_file(), f"the vector {name} is missing"
        assert hashlib.sha256(path.read_bytes()).hexdigest() == digest, f"the vector {name} was changed"


def test_every_vector_is_listed(spec: Path, index: dict[str, str]) -> None:
    folder = spec / "vectors"
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert found - {"INDEX.json"} == set(index)


def test_every_rule_has_a_vector(spec: Path, index: dict[str, str]) -> None:
    rules = set(re.findall(r"^\| ([CS]\d+) \|", (spec / "FORMAT.md").read_text(encoding="utf-8"), re.MULTILINE))
    broken = json.loads((spec / "vectors" / "invalid_stores.json").read_text(encoding="utf-8"))
    named = {vector["rule"] for vector in broken}
    named |= {name.removeprefix("invalid/").split("_")[0].upper() for name in index if name.startswith("invalid/")}
    assert named == rules


def test_stores_are_small(spec: Path) -> None:
    for store in ("logprob", "logit", "wide"):
        files = (spec / "vectors" / "stores" / f"{store}.zarr").rglob("*")
        assert sum(path.stat().st_size for path in files if path.is_file()) < 60_000


def test_vectors_are_never_written_over(spec: Path) -> None:
    before = (spec / "vectors" / "INDEX.json").stat().st_mtime_ns
    ran = subprocess.run([sys.executable, spec / "make_vectors.py"], capture_output=True, text=True, check=False)
    assert ran.returncode == 2
    assert "not empty" in ran.stderr
    assert (spec / "vectors" / "INDEX.json").stat().st_mtime_ns == before
