from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import logitstore
from logitstore import layout
from logitstore.audit import PlanLine, collect, plan, summarise
from logitstore.audit.planning.codecs import CODECS, LEAST_TAIL, CompactRows, Loss, exact_size
from logitstore.audit.planning.sample import read_sample
from logitstore.audit.planning.selections import Draws, Top, TopP, usual_tops
from logitstore.container.codec_record import CodecRecord
from logitstore.errors import InvalidArgumentError, LogitStoreError, TruncatedDataError

if TYPE_CHECKING:
    from pathlib import Path

LENGTHS = [300, 1, 500, 400, 847]  # one whole chunk: rows that fill a chunk up would count, too


@pytest.fixture(scope="module")
def path(stores: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stores.make(tmp_path_factory.mktemp("plan") / "s", LENGTHS, slots=20, rows_per_shard=2048)


@pytest.fixture(scope="module")
def found(path: Path) -> Any:
    return plan(path)


def line_of(found: Any, selection: str, codec: str = "exact") -> PlanLine:
    return next(line for line in found.lines if (line.selection, line.codec) == (selection, codec))


def test_the_samples_own_setting_takes_what_the_sample_takes(path: Path, found: Any) -> None:
    sizes, rows = summarise(path)["bytes_by_field"], sum(LENGTHS)
    line = line_of(found, "k = 20")
    assert line.flags == "--top-k 20"
    assert line.bytes_by_part["ids"] == pytest.approx(sizes["ids"] / rows, rel=0.03)
    assert line.bytes_by_part["values"] == pytest.approx(sizes["logprobs"] / rows, rel=0.03)
    flat = sum(sizes[name] for name in ("tokens", "lse", "label_logprob", "mask"))
    documents = (path / "documents.jsonl").stat().st_size + 16 * len(LENGTHS)
    assert line.bytes_by_part["other"] == pytest.approx((flat + documents) / rows)
    assert line.bytes_per_token == pytest.approx(sum(line.bytes_by_part.values()))


def test_what_is_kept_is_what_stats_finds(path: Path, found: Any) -> None:
    stats = collect(path).to_json()["all_rows"]
    for k in (8, 16, 20):
        line = line_of(found, f"k = {k}")
        assert line.kept_mass == pytest.approx(stats["kept_mass"]["mean_by_k"][str(k)], rel=1e-5)
        assert line.label_kept == pytest.approx(stats["label_rank"]["up_to"][str(k)])
        assert line.entries == k
    assert line_of(found, "k = 20").kept_mass_p1 == pytest.approx(stats["kept_mass"]["percentiles"]["1"], abs=0.01)


def test_wider_and_finer_is_larger_and_nearer(found: Any) -> None:
    assert [line.bytes_per_token for line in found.lines] == sorted(line.bytes_per_token for line in found.lines)
    for codec in CODECS:
        narrow, wide = line_of(found, "k = 8", codec.name), line_of(found, "k = 20", codec.name)
        assert narrow.bytes_per_token < wide.bytes_per_token
        assert narrow.kl > wide.kl
    lines = {codec.name: line_of(found, "k = 16", codec.name) for codec in CODECS}
    for exactly in (lines["exact"], lines["compact lossless"]):
        assert exactly.kl == pytest.approx(lines["exact"].kl_left_out)
        assert exactly.kl_of_codec == pytest.approx(0, abs=1e-12)
    assert lines["compact max-kl 3e-4"].kl_of_kept < 3e-4 < lines["compact max-kl 1e-2"].kl_of_kept < 1e-2
    assert lines["compact max-kl 1e-2"].bytes_per_token < lines["compact lossless"].bytes_per_token
    assert all(line.kl > line.kl_left_out - 1e-12 for line in lines.values())
    assert lines["compact lossless"].codebook_bytes > 0 == lines["exact"].codebook_bytes


def test_codebooks_are_spread_over_the_rows_they_are_for(path: Path) -> None:
    few, many = (line_of(plan(path, tokens=n, top_k=[8]), "k = 8", "compact lossless") for n in (2000, 10**10))
    for line, tokens in ((few, 2000), (many, 1 << 22)):
        assert line.bytes_by_part["codebooks"] == pytest.approx(line.codebook_bytes / tokens)
    assert many.bytes_by_part["codebooks"] < few.bytes_by_part["codebooks"] / 50


def test_the_budget_decides(found: Any) -> None:
    assert found.tokens == sum(LENGTHS)
    assert found.recommended is None
    assert all(found.fits(line) is None for line in found.lines)
    middle = found.lines[len(found.lines) // 2]
    budget = found.total(middle)
    limited = dataclasses.replace(found, budget=budget)
    fitting = [line for line in limited.lines if line.bytes_per_token * limited.tokens <= budget]
    assert middle in fitting
    assert len(fitting) == len(found.lines) // 2 + 1
    assert limited.recommended.kl == pytest.approx(min(line.kl for line in fitting))
    assert dataclasses.replace(found, budget=10).recommended is None
    roomy = dataclasses.replace(found, budget=10**9)
    assert (roomy.recommended.selection, roomy.recommended.codec) == ("k = 20", "compact lossless")
    assert roomy.recommended.flags == "--top-k 20 --codec compact --lossless"


def test_json_has_everything_and_is_the_same_each_time(path: Path) -> None:
    done: list[tuple[int, int]] = []
    first = plan(path, budget=50_000, top_k=[8, 3], progress=lambda *at: done.append(at)).to_json()
    assert json.dumps(first, allow_nan=False) == json.dumps(plan(path, budget=50_000, top_k=[3, 8, 8]).to_json())
    assert {line["selection"] for line in first["lines"]} == {"k = 3", "k = 8"}
    assert first["lines"][first["recommended"]]["fits"] is True
    assert first["estimated"] is False
    assert first["budget"] == 50_000
    assert first["rows_trained"] + first["rows_measured"] == sum(LENGTHS)
    assert done[-1] == (200, 200)
    assert done == sorted(done)


def test_rows_of_pieces_have_their_own_labels(path: Path) -> None:
    with logitstore.open(path) as store:
        whole = read_sample(store, 10**6)
        part = read_sample(store, 1100)
    assert (len(whole.ids), whole.pieces) == (sum(LENGTHS), 1)
    assert (len(part.ids), part.pieces, part.training) == (1024, 2, 768)
    chosen = [*range(512), *range(sum(LENGTHS) - 512, sum(LENGTHS))]
    for name in ("ids", "logprobs", "labels"):
        np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[chosen])
    assert (whole.labels == -2).sum() == len(LENGTHS)
    assert plan(path, rows=1100, top_k=[8]).rows_measured == 256


def test_top_p_keeps_the_fewest_that_reach_it(stores: Any, tmp_path: Path) -> None:
    with logitstore.open(stores.make(tmp_path / "s", [60], slots=12, ragged=True)) as store:
        rows = read_sample(store, 100)
    kept = TopP(0.5, 12).keep(rows)
    capped = 0
    for row in range(60):
        p = np.exp(rows.logprobs[row].astype(np.float64))
        n = np.count_nonzero(rows.used[row])
        enough = int(np.searchsorted(np.cumsum(p), 0.5)) + 1
        capped += n == 12 < enough
        expected = rows.ids[row, : min(n, enough)]
        np.testing.assert_array_equal(kept.columns["ids"][row, : len(expected)], np.sort(expected))
        assert (kept.columns["ids"][row, len(expected) :] == layout.UNUSED_ID).all()
        assert kept.mass[row] == pytest.approx(p[: len(expected)].sum(), rel=1e-6)
    assert kept.capped == pytest.approx(capped / 60)


def test_a_top_p_sample_does_not_say_what_comes_behind_its_rows(stores: Any, tmp_path: Path) -> None:
    selection = {"top_p": 0.93, "max_k": 12}
    path = stores.make(tmp_path / "s", [90], slots=12, ragged=True, selection=selection)
    assert {line.selection for line in plan(path).lines} <= {
        "1 % (k = 1)",
        "top-p 0.93 (≤ 12)",
        "top-p 0.9 (≤ 12)",
    }
    with pytest.raises(InvalidArgumentError, match="1 most probable ids of every row, asked for 2"):
        plan(path, top_k=[2])


def test_draws_where_the_sample_keeps_all(stores: Any, tmp_path: Path) -> None:
    path = stores.make(tmp_path / "s", [400], slots=97)
    with logitstore.open(path) as store:
        kept = Draws(20).keep(read_sample(store, 400))
    assert (kept.columns["counts"].sum(axis=1) == 20).all()
    assert ((kept.columns["counts"] > 0) == (kept.columns["ids"] != layout.UNUSED_ID)).all()
    assert kept.columns["ids"].shape == (400, 20)
    found = plan(path, budget=10**9, rows=200)
    for codec in CODECS:
        line = line_of(found, "50 draws", codec.name)
        assert line.kl is None is line.kl_left_out
        assert line.bytes_by_part["counts"] > 0
    assert found.recommended.selection == "k = 97"
    assert found.recommended.kl == pytest.approx(0, abs=1e-4)


def test_samples_of_other_kinds(stores: Any, tmp_path: Path) -> None:
    masked = stores.make(
        tmp_path / "m", [200, 90], values="logit", temperatures=(2.0,), build={"rows": "masked"}, has_counts=True,
        selection={"top_k": 3, "samples": 50},
    )  # fmt: skip
    found = plan(masked)
    assert {line.selection for line in found.lines} == {"1 % (k = 1)", "k = 3"}
    assert found.lines[0].entries < 1
    assert all(line.flags.endswith("--rows masked --temperature 2") for line in found.lines)
    assert any("raw logits" in note for note in found.notes)
    mass = collect(masked).to_json()["all_rows"]["kept_mass"]
    assert line_of(found, "k = 3").kept_mass < mass["mean"]  # the draws beside the top 3 are left out
    tars = stores.make(tmp_path / "t", [300, 200], container="webdataset", shard_bytes=10_000, slots=8)
    assert {line.selection for line in plan(tars, budget=10**6).lines} == {"1 % (k = 1)", "5 % (k = 5)", "k = 8"}


def test_coded_rows_come_back(path: Path) -> None:
    with logitstore.open(path) as store:
        rows = read_sample(store, 500)
    columns = Top(20).keep(rows).columns
    compact = CompactRows(columns, columns, vocab_size=97, expected_rows=500)
    _, coded = compact.coded({})
    order = np.argsort(coded["ids"], axis=1)
    np.testing.assert_array_equal(np.take_along_axis(coded["ids"], order, 1), columns["ids"])
    np.testing.assert_array_equal(np.take_along_axis(coded["stored"], order, 1), columns["values"])
    size, coded = compact.coded({"max_error": 0.25})
    assert 0 < np.abs(coded["stored"].astype(float) - coded["values"]).max() <= 0.25
    assert size.fields["values"] < exact_size(columns, 97).fields["values"]


def test_losses_are_those_of_plain_sums() -> None:
    generator = np.random.default_rng(0)
    p = -np.sort(-generator.dirichlet(np.full(30, 0.3), 50), axis=1)[:, :6]
    p_stored = p * np.exp(generator.normal(0, 0.02, p.shape))
    rest, rest_stored = 1 - p.sum(axis=1), 1 - p_stored.sum(axis=1)
    assert min(rest.min(), rest_stored.min()) > LEAST_TAIL
    loss = Loss.of(np.log(p), np.log(p_stored))
    np.testing.assert_allclose(loss.left_out, -np.log(1 - rest))
    # With the tail as one more entry both sum to 1, so that the generalised KL is the plain one.
    plain = (p * np.log(p / p_stored)).sum(axis=1) + rest * np.log(rest / rest_stored)
    np.testing.assert_allclose(loss.of_kept + loss.of_tail, plain)
    whole = np.log([[0.7, 0.3001]])  # as float16 may have it
    assert [float(part[0]) for part in (Loss.of(whole, whole).left_out, Loss.of(whole, whole).of_tail)] == [0, 0]


@pytest.mark.parametrize(
    ("vocab_size", "k", "codec", "measured"),
    [
        (50_257, 128, "exact", 280),
        (50_257, 2513, "exact", 4247),
        (50_257, 64, "exact", 152),
        (50_257, 128, "compact max-kl 3e-4", 102.4),
        (50_257, 128, "compact lossless", 187),
        (50_257, 2513, "compact max-error 0.25", 1157),
        (512, 26, "compact lossless", 48.8),
    ],
)
def test_estimates_hold_what_was_measured(vocab_size: int, k: int, codec: str, measured: float) -> None:
    """Bytes a row of ``benchmarks/RESULTS.md``; of the compact codec with 8 for what is not ids and values."""
    line = line_of(plan(vocab_size=vocab_size, tokens=1000, top_k=[k]), f"k = {k:,}", codec)
    assert line.bytes_at_least < measured < line.bytes_per_token


def test_a_share_stands_for_the_k_beside_it() -> None:
    tops = usual_tops(50_257, 2513)
    assert sorted(tops) == [8, 16, 32, 50, 64, 128, 256, 503, 1024, 2513]
    assert [tops[k].flags for k in (503, 1024, 2513)] == ["--top-fraction 0.01", "--top-k 1024", "--top-fraction 0.05"]


def test_without_a_sample(tmp_path: Path) -> None:
    found = plan(vocab_size=128_256, tokens=10**10, budget=10**12)
    assert found.to_json()["estimated"] is True
    assert {"1 % (k = 1,283)", "5 % (k = 6,413)", "k = 64"} <= {line.selection for line in found.lines}
    assert all(line.kl is None is line.kept_mass for line in found.lines)
    assert found.recommended is None
    assert {found.fits(line) for line in found.lines} == {True, False}
    for vocab_size, expected in ((10, {"k = 8", "5 % (k = 1)"}), (5, {"k = 5"})):
        assert {line.selection for line in plan(vocab_size=vocab_size, tokens=1).lines} == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"vocab_size": 100}, "vocabulary has 97 ids, asked for 100"),
        ({"top_k": [8, 21]}, "20 most probable ids of every row, asked for 21.*--top-k 21"),
        ({"top_k": [0]}, "asked for 0"),
        ({"tokens": 0}, "tokens is at least 1"),
        ({"budget": -1}, "budget is at least 1"),
    ],
)
def test_what_cannot_be_planned_is_said(path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        plan(path, **arguments)


def test_samples_that_do_not_do(stores: Any, tmp_path: Path) -> None:
    draws = stores.make(tmp_path / "d", [90], has_counts=True, selection={"samples": 50})
    with pytest.raises(InvalidArgumentError, match="random draws does not say"):
        plan(draws)
    lossy = stores.make(tmp_path / "lossy", [20], codec=CodecRecord.compact(max_error=0.1))
    with pytest.raises(InvalidArgumentError, match="quantised"):
        plan(lossy)
    with pytest.raises(InvalidArgumentError, match="8 rows at least, found 7"):
        plan(stores.make(tmp_path / "7", [7]))
    manifest = draws / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"complete": true', '"complete": false'))
    with pytest.raises(TruncatedDataError, match="not finished"):
        plan(draws)
    with pytest.raises(LogitStoreError, match="no such file"):
        plan(tmp_path / "nothing")
    for arguments in ({"vocab_size": 10}, {"tokens": 10}, {}):
        with pytest.raises(InvalidArgumentError, match="both vocab_size and tokens"):
            plan(**arguments)
    with pytest.raises(InvalidArgumentError, match="k is 1 to 10"):
        plan(vocab_size=10, tokens=10, top_k=[11])
