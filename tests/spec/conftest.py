from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.register_assert_rewrite("tests.spec.vectors")

SPEC = Path(__file__).parents[2] / "spec"
VECTORS = SPEC / "vectors"


@pytest.fixture(scope="session")
def spec() -> Path:
    return SPEC


def _about(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test per vector. A folder without vectors gives no tests; test_index.py notices that."""
    folders = {
        "valid_chunk": "valid",
        "invalid_chunk": "invalid",
        "valid_document": "documents",
        "invalid_document": "invalid_documents",
    }
    for name, folder in folders.items():
        if name in metafunc.fixturenames:
            files = sorted((VECTORS / folder).glob("*.bin"))
            vectors = [(path.read_bytes(), _about(path.with_suffix(".json"))) for path in files]
            metafunc.parametrize(name, vectors, ids=[path.stem for path in files])
    manifests = ("S3", "S4", "S5", "S6", "S25")
    for name, file, rules in (
        ("broken_store", "invalid_stores.json", None),
        ("broken_manifest", "invalid_stores.json", manifests),
        ("broken_tar_store", "invalid_tar_stores.json", None),
        ("broken_compact_store", "invalid_compact_stores.json", None),
        ("broken_tar_manifest", "invalid_tar_stores.json", manifests),
        ("broken_compact_manifest", "invalid_compact_stores.json", manifests),
    ):
        if name in metafunc.fixturenames:
            vectors = json.loads((VECTORS / file).read_text(encoding="utf-8"))
            vectors = [vector for vector in vectors if rules is None or vector["rule"] in rules]
            metafunc.parametrize(name, vectors, ids=[vector["name"] for vector in vectors])
