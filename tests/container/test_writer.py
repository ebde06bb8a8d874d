from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import logitstore
from logitstore import CorruptDataError, InvalidArgumentError
from logitstore.container.writer import StoreWriter, prepare_directory

if TYPE_CHECKING:
    from pathlib import Path


def first(array: Any, value: Any) -> Any:
    changed = array.copy()
    changed[0] = value
    return changed


@pytest.mark.parametrize(
    ("rule", "change"),
    [
        ("id-range", lambda r: {"ids": first(r.ids, [0, 1, 2, 3, 97])}),
        ("id-order", lambda r: {"ids": first(r.ids, r.ids[0][::-1])}),
        ("id-order", lambda r: {"ids": first(r.ids, [1, 1, 2, 3, 4])}),
        ("value-finite", lambda r: {"values": first(r.values, np.nan)}),
        ("value-finite", lambda r: {"values": first(r.values, -np.inf)}),
        ("value-unused", lambda r: {"ids": first(r.ids, [1, 2, 3, 4, 0xFFFFFFFF])}),
        ("lse-finite", lambda r: {"lse": first(r.lse, np.inf)}),
        ("label-range", lambda r: {"label_logprob": first(r.label_logprob, 0.5)}),
        ("mass", lambda r: {"values": first(r.values, -0.1)}),
        ("maximum", lambda r: {"values": first(r.values, -9.0)}),
    ],
)
def test_rows_that_break_a_rule_are_refused(stores: Any, tmp_path: Path, rule: str, change: Any) -> None:
    manifest = stores.manifest()
    document, rows = stores.documents([6], manifest)[0]
    broken = dataclasses.replace(rows, **change(rows))
    with pytest.raises(CorruptDataError, match=rule) as caught:
        stores.write(tmp_path / "s", [*stores.documents([4], manifest), (document, broken)], manifest)
    assert caught.value.row == 4
    with pytest.raises(CorruptDataError, match="not finished"):
        logitstore.open(tmp_path / "s")


def test_a_token_outside_the_vocabulary_is_refused(stores: Any, tmp_path: Path) -> None:
    manifest = stores.manifest()
    document, rows = stores.documents([6], manifest)[0]
    tokens = first(rows.tokens, 97)
    broken = dataclasses.replace(document, tokens=tokens), dataclasses.replace(rows, tokens=tokens)
    with pytest.raises(CorruptDataError, match="token-range"):
        stores.write(tmp_path / "s", [broken], manifest)


def test_rows_of_another_document_are_refused(stores: Any, tmp_path: Path) -> None:
    manifest = stores.manifest()
    (a, rows_a), (_, rows_b) = stores.documents([6, 6], manifest)
    prepare_directory(tmp_path / "s")
    with StoreWriter(tmp_path / "s", manifest) as writer:
        for rows in (rows_b, None):
            with pytest.raises(InvalidArgumentError, match="document 0"):
                writer.append(a, rows)
        with pytest.raises(InvalidArgumentError, match="rewind"):
            writer.rewind(1, 0)
        empty = dataclasses.replace(a, tokens=a.tokens[:0], mask=a.mask[:0])
        with pytest.raises(InvalidArgumentError, match="no token"):
            writer.append(empty, None)
        writer.append(a, rows_a)
        writer.finish()
    assert len(logitstore.open(tmp_path / "s")) == 1


def test_only_stores_are_replaced(stores: Any, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "thesis.tex").touch()
    for overwrite in (False, True):
        with pytest.raises(InvalidArgumentError, match="not a logitstore"):
            prepare_directory(folder, overwrite=overwrite)
    assert (folder / "thesis.tex").exists()
    path = stores.make(tmp_path / "s", [4])
    with pytest.raises(InvalidArgumentError, match="exists"):
        prepare_directory(path)
    prepare_directory(path, overwrite=True)
    assert list(path.iterdir()) == []


def test_a_store_does_not_depend_on_threads_or_on_how_it_was_fed(stores: Any, tmp_path: Path) -> None:
    manifest = stores.manifest(slots=40, rows_per_shard=64)
    documents = stores.documents([100, 3, 50], manifest)
    one, four = (stores.write(tmp_path / str(workers), documents, manifest, workers=workers) for workers in (1, 4))
    assert stores.digests(one) == stores.digests(four)
