"""Every decoder reads every valid codebook and chunk of the compact codec to the same bits, and refuses the others."""

from __future__ import annotations

import importlib
import json
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from logitstore import layout
from logitstore.codec.compact import IdCodec, ValueCodec, parse
from logitstore.errors import CorruptDataError, TruncatedDataError, UnsupportedVersionError

if TYPE_CHECKING:
    from types import ModuleType

SPEC = Path(__file__).parents[2] / "spec"
VECTORS = SPEC / "vectors" / "compact"
ERRORS = {"corrupt": CorruptDataError, "truncated": TruncatedDataError, "unsupported": UnsupportedVersionError}


def _vectors(folder: str) -> list[Any]:
    return [pytest.param(path, id=path.stem) for path in sorted((VECTORS / folder).glob("*.bin"))]


def _about(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.with_suffix(".json").read_text()))


@cache
def _book(name: str) -> bytes:
    return (VECTORS / "books" / f"{name}.bin").read_bytes()


@pytest.fixture(scope="module")
def plain() -> ModuleType:
    sys.path.insert(0, str(SPEC))
    try:
        return importlib.import_module("reference_compact")
    finally:
        sys.path.remove(str(SPEC))


def _decode(path: Path, use_reference: bool) -> Any:
    about = _about(path)
    book: Any = parse(_book(about["book"]))
    rows, slots = about["shape"]
    codec: Any = IdCodec(book, slots) if book.kind == layout.KIND_IDS else ValueCodec(book, slots)
    return codec.decode(path.read_bytes(), rows, use_reference=use_reference)


@pytest.mark.parametrize("use_reference", [False, True], ids=["fast", "reference"])
@pytest.mark.parametrize("path", _vectors("valid"))
def test_valid(path: Path, use_reference: bool) -> None:
    about = _about(path)
    elements = _decode(path, use_reference)
    assert list(elements.shape) == about["shape"]
    assert elements.view(f"u{elements.itemsize}").tolist() == about["elements"]


@pytest.mark.parametrize("path", _vectors("valid"))
def test_valid_by_standard_library(plain: ModuleType, path: Path) -> None:
    about = _about(path)
    book = plain.read_codebook(_book(about["book"]))
    assert plain.decode_compact(path.read_bytes(), book, tuple(about["shape"])) == about["elements"]


@pytest.mark.parametrize("use_reference", [False, True], ids=["fast", "reference"])
@pytest.mark.parametrize("path", _vectors("invalid"))
def test_invalid(path: Path, use_reference: bool) -> None:
    with pytest.raises((CorruptDataError, UnsupportedVersionError)) as raised:
        _decode(path, use_reference)
    assert type(raised.value) is ERRORS[_about(path)["error"]]


@pytest.mark.parametrize("path", _vectors("invalid"))
def test_invalid_by_standard_library(plain: ModuleType, path: Path) -> None:
    about = _about(path)
    book = plain.read_codebook(_book(about["book"]))
    with pytest.raises(plain.FormatError) as raised:
        plain.decode_compact(path.read_bytes(), book, tuple(about["shape"]))
    assert (raised.value.rule, raised.value.kind) == (about["rule"], about["error"])


@pytest.mark.parametrize("path", _vectors("invalid_books"))
def test_invalid_codebooks(plain: ModuleType, path: Path) -> None:
    about = _about(path)
    with pytest.raises((CorruptDataError, UnsupportedVersionError)) as raised:
        parse(path.read_bytes())
    assert type(raised.value) is ERRORS[about["error"]]
    with pytest.raises(plain.FormatError) as plainly:
        plain.read_codebook(path.read_bytes())
    assert (plainly.value.rule, plainly.value.kind) == (about["rule"], about["error"])


@pytest.mark.parametrize("path", _vectors("books"))
def test_digests(path: Path) -> None:
    assert parse(path.read_bytes()).digest.hex() == _about(path)["digest"]
