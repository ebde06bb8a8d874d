"""What importing costs, and that errors get from one process to another."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys

import pytest

import logitstore
from logitstore import errors

HEAVY = {"datasets", "matplotlib", "numba", "pyarrow", "torch", "transformers", "zarr"}
KINDS = [getattr(errors, name) for name in errors.__all__]


def loaded_by(statement: str) -> set[str]:
    code = f"import json, sys\n{statement}\nprint(json.dumps(sorted(name.partition('.')[0] for name in sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


@pytest.mark.parametrize("module", ["logitstore", "logitstore_cli.main"])
def test_importing_is_light(module: str) -> None:
    loaded = loaded_by(f"import {module}")
    assert module.partition(".")[0] in loaded
    assert loaded & HEAVY == set()


def test_help_is_light() -> None:
    statement = "from click.testing import CliRunner; from logitstore_cli.main import cli\n"
    statement += "assert CliRunner().invoke(cli, ['--help']).exit_code == 0"
    assert loaded_by(statement) & HEAVY == set()


def test_reading_needs_neither_torch_nor_zarr() -> None:
    loaded = loaded_by("import logitstore; logitstore.open")
    assert loaded & {"torch", "transformers", "zarr"} == set()


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'missing'"):
        logitstore.missing  # noqa: B018


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize(
    "place", [{}, {"path": "store.zarr"}, {"path": "store.zarr", "shard": 3, "row": 190}], ids=["bare", "path", "all"]
)
def test_errors_survive_pickling(kind: type[errors.LogitStoreError], place: dict[str, object]) -> None:
    error = kind("the rule is this; found that", **place)  # type: ignore[arg-type]
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert vars(copy) == vars(error)
    assert str(copy) == str(error)
    assert copy.args == error.args


def test_an_error_says_where() -> None:
    error = errors.CorruptDataError("a rule; found this", path="f", shard=1, row=2)
    assert str(error) == "a rule; found this [file f, shard 1, row 2]"
    assert str(errors.CorruptDataError("a rule")) == "a rule"


def test_places_that_are_known_are_kept() -> None:
    error = errors.TruncatedDataError("a rule", row=0).at(path="f", shard=0, row=5)
    assert type(error) is errors.TruncatedDataError
    assert (error.path, error.shard, error.row) == ("f", 0, 0)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_all_errors_have_one_base(kind: type[Exception]) -> None:
    assert issubclass(kind, errors.LogitStoreError)
