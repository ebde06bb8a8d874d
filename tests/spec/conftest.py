from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

SPEC = Path(__file__).parents[2] / "spec"
VECTORS = SPEC / "vectors"


@pytest.fixture(scope="session")
def spec() -> Path:
    return SPEC


def _about(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test per vector. A folder without vectors gives no tests; test_index.py notices that."""
    for name, folder in (("valid_chunk", "valid"), ("invalid_chunk", "invalid")):
        if name in metafunc.fixturenames:
            files = sorted((VECTORS / folder).glob("*.bin"))
            vectors = [(path.read_bytes(), _about(path.with_suffix(".json"))) for path in files]
            metafunc.parametrize(name, vectors, ids=[path.stem for path in files])
    for name, rules in (("broken_store", None), ("broken_manifest", ("S3", "S4", "S5", "S6"))):
        if name in metafunc.fixturenames:
            vectors = json.loads((VECTORS / "invalid_stores.json").read_text(encoding="utf-8"))
            vectors = [vector for vector in vectors if rules is None or vector["rule"] in rules]
            metafunc.parametrize(name, vectors, ids=[vector["name"] for vector in vectors])
