"""What a build says about itself."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import logitstore

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("load_once")


@pytest.mark.parametrize("values", ["logprob", "logit"])
def test_perplexity_and_kept_mass_follow_from_the_rows(
    values: str, configure: Any, write_corpus: Any, texts: Any, run: Any, tmp_path: Path
) -> None:
    summary = run(configure(write_corpus(texts(14, 1, 20, 3)), top_k=6, values=values, tokens_per_batch=60))
    rows = logitstore.open(tmp_path / "store.zarr").rows[:]
    assert summary.perplexity == pytest.approx(math.exp(-np.nanmean(rows.label_logprob, dtype=np.float64)), rel=1e-5)
    assert summary.kept_mass == pytest.approx(np.exp(rows.logprobs.astype(np.float64)).sum(1).mean(), rel=1e-4)
    assert 0 < summary.kept_mass < 1
    assert summary.new_rows == summary.manifest.rows == len(rows)


def test_masked_rows_alone_count(configure: Any, write_corpus: Any, run: Any, tmp_path: Path) -> None:
    data = write_corpus(
        [{"prompt": "the bell", "completion": " shiny fox"}, {"prompt": "round", "completion": " 世界"}]
    )
    summary = run(configure(data, top_k=6, rows="masked"))
    rows = logitstore.open(tmp_path / "store.zarr").rows[:]
    kept = rows.select(rows.mask == 1)
    assert summary.perplexity == pytest.approx(math.exp(-kept.label_logprob.mean(dtype=np.float64)), rel=1e-5)
    assert summary.kept_mass == pytest.approx(np.exp(kept.logprobs.astype(np.float64)).sum(1).mean(), rel=1e-4)
    assert summary.manifest.rows == len(rows) > len(kept)


def test_totals_are_those_of_the_store(configure: Any, write_corpus: Any, texts: Any, run: Any, tmp_path: Path) -> None:
    manifest = run(
        configure(write_corpus(texts(9, 30, 4)), top_p=0.5, max_k=30, seq_len=50, rows_per_shard=32)
    ).manifest
    store = logitstore.open(tmp_path / "store.zarr")
    assert (manifest.rows, manifest.documents) == (sum(map(len, store)), len(store))
    assert manifest.entries == int((store.rows[:].ids != 0xFFFFFFFF).sum())
    for name, size in manifest.bytes_by_field.items():
        assert size == sum(file.stat().st_size for file in (store.path / name).glob("c.*")), name
    assert set(manifest.bytes_by_field) == {path.name for path in store.path.iterdir() if path.is_dir()}


def test_time_is_told_by_stage(configure: Any, write_corpus: Any, texts: Any, run: Any) -> None:
    summary = run(configure(write_corpus(texts(9, 3))))
    assert set(summary.stage_seconds) == {
        "load", "forward", "selection", "encode", "check", "write", "starve", "wait",
    }  # fmt: skip
    assert all(seconds >= 0 for seconds in summary.stage_seconds.values())
    assert summary.seconds > 0
    assert summary.teacher_waited == summary.stage_seconds["starve"] + summary.stage_seconds["wait"]
    assert summary.stage_shares["load"] == summary.stage_seconds["load"] / summary.seconds


def test_times_and_commands_stand_in_a_file_of_their_own(
    configure: Any, write_corpus: Any, texts: Any, run: Any, tmp_path: Path, files_of: Any
) -> None:
    config = configure(write_corpus(texts(9, 30, 4)), rows_per_shard=16)
    for name in ("store.zarr", "again.zarr"):
        run(config, name, command=f"logitstore build --out {name}")
    assert files_of(tmp_path / "store.zarr") == files_of(tmp_path / "again.zarr")
    run(config, command="logitstore build --resume", resume=True)
    runs = json.loads((tmp_path / "store.zarr" / "build.json").read_bytes())["runs"]
    assert [run["command"] for run in runs] == ["logitstore build --out store.zarr", "logitstore build --resume"]
    rows = logitstore.open(tmp_path / "store.zarr").manifest.rows
    assert [run["rows_computed"] for run in runs] == [rows, 0]
    assert all({"started", "seconds", "stage_seconds", "versions"} <= set(run) for run in runs)


def test_the_manifest_says_what_was_asked(configure: Any, write_corpus: Any, texts: Any, run: Any) -> None:
    config = configure(write_corpus(texts(9, 30)), top_k=3, samples=4, seed=7, temperatures=(2.0,), seq_len=40)
    manifest = run(config).manifest
    assert manifest.selection == {"top_k": 3, "samples": 4, "seed": 7}
    assert (manifest.slots, manifest.has_counts, manifest.temperatures) == (7, True, (2.0,))
    assert manifest.teacher["id"] == config.teacher.model
    assert manifest.teacher["identity"]["dtype"] == "float32"
    assert manifest.tokenizer["vocab_size"] == manifest.vocab_size == 290
    assert manifest.corpus["inputs"][0]["file"] == "corpus.jsonl"
    assert manifest.build["corpus"]["seq_len"] == 40
    assert {"logitstore", "python", "torch", "transformers"} <= set(manifest.versions)


def test_progress_only_grows_and_ends_at_the_totals(configure: Any, write_corpus: Any, texts: Any, run: Any) -> None:
    calls: list[Any] = []
    data = write_corpus(texts(14, 2, 9, 10, 5, 8, 30))
    manifest = run(configure(data, tokens_per_batch=50, rows_per_shard=64), on_progress=calls.append).manifest
    for name in ("tokens", "new_tokens", "entries", "bytes", "committed_rows"):
        series = [getattr(call, name) for call in calls]
        assert series == sorted(series), name
    last = calls[-1]
    assert last.tokens == last.new_tokens == last.total_tokens == manifest.rows
    assert last.entries == manifest.entries
    assert last.committed_rows == manifest.rows // 64 * 64
