from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from logitstore.audit import verify
from logitstore.container import writer as writer_module
from logitstore.container.writer import StoreWriter, prepare_directory

LENGTHS = [20, 1, 13, 40]


def rules(path: Path) -> set[str]:
    report = verify(path)
    assert report.ok == (not report.errors)
    for error in report.errors:
        assert error.message
        assert error.file == "" or (path / error.file).parent.is_dir()
    json.dumps(report.to_json(), allow_nan=False)
    return {error.rule for error in report.errors}


@pytest.mark.parametrize("rows", ["all", "masked"])
@pytest.mark.parametrize("values", ["logprob", "logit"])
@pytest.mark.parametrize("ragged", [False, True])
def test_sound_stores(stores: Any, tmp_path: Path, values: str, rows: str, ragged: bool) -> None:
    path = stores.make(
        tmp_path / "s", LENGTHS, ragged=ragged, values=values, build={"rows": rows}, has_counts=True,
        temperatures=(0.5, 3.0), selection={"top_k": 5, "samples": 50},
    )  # fmt: skip
    seen: list[tuple[int, int]] = []
    report = verify(path, progress=lambda done, total: seen.append((done, total)))
    assert (report.ok, report.errors, report.notes) == (True, [], [])
    assert report.rows_checked == 74
    assert seen[-1] == (74, 74)
    assert seen == sorted(seen)


def test_many_blocks_and_wide_rows(stores: Any, tmp_path: Path) -> None:
    assert verify(stores.make(tmp_path / "a", [5000, 4000], slots=64, rows_per_shard=8192)).rows_checked == 9000
    path = stores.make(tmp_path / "b", [3, 2], slots=70_000, vocab_size=70_000, padded_vocab_size=70_000)
    assert verify(path, workers=1).ok


def test_a_store_without_rows(stores: Any, tmp_path: Path) -> None:
    report = verify(stores.make(tmp_path / "s", []))
    assert (report.ok, report.rows_checked) == (True, 0)


def test_unfinished_store(stores: Any, tmp_path: Path) -> None:
    manifest = stores.manifest()
    prepare_directory(tmp_path / "s")
    with StoreWriter(tmp_path / "s", manifest) as writer:
        for document, rows in stores.documents(LENGTHS, manifest):
            writer.append(document, rows)
    (error,) = verify(tmp_path / "s").errors
    assert error.rule == "complete"
    assert "64 rows of 4 documents" in error.message
    assert "--resume" in error.message


def test_not_a_store(tmp_path: Path) -> None:
    assert rules(tmp_path) == {"manifest"}


def without_checks(stores: Any, path: Path, monkeypatch: pytest.MonkeyPatch, change: Any, **settings: Any) -> Path:
    """Write a store whose rows break a rule, with a writer that does not look."""
    manifest = stores.manifest(**settings)
    documents = stores.documents(LENGTHS, manifest)
    monkeypatch.setattr(writer_module, "check_rows", lambda *_, **__: [])
    return Path(stores.write(path, change(documents), manifest))


def per_document(change: Any) -> Any:
    def apply(documents: Any) -> Any:
        return [(document, dataclasses.replace(rows, **change(rows))) for document, rows in documents]

    return apply


def put(array: Any, where: Any, value: Any) -> Any:
    changed = array.copy()
    changed[where] = value
    return changed


def shift(array: Any) -> Any:
    return np.concatenate([array[1:], array[:1]])


@pytest.mark.parametrize("values", ["logprob", "logit"])
@pytest.mark.parametrize(
    ("rule", "change"),
    [
        # Off by one, in either direction: the stored rows against tokens and labels.
        ("label-value", lambda r: {name: shift(getattr(r, name)) for name in ("ids", "values", "lse")}),
        ("label-value", lambda r: {name: np.roll(getattr(r, name), 1, 0) for name in ("ids", "values", "lse")}),
        ("label-value", lambda r: {"label_logprob": put(shift(r.label_logprob), -1, np.nan)}),
        ("label-outside", lambda r: {"label_logprob": np.where(np.isnan(r.label_logprob), np.nan, -0.01)}),
        ("label-present", lambda r: {"label_logprob": put(r.label_logprob, 0, np.nan)}),
        ("label-absent", lambda r: {"label_logprob": put(r.label_logprob, -1, -1.0)}),
        ("label-range", lambda r: {"label_logprob": put(r.label_logprob, 0, 0.5)}),
        ("mask-last", lambda r: {"mask": put(r.mask, -1, 1)}),
        ("mask-value", lambda r: {"mask": put(r.mask, 0, 2)}),
        ("row-empty", lambda r: {"ids": put(r.ids, 0, 0xFFFFFFFF), "values": put(r.values, 0, -np.inf)}),
        ("lse-finite", lambda r: {"lse": put(r.lse, 0, np.nan)}),
        ("value-finite", lambda r: {"values": put(r.values, (0, 0), np.nan)}),
        ("mass", lambda r: {"lse": r.lse - 9, "values": (r.values.astype("f4") + 9).astype("f2")}),
        ("maximum", lambda r: {"lse": r.lse + 30, "values": (r.values.astype("f4") - 30).astype("f2")}),
        ("lse_T-order", lambda r: {"lse_T": r.lse_T - 9}),
        ("lse_T-finite", lambda r: {"lse_T": put(r.lse_T, 0, np.inf)}),
        ("count-sum", lambda r: {"counts": put(r.counts, (0, 0), r.counts[0, 0] + 1)}),
    ],
)
def test_every_rule_of_rows(
    stores: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: str, rule: str, change: Any
) -> None:
    settings: dict[str, Any] = {"values": values, "vocab_size": 12, "temperatures": (2.0,)}
    if rule == "count-sum":
        settings |= {"has_counts": True, "selection": {"top_k": 5, "samples": 50}}
    path = without_checks(stores, tmp_path / "s", monkeypatch, per_document(change), **settings)
    assert rule in rules(path)


