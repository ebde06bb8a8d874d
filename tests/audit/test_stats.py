from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from logitstore.audit import collect, plot_stats, stats
from logitstore.audit.histogram import Histogram

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("values", ["logprob", "logit"])
@pytest.mark.parametrize("rows", ["all", "masked"])
def test_against_plain_sums_over_rows(
    stores: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: str, rows: str
) -> None:
    monkeypatch.setattr("logitstore.audit.stats._BLOCK_ENTRIES", 60)  # several blocks
    manifest = stores.manifest(values=values, slots=6, build={"rows": rows})
    documents = stores.documents([30, 1, 50], manifest, ragged=True)
    result = collect(stores.write(tmp_path / "s", documents, manifest)).to_json()
    json.dumps(result, allow_nan=False)
    for name, target in (("all_rows", False), ("target_rows", True)):
        if rows == "masked" and target:
            assert result[name] is None
            continue
        expected = plainly(documents, manifest, target)
        found = result[name]
        assert (found["rows"], found["labels"]) == (len(expected["mass"]), len(expected["label"]))
        assert found["kept_mass"]["mean"] == pytest.approx(np.mean(expected["mass"]))
        assert found["kept_mass"]["percentiles"]["50"] == pytest.approx(np.median(expected["mass"]), abs=0.05)
        assert list(found["kept_mass"]["mean_by_k"]) == ["1", "2", "4", "6"]
        for k, mean in found["kept_mass"]["mean_by_k"].items():
            assert mean == pytest.approx(np.mean([np.sort(p)[::-1][: int(k)].sum() for p in expected["p"]]))
        assert found["perplexity"] == pytest.approx(np.exp(-np.mean(expected["label"])), rel=1e-5)
        ranks = np.array(expected["rank"])
        assert found["top1_agreement"] == pytest.approx(np.mean(ranks == 1))
        assert found["label_rank"]["up_to"]["4"] == pytest.approx(np.mean(ranks <= 4))
        assert found["label_rank"]["outside"] == pytest.approx(np.mean(ranks > 6))
        assert found["entropy"]["lower_mean"] == pytest.approx(np.mean(expected["low"]), rel=1e-6)
        assert found["entropy"]["upper_mean"] == pytest.approx(np.mean(expected["high"]), rel=1e-6)


def plainly(documents: Any, manifest: Any, target: bool) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {name: [] for name in ("p", "mass", "label", "rank", "low", "high")}
    for _, rows in documents:
        for row in range(len(rows)):
            used = rows.ids[row] != 0xFFFFFFFF
            if not used.any() or (target and not rows.mask[row]):
                continue
            logp = rows.values[row][used].astype(np.float64) - (rows.lse[row] if manifest.values == "logit" else 0)
            p = np.exp(logp)
            tail = 1 - p.sum()
            low = -(p * logp).sum() - tail * np.log(tail)
            found["p"].append(p)
            found["mass"].append(p.sum())
            found["low"].append(low)
            found["high"].append(low + tail * np.log(97 - used.sum()))
            if row + 1 < len(rows):
                found["label"].append(float(rows.label_logprob[row]))
                order = np.lexsort((rows.ids[row][used], -logp))
                kept = rows.ids[row][used][order].tolist()
                label = int(rows.tokens[row + 1])
                found["rank"].append(kept.index(label) + 1 if label in kept else 99)
    return found


def test_the_bounds_of_entropy_hold_the_true_entropy(stores: Any, tmp_path: Path) -> None:
    manifest = stores.manifest(slots=97)
    documents = stores.documents([200], manifest)
    path = stores.write(tmp_path / "whole", documents, manifest)
    true = collect(path).everything.entropy_low.mean
    found = collect(stores.make(tmp_path / "s", [200])).to_json()["all_rows"]["entropy"]
    assert found["lower_mean"] < true < found["upper_mean"]


def test_stores_with_nothing_to_measure(stores: Any, tmp_path: Path) -> None:
    empty = collect(stores.make(tmp_path / "e", []))
    json.dumps(empty.to_json(), allow_nan=False)
    assert empty.to_json()["all_rows"]["kept_mass"]["mean"] is None
    plot_stats(empty, tmp_path / "empty.png")
    single = collect(stores.make(tmp_path / "s", [1], slots=1))
    assert single.to_json()["all_rows"]["perplexity"] is None
    plot_stats(single, tmp_path / "single.png")


def test_a_label_that_is_ruled_out_leaves_no_perplexity(stores: Any, tmp_path: Path) -> None:
    manifest = stores.manifest(selection={})
    (document, rows), *_ = stores.documents([20], manifest)
    rows.label_logprob[3] = -np.inf
    result = collect(stores.write(tmp_path / "s", [(document, rows)], manifest)).to_json()
    assert result["all_rows"]["perplexity"] is None
    assert result["all_rows"]["labels_with_probability_0"] == 1


def test_plot(stores: Any, tmp_path: Path) -> None:
    import matplotlib as mpl

    backend = mpl.rcParams._get("backend")
    found = collect(stores.make(tmp_path / "s", [90, 60], ragged=True))
    assert found.targets is not None
    for suffix, magic in (("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")):
        plot_stats(found, tmp_path / f"figure.{suffix}")
        assert (tmp_path / f"figure.{suffix}").read_bytes().startswith(magic)
    assert mpl.rcParams._get("backend") == backend


def test_histogram() -> None:
    values = np.random.default_rng(0).random(10_000)
    parts = Histogram(0.0, 1.0, 1000)
    for part in np.split(values, 10):
        parts.add(part)
    assert parts.mean == pytest.approx(values.mean())
    for percent in (1, 5, 50, 95, 99):
        assert parts.percentile(percent) == pytest.approx(np.percentile(values, percent), abs=2e-3)
    edges, counts = parts.merged(10)
    np.testing.assert_array_equal(counts, np.histogram(values, edges)[0])
    parts.add(np.array([-5.0, 7.0]))
    assert parts.counts.sum() == 10_002
    assert Histogram(0.0, 1.0, 10).percentile(50) is None


def test_widths_end_at_k() -> None:
    assert stats._widths(1) == (1,)
    assert stats._widths(2) == (1, 2)
    assert stats._widths(6) == (1, 2, 4, 6)
    assert stats._widths(8) == (1, 2, 4, 8)
