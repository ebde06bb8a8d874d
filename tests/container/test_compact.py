"""Stores of the compact codec: the same rows as with the exact one, or within their bound."""

from __future__ import annotations

import dataclasses
import json
import pickle
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import logitstore
from logitstore import CorruptDataError, InvalidArgumentError, TruncatedDataError
from logitstore.audit.verify import verify
from logitstore.codec.compact import generalised_kl, registry
from logitstore.container.codec_record import CodecRecord
from logitstore.container.manifest import Manifest
from logitstore.container.writer import StoreWriter, prepare_directory

if TYPE_CHECKING:
    from pathlib import Path

LENGTHS = [3, 40, 1, 17, 64, 9, 100, 2]
SMALL = {"training_rows": 24, "retrain_rows": 64}
FIELDS = ("tokens", "ids", "values", "lse", "label_logprob", "mask", "counts", "lse_T")


pytestmark = pytest.mark.usefixtures("codebooks_always")


@pytest.fixture(params=["zarr", "webdataset"])
def container(request: pytest.FixtureRequest) -> dict[str, Any]:
    return {"container": request.param, "shard_bytes": 9000 if request.param == "webdataset" else 0}


def assert_equal_rows(one: Path, other: Path, fields: tuple[str, ...] = FIELDS) -> None:
    with logitstore.open(one, verify="full") as first, logitstore.open(other, verify="full") as second:
        assert len(first) == len(second)
        for a, b in zip(first, second, strict=True):
            for name in fields:
                np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)
            assert (a.key, a.metadata, a.parent) == (b.key, b.metadata, b.parent)


@pytest.mark.parametrize(
    ("changes", "ragged"),
    [
        ({}, False),
        ({"values": "logit"}, True),
        ({"build": {"rows": "masked"}}, False),
        ({"has_counts": True, "selection": {"samples": 50}}, True),
        ({"temperatures": (0.5, 2.0)}, True),
    ],
)
def test_lossless_gives_the_rows_of_exact(
    stores: Any, tmp_path: Path, container: dict[str, Any], changes: dict[str, Any], ragged: bool
) -> None:
    exact = stores.make(tmp_path / "exact", LENGTHS, ragged=ragged, **changes)
    codec = CodecRecord.compact(**SMALL)
    compact = stores.make(tmp_path / "compact", LENGTHS, ragged=ragged, codec=codec, **changes, **container)
    found = Manifest.read(compact)
    assert found.format_version == "1.2"
    assert found.codec.codebooks[0].files.keys() == {
        "ids", "logits" if found.values == "logit" else "logprobs", *(["counts"] if found.has_counts else []),
    }  # fmt: skip
    assert found.codec.loss is None
    report = verify(compact)
    assert (list(report.errors), list(report.notes)) == ([], [])
    assert report.rows_checked == sum(LENGTHS)
    assert_equal_rows(exact, compact)


@pytest.mark.parametrize("bound", [{"max_kl": 1e-3}, {"max_error": 0.3}])
def test_bounds_hold_and_losses_are_those_of_the_rows(
    stores: Any, tmp_path: Path, container: dict[str, Any], bound: dict[str, float]
) -> None:
    exact = stores.make(tmp_path / "exact", LENGTHS, ragged=True)
    lossy = stores.make(
        tmp_path / "lossy", LENGTHS, ragged=True, codec=CodecRecord.compact(**bound, **SMALL), **container
    )
    assert verify(lossy).ok
    assert_equal_rows(exact, lossy, ("tokens", "lse", "label_logprob", "mask"))
    kl, errors = [], []
    with logitstore.open(exact, order="stored") as before, logitstore.open(lossy, order="stored") as after:
        for a, b in zip(before, after, strict=True):
            order = np.argsort(b.ids, axis=1)
            assert np.array_equal(a.ids, np.take_along_axis(b.ids, order, 1))
            values = np.take_along_axis(b.values, order, 1)
            used = np.isfinite(a.values)
            kl.append(generalised_kl(a.values, values))
            errors.append(np.abs(a.values[used].astype(np.float64) - values[used]))
        loss = after.manifest.codec.loss
    assert loss is not None
    rows, entries = np.concatenate(kl), np.concatenate(errors)
    assert (loss.rows, loss.entries) == (len(rows), len(entries))
    assert loss.error_worst == pytest.approx(entries.max())
    assert loss.error_mean == pytest.approx(entries.mean())
    assert loss.kl_mean == pytest.approx(rows.mean())
    assert loss.kl_worst == pytest.approx(rows.max())
    exactly = np.sort(rows)[int(np.ceil(0.99 * len(rows))) - 1]
    assert exactly <= loss.kl_p99 * (1 + 1e-9) <= exactly * 1.05
    assert entries.max() > 0.01
    assert rows.max() <= bound.get("max_kl", np.inf)
    assert entries.max() <= bound.get("max_error", 1.0)


