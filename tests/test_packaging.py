"""The distribution holds every package, and what it announces exists."""

from __future__ import annotations

import ast
import importlib
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
FOLDERS: dict[str, str] = PROJECT["tool"]["setuptools"]["package-dir"]


def module_names() -> dict[str, Path]:
    names = {}
    for package, folder in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = (package, *path.relative_to(ROOT / folder).with_suffix("").parts)
            names[".".join(parts).removesuffix(".__init__")] = path
    return names


def public_names(path: Path) -> list[str] | None:
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["__all__"]:
            names: list[str] = ast.literal_eval(node.value)
            return names
    return None


MODULES = module_names()
ANNOUNCED = {name: names for name, path in MODULES.items() if (names := public_names(path)) is not None}


def test_the_package_list_equals_the_folders() -> None:
    found = {name for name, path in MODULES.items() if path.name == "__init__.py"}
    listed = PROJECT["tool"]["setuptools"]["packages"]
    assert sorted(listed) == sorted(found)
    assert len(listed) == len(set(listed))


def test_every_module_lies_in_a_package() -> None:
    for name, path in MODULES.items():
        assert (path.parent / "__init__.py").is_file(), f"{name} would not be installed"


def test_package_data_exists() -> None:
    for package, patterns in PROJECT["tool"]["setuptools"]["package-data"].items():
        for pattern in patterns:
            assert list((ROOT / FOLDERS[package]).glob(pattern)), f"{package}: {pattern} matches nothing"


@pytest.mark.parametrize("module", sorted(ANNOUNCED))
def test_public_names_are_sorted_and_exist(module: str) -> None:
    names = ANNOUNCED[module]
    # Constants first, then as ASCII sorts: classes, then functions.
    assert names == sorted(names, key=lambda name: (not name.isupper(), name))
    assert len(names) == len(set(names))
    imported = importlib.import_module(module)
    assert [name for name in names if not hasattr(imported, name)] == []


def entry_points() -> list[EntryPoint]:
    groups = {"console_scripts": PROJECT["project"]["scripts"], **PROJECT["project"]["entry-points"]}
    return [EntryPoint(name, value, group) for group, points in groups.items() for name, value in points.items()]


@pytest.mark.parametrize("point", entry_points(), ids=lambda point: f"{point.group}-{point.name}")
def test_entry_points_resolve(point: EntryPoint) -> None:
    assert callable(point.load())


def test_the_version_is_the_packages_own() -> None:
    import logitstore

    module, _, attribute = PROJECT["tool"]["setuptools"]["dynamic"]["version"]["attr"].rpartition(".")
    assert getattr(importlib.import_module(module), attribute) == logitstore.__version__


def test_nothing_is_cached_inside_the_package():
    # What an installer did not put there survives `pip uninstall`, and hides an editable install behind it.
    from logitstore.codec import fast_decode, fast_encode

    for kernel in (fast_decode._decode_ids, fast_encode._write):
        cache = Path(kernel._cache.cache_path)
        assert Path(fast_decode.__file__).parents[1] not in cache.parents