def test_rows_that_were_not_asked_for_hold_nothing(
    stores: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = stores.manifest()
    everything = stores.documents(LENGTHS, manifest)
    path = without_checks(stores, tmp_path / "s", monkeypatch, lambda _: everything, build={"rows": "masked"})
    assert {"row-unasked", "lse-unasked", "label-absent"} <= rules(path)


def test_keys_are_unique(stores: Any, tmp_path: Path) -> None:
    manifest = stores.manifest()
    documents = [
        (dataclasses.replace(document, key="same"), rows) for document, rows in stores.documents([4] * 3, manifest)
    ]
    report = verify(stores.write(tmp_path / "s", documents, manifest))
    assert [(error.rule, error.row) for error in report.errors] == [("document-key", 4), ("document-key", 8)]


def test_all_broken_shards_are_listed_and_the_others_checked(stores: Any, tmp_path: Path) -> None:
    path = stores.make(tmp_path / "s", [32] * 6)
    (path / "ids" / "c.0.0").unlink()
    (path / "lse" / "c.2").write_bytes(b"")
    flip(path / "tokens" / "c.3", 120)
    shutil.copy(path / "logprobs" / "c.4.0", path / "logprobs" / "c.5.0")
    found = {(error.file, error.shard, error.rule) for error in verify(path).errors}
    assert {
        ("ids/c.0.0", 0, "shard-missing"),
        ("lse/c.2", 2, "shard-size"),
        ("tokens/c.3", 3, "shard-digest"),
        ("tokens/c.3", 3, "chunk-checksum"),
    } <= found
    assert {file for file, _, _ in found} == {"ids/c.0.0", "lse/c.2", "tokens/c.3", "logprobs/c.5.0", "manifest.json"}
    assert verify(path).rows_checked == 2 * 32


def flip(file: Path, offset: int) -> None:
    content = bytearray(file.read_bytes())
    content[offset] ^= 16
    file.write_bytes(content)


def test_every_file_is_covered(stores: Any, tmp_path: Path) -> None:
    path = stores.make(tmp_path / "s", [20, 20], has_counts=True, selection={"top_k": 5, "samples": 50})
    for file in sorted(path.rglob("*")):
        if not file.is_file():
            continue
        content = file.read_bytes()
        for offset in (0, len(content) // 3, len(content) // 2):
            flip(file, offset)
            name = str(file.relative_to(path))
            errors = verify(path).errors
            # The manifest is what vouches for the others, so it may blame them.
            assert errors or name == "manifest.json"
            assert name == "manifest.json" or any(error.file == name for error in errors), (name, offset, errors)
            file.write_bytes(content)
        file.unlink()
        assert not verify(path).ok, file
        file.write_bytes(content)
    assert verify(path).ok


def test_sealed_rows_of_another_text_are_found(stores: Any, tmp_path: Path) -> None:
    """Checksums prove that bytes are as they were written, not that they belong together."""
    path = stores.make(tmp_path / "s", [32] * 3)
    other = stores.make(tmp_path / "other", [32] * 3, seed=5)
    shutil.copytree(other / "tokens", path / "tokens", dirs_exist_ok=True)
    reseal(path)
    assert rules(path) <= {"label-value", "label-outside"}
    assert rules(path)


def reseal(path: Path) -> None:
    """Make all records fit the files that are there now."""
    lines = []
    for line in (path / "shards.jsonl").read_bytes().splitlines(keepends=True):
        record = json.loads(line)
        for array in record["files"]:
            (file,) = (path / array).glob(f"c.{record['shard']}*")
            record["files"][array] = record_of(file)
        lines.append(json.dumps(record, separators=(",", ":")).encode().ljust(len(line) - 1) + b"\n")
    (path / "shards.jsonl").write_bytes(b"".join(lines))
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["shard_table"] = record_of(path / "shards.jsonl")
    for array in manifest["bytes_by_field"]:
        manifest["bytes_by_field"][array] = sum(file.stat().st_size for file in (path / array).glob("c.*"))
    (path / "manifest.json").write_text(json.dumps(manifest))


def record_of(file: Path) -> dict[str, Any]:
    content = file.read_bytes()
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def test_totals_of_the_manifest(stores: Any, tmp_path: Path) -> None:
    path = stores.make(tmp_path / "s", LENGTHS)
    content = json.loads((path / "manifest.json").read_text())
    content["entries"] -= 1
    content["bytes_by_field"]["ids"] += 1
    (path / "manifest.json").write_text(json.dumps(content))
    assert rules(path) == {"entries", "bytes-by-field"}


def test_strangers_are_noted_not_refused(stores: Any, tmp_path: Path) -> None:
    path = stores.make(tmp_path / "s", LENGTHS)
    (path / "notes.txt").touch()
    (path / "ids" / "c.7.0").touch()
    report = verify(path)
    assert report.ok
    assert report.notes == ["ids/c.7.0 is not part of the store", "notes.txt is not part of the store"]


def test_many_problems_of_a_shard_are_counted(stores: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = stores.manifest(rows_per_shard=1024)
    document, rows = stores.documents([1], manifest)[0]
    documents = [(dataclasses.replace(document, key="same"), rows)] * 100
    errors = verify(stores.write(tmp_path / "s", documents, manifest)).errors
    assert len(errors) == 21
    assert errors[-1].rule == "more"
    assert "79 more" in errors[-1].message