def test_the_codebooks_of_a_small_store_are_not_worth_it(
    stores: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    exact = stores.make(tmp_path / "exact", LENGTHS)
    compact = stores.make(tmp_path / "compact", LENGTHS, codec=CodecRecord.compact())
    assert Manifest.read(compact).codec.codebooks[0].files == {}
    assert Manifest.read(compact).bytes_by_field == Manifest.read(exact).bytes_by_field
    assert not (compact / "codebooks").exists()
    assert verify(compact).ok
    assert_equal_rows(exact, compact)


def shifted(stores: Any, manifest: Manifest, lengths: list[int], behind: int) -> Any:
    """Documents whose ids come from one part of the vocabulary, and from another part behind a document."""
    documents = stores.documents(lengths, manifest)
    found = []
    for number, (document, rows) in enumerate(documents):
        ids = np.tile(np.arange(manifest.slots, dtype=np.uint32), (len(rows), 1)) * 3
        ids[:, -1] += rows.tokens % 3
        changed = dataclasses.replace(rows, ids=ids + np.uint32(50 if number >= behind else 0))
        found.append((document, changed))
    return found


def test_codebooks_are_trained_again_where_rows_have_changed(
    stores: Any, tmp_path: Path, container: dict[str, Any]
) -> None:
    manifest = stores.manifest(codec=CodecRecord.compact(training_rows=256, retrain_rows=512), **container)
    same = stores.write(tmp_path / "same", shifted(stores, manifest, [100] * 22, 99), manifest)
    assert [books.first_row for books in Manifest.read(same).codec.codebooks] == [0]
    changing = stores.write(tmp_path / "changing", shifted(stores, manifest, [100] * 22, 9), manifest)
    sets = Manifest.read(changing).codec.codebooks
    # Document 9 begins with row 900, behind the rows that were tried at row 512; the next multiple is 1,024.
    assert [books.first_row for books in sets] == [0, 1024]
    assert len(list((changing / "codebooks").iterdir())) == len(Manifest.read(changing).codec.files) > 2
    with logitstore.open(changing) as store:
        assert (np.sort(store[20].ids, axis=1)[:, :-1] == np.arange(manifest.slots - 1) * 3 + 50).all()
        assert (np.sort(store[0].ids, axis=1)[:, :-1] == np.arange(manifest.slots - 1) * 3).all()


def test_an_interrupted_writer_chooses_the_same_again(stores: Any, tmp_path: Path, container: dict[str, Any]) -> None:
    manifest = stores.manifest(codec=CodecRecord.compact(max_kl=1e-3, training_rows=32, retrain_rows=64), **container)
    lengths = [30, 61, 3, 100, 30, 1, 64, 70, 30]
    documents = shifted(stores, manifest, lengths, 3)
    whole = stores.digests(stores.write(tmp_path / "whole", documents, manifest))
    assert len(Manifest.read(tmp_path / "whole").codec.codebooks) > 1
    for count in (0, 2, 4, 8):
        path = tmp_path / str(count)
        prepare_directory(path)
        with StoreWriter(path, manifest) as writer:
            for document, rows in documents[:count]:
                writer.append(document, rows)
        # A codebook that only a torn run wrote.
        (path / "codebooks").mkdir(exist_ok=True)
        (path / "codebooks" / "0123456789abcdef.lgb").write_bytes(b"torn")
        with StoreWriter(path, manifest) as writer:
            writer.rewind(0, 0)
            for document, rows in documents:
                writer.append(document, rows)
            writer.finish()
        assert stores.digests(path) == whole, count


@pytest.mark.parametrize("broken", [[7], [{"first_row": 0}], [{"first_row": 0, "row_bytes": 1, "files": {"ids": {}}}]])
def test_a_broken_progress_record_is_noticed(stores: Any, tmp_path: Path, broken: list[Any]) -> None:
    manifest = stores.manifest(codec=CodecRecord.compact(**SMALL))
    prepare_directory(tmp_path / "s")
    with StoreWriter(tmp_path / "s", manifest) as writer:
        for document, rows in stores.documents(LENGTHS, manifest):
            writer.append(document, rows)
    progress = tmp_path / "s" / "progress.json"
    progress.write_text(json.dumps(json.loads(progress.read_bytes()) | {"codebooks": broken}))
    with pytest.raises(CorruptDataError, match="codebook"):
        StoreWriter(tmp_path / "s", manifest)


class TestCodebooks:
    """What happens when the codebooks of a store are not as they should be."""

    @pytest.fixture
    def store(self, stores: Any, tmp_path: Path, container: dict[str, Any]) -> Path:
        return stores.make(tmp_path / "s", LENGTHS, codec=CodecRecord.compact(**SMALL), **container)  # type: ignore[no-any-return]

    def book(self, store: Path) -> Path:
        return next(store.glob("codebooks/*.lgb"))

    def test_missing(self, store: Path) -> None:
        self.book(store).unlink()
        with pytest.raises(TruncatedDataError, match=r"codebook of \w+ is missing.*codebooks/[0-9a-f]{32}\.lgb"):
            list(logitstore.open(store))
        assert {problem.rule for problem in verify(store).errors} >= {"codebook", "chunk-decode"}

    def test_another(self, stores: Any, store: Path, tmp_path: Path) -> None:
        other = stores.make(tmp_path / "other", LENGTHS, seed=1, codec=CodecRecord.compact(**SMALL))
        self.book(store).write_bytes(self.book(other).read_bytes())
        with pytest.raises(CorruptDataError, match=r"the codebook of \w+ has .* the manifest gives"):
            list(logitstore.open(store))
        with pytest.raises(CorruptDataError, match="the manifest gives"):
            logitstore.open(store, verify="full")

    def test_a_chunk_of_another_store(self, stores: Any, tmp_path: Path) -> None:
        # The same store in name, rows and all, but for its codebooks.
        one, other = (
            stores.make(tmp_path / str(seed), [32], seed=seed, codec=CodecRecord.compact(**SMALL)) for seed in (0, 1)
        )
        for file in (*other.glob("*/c.*"), other / "shards.jsonl"):
            (one / file.relative_to(other)).write_bytes(file.read_bytes())
        with pytest.raises(CorruptDataError, match=r"codebook \w+, which is not one that the manifest gives for \w+"):
            list(logitstore.open(one))

    def test_of_a_pickled_store(self, store: Path) -> None:
        with logitstore.open(store) as opened:
            first = opened[1].ids
            again = pickle.loads(pickle.dumps(opened))
            assert np.array_equal(again[1].ids, first)


class TestPlainZarr:
    """Zarr alone knows no codebooks; `logitstore.zarr.open` loads them."""

    @pytest.fixture
    def store(self, stores: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setattr(registry, "_BOOKS", {})
        return stores.make(tmp_path / "s", LENGTHS, codec=CodecRecord.compact(**SMALL))  # type: ignore[no-any-return]

    def test_without_codebooks(self, store: Path) -> None:
        import zarr

        with pytest.raises(TruncatedDataError, match=r"codebook [0-9a-f]{32} is not loaded.*logitstore\.zarr\.open"):
            zarr.open_group(store, mode="r")["ids"][:]

    def test_with_them(self, store: Path) -> None:
        import logitstore.zarr

        group = logitstore.zarr.open(store)
        with logitstore.open(store, order="stored") as opened:
            rows = opened.rows[:]
            for name in ("ids", "logprobs", "lse"):
                expected = rows.values if name == "logprobs" else getattr(rows, name)
                assert np.array_equal(group[name][:], expected)
                assert np.array_equal(group[name][37:41], expected[37:41])

    def test_a_missing_codebook(self, store: Path) -> None:
        import logitstore.zarr

        next(store.glob("codebooks/*.lgb")).unlink()
        with pytest.raises(TruncatedDataError, match="codebook of"):
            logitstore.zarr.open(store)

    def test_tars(self, stores: Any, tmp_path: Path) -> None:
        import logitstore.zarr

        tars = stores.make(tmp_path / "t", LENGTHS, container="webdataset", shard_bytes=9000)
        with pytest.raises(InvalidArgumentError, match="tars"):
            logitstore.zarr.open(tars)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_kl": 1e-3, "max_error": 0.1}, "not by both"),
        ({"max_kl": 0.0}, "positive"),
        ({"max_error": float("inf")}, "finite"),
        ({"training_rows": 0}, "at least 1"),
        ({"retrain_rows": 100}, "power of two"),
    ],
)
def test_settings_that_make_no_sense(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        CodecRecord.compact(**arguments)
