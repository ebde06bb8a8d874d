"""The teacher writes: what it sampled is what is stored, with the rows of the very steps."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import logitstore
from logitstore.audit import verify
from logitstore.audit.teacher_check import check_teacher
from logitstore.select import Sampling
from tests.build.conftest import CONTEXT, END
from tests.build.test_rows import Plain, check_plain_zarr, check_store

if TYPE_CHECKING:
    import torch

    from logitstore.reader import Document

pytestmark = pytest.mark.usefixtures("load_once")

SELECTIONS: list[dict[str, Any]] = [
    {"top_k": 6}, {"top_fraction": 0.05}, {"top_p": 0.7, "max_k": 40}, {"samples": 12}, {"top_k": 5, "samples": 20},
]  # fmt: skip


@pytest.fixture(scope="module")
def plain(teacher_folder: str) -> Plain:
    return Plain(teacher_folder)


def written(document: Document) -> np.ndarray:
    """Tokens that the mask says were generated."""
    return document.tokens[1:][document.mask[:-1] == 1]


@pytest.mark.parametrize("rows", ["all", "masked"])
@pytest.mark.parametrize("selection", SELECTIONS, ids=lambda s: "-".join(f"{k}={v}" for k, v in s.items()))
def test_rows_equal_a_run_over_what_is_stored(
    selection: dict[str, Any], rows: str, plain: Plain, configured: Any, prompts: str, run: Any, tmp_path: Path
) -> None:
    config = configured(
        prompts, **selection, rows=rows, values="logit" if rows == "masked" else "logprob", temperatures=(0.5, 2.0),
        tokens_per_batch=130, rows_per_chunk=13, rows_per_shard=32,
    )  # fmt: skip
    run(config)
    with logitstore.open(tmp_path / "store.zarr") as store:
        check_store(store, plain, config)
        check_plain_zarr(tmp_path / "store.zarr", store)
    assert check_teacher(tmp_path / "store.zarr", config.teacher.model, device="cpu").ok
    assert verify(tmp_path / "store.zarr").ok


def test_what_is_stored_was_never_tokenised_again(
    plain: Plain, configured: Any, prompts: str, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen: dict[int, list[int]] = {}
    choose = Sampling.choose

    def remember(self: Any, logits: Any, documents: Any, step: int) -> Any:
        tokens = choose(self, logits, documents, step)
        for document, token in zip(documents.tolist(), tokens.tolist(), strict=True):
            assert len(chosen.setdefault(document, [])) == step
            chosen[document].append(token)
        return tokens

    monkeypatch.setattr(Sampling, "choose", remember)
    run(configured(prompts, tokens_per_batch=130))
    texts = [json.loads(line)["text"] for line in Path(prompts).read_text().splitlines()]
    again = 0
    store = logitstore.open(tmp_path / "store.zarr")
    assert [document.key for document in store] == [f"corpus-{number:08d}" for number in range(len(texts))]
    for number, (text, document) in enumerate(zip(texts, store, strict=True)):
        prompt = plain.tokenizer(text).input_ids
        assert document.tokens.tolist() == prompt + chosen[number]
        assert document.mask.tolist() == [0] * (len(prompt) - 1) + [1] * len(chosen[number]) + [0]
        assert document.parent is None
        assert np.isnan(document.label_logprob[-1])
        assert not np.isnan(document.label_logprob[:-1]).any()
        decoded = plain.tokenizer.decode(document.tokens.astype(int), skip_special_tokens=True)
        again += plain.tokenizer(decoded).input_ids != document.tokens.tolist()
    assert again > len(texts) // 2, "tokenising again would give other tokens"


def test_texts_end_with_an_end_token_or_at_their_limit(configured: Any, prompts: str, run: Any, tmp_path: Path) -> None:
    manifest = run(configured(prompts, samples_per_prompt=6, tokens_per_batch=200)).manifest
    ends = manifest.build["generation"]["end_tokens"]
    assert len(ends) == len(END)
    ended = 0
    for document in logitstore.open(tmp_path / "store.zarr"):
        new = written(document).tolist()
        assert not set(new[:-1]) & set(ends)
        assert (new[-1] in ends and len(new) <= 25) or len(new) == 25
        ended += new[-1] in ends
    assert 0 < ended < manifest.documents == 42


def test_greedy_takes_the_most_probable_token(
    plain: Plain, configured: Any, prompts: str, run: Any, tmp_path: Path
) -> None:
    run(configured(prompts, sampling_temperature=0, top_k=1, end_tokens=()))
    for document in logitstore.open(tmp_path / "store.zarr"):
        chosen = document.mask == 1
        assert written(document).tolist() == document.ids[chosen, 0].tolist()
        assert document.tokens[1:][chosen[:-1]].tolist() == plain.logits(document.tokens)[chosen].argmax(1).tolist()


def test_sampling_stays_inside_the_nucleus(configured: Any, prompts: str, run: Any, tmp_path: Path) -> None:
    run(configured(prompts, sampling_top_p=0.5, top_k=290, samples_per_prompt=3, end_tokens=()))
    seen_others = 0
    for document in logitstore.open(tmp_path / "store.zarr"):
        for t in np.flatnonzero(document.mask):
            p = np.exp(document.logprobs[t].astype(np.float64))
            rank = document.ids[t].tolist().index(document.tokens[t + 1])
            assert p[:rank].sum() < 0.5 + 1e-3
            seen_others += rank > 0
    assert seen_others > 20


def _texts(path: Path) -> list[list[int]]:
    return [document.tokens.tolist() for document in logitstore.open(path)]


@pytest.mark.parametrize(
    "settings",
    [
        {"tokens_per_batch": 40},
        {"tokens_per_batch": 140, "rows_per_chunk": 4},
        {"rows": "masked", "rows_per_chunk": 50},
    ],
    ids=lambda s: "-".join(map(str, s.values())),
)
@pytest.mark.parametrize("sampling", [{}, {"sampling_temperature": 0.7, "sampling_top_p": 0.9}], ids=["all", "nucleus"])
def test_batches_do_not_show(
    sampling: Any, settings: Any, configured: Any, prompts: str, run: Any, tmp_path: Path
) -> None:
    run(configured(prompts, samples_per_prompt=2, seq_len=60, **sampling), "whole.zarr")
    run(configured(prompts, samples_per_prompt=2, seq_len=60, **sampling, **settings), "pieces.zarr")
    assert _texts(tmp_path / "whole.zarr") == _texts(tmp_path / "pieces.zarr")


def test_seeds_and_samples_differ(configured: Any, prompts: str, run: Any, tmp_path: Path) -> None:
    run(configured(prompts, samples_per_prompt=3, metadata_fields=("*",)), "one.zarr")
    run(configured(prompts, samples_per_prompt=3, sampling_seed=1), "other.zarr")
    one, other = _texts(tmp_path / "one.zarr"), _texts(tmp_path / "other.zarr")
    assert sum(a != b for a, b in zip(one, other, strict=True)) > 18
    assert len({tuple(text) for text in one}) == 21
    keys = [document.key for document in logitstore.open(tmp_path / "one.zarr")]
    assert keys[:4] == ["corpus-00000000-s0000", "corpus-00000000-s0001", "corpus-00000000-s0002",
                        "corpus-00000001-s0000"]  # fmt: skip


def test_from_no_prompt(plain: Plain, configured: Any, run: Any, tmp_path: Path) -> None:
    config = configured(documents=9, tokens_per_batch=80)
    summary = run(config)
    assert summary.manifest.build["generation"]["start_token"] == 0
    assert summary.manifest.corpus["inputs"] == []
    assert summary.counters.documents == summary.manifest.documents == 9
    with logitstore.open(tmp_path / "store.zarr") as store:
        check_store(store, plain, config)
        assert [document.key for document in store] == [f"generated-{number:08d}" for number in range(9)]
        for document in store:
            assert document.tokens[0] == 0
            assert document.mask.tolist() == [1] * (len(document) - 1) + [0]
        assert len({tuple(document.tokens.tolist()) for document in store}) == 9


def test_chats_and_prompts(plain: Plain, configured: Any, write_corpus: Any, run: Any, tmp_path: Path) -> None:
    records = [
        {"messages": [{"role": "user", "content": "the bell"}]},
        {"messages": [{"role": "user", "content": "round"}, {"role": "assistant", "content": "left out"}]},
        {"prompt": "the time", "completion": "left out"},
        {"text": "  "},
        {"text": "upon"},
    ]
    config = configured(write_corpus(records), rows="masked", tokens_per_batch=160)
    summary = run(config)
    assert summary.counters.empty_documents == 1
    with logitstore.open(tmp_path / "store.zarr") as store:
        check_store(store, plain, config)
        read = []
        for document in store:
            first = int(np.flatnonzero(document.mask)[0]) + 1
            read.append(plain.tokenizer.decode(document.tokens[:first].astype(int)))
    assert read == [
        "<s>User: the bell\n\nAssistant:", "<s>User: round\n\nAssistant:", "<s>the time", "<s>upon",
    ]  # fmt: skip


def test_the_manifest_says_how_it_was_written(configured: Any, prompts: str, run: Any) -> None:
    config = configured(
        prompts, sampling_temperature=0.7, sampling_top_p=0.9, sampling_seed=5, end_tokens=None, samples_per_prompt=2
    )
    manifest = run(config).manifest
    assert manifest.build["generation"] == {
        "temperature": 0.7, "top_p": 0.9, "seed": 5, "max_new_tokens": 25, "samples_per_prompt": 2, "documents": None,
        "start_token": None, "end_tokens": [1],
    }  # fmt: skip
    assert manifest.build["corpus"]["seq_len"] == CONTEXT
    assert manifest.corpus["inputs"][0]["file"] == "corpus.jsonl"


def test_given_text_has_no_generation(configure: Any, prompts: str, run: Any) -> None:
    assert not {"generation", "prompts"} & {*run(configure(prompts)).manifest.build}


def test_a_text_ends_at_seq_len(configured: Any, write_corpus: Any, texts: Any, run: Any, tmp_path: Path) -> None:
    config = configured(write_corpus(texts(2, 12)), seq_len=50, max_new_tokens=1000, end_tokens=())
    run(config)
    assert [len(document) for document in logitstore.open(tmp_path / "store.zarr")] == [50, 50]
    run(dataclasses.replace(config, corpus=dataclasses.replace(config.corpus, seq_len=None)), "longest.zarr")
    assert [len(document) for document in logitstore.open(tmp_path / "longest.zarr")] == [CONTEXT, CONTEXT]


def test_both_containers_hold_the_same(configured: Any, prompts: str, run: Any, tmp_path: Path) -> None:
    config = configured(prompts, samples_per_prompt=4, tokens_per_batch=150, top_k=3, samples=4)
    run(dataclasses.replace(config, rows_per_shard=64))
    run(dataclasses.replace(config, rows_per_shard=64, container="webdataset", shard_bytes=4096), "store.wds")
    one, other = logitstore.open(tmp_path / "store.zarr"), logitstore.open(tmp_path / "store.wds")
    assert other.manifest.row_shards > 1
    assert one.manifest.store_id == other.manifest.store_id
    for name in ("tokens", "ids", "values", "lse", "label_logprob", "mask", "counts"):
        np.testing.assert_array_equal(getattr(one.rows[:], name), getattr(other.rows[:], name), err_msg=name)
    assert check_teacher(tmp_path / "store.wds", config.teacher.model, device="cpu").ok


def test_the_summary_and_progress_add_up(configured: Any, prompts: str, run: Any, tmp_path: Path) -> None:
    calls: list[Any] = []
    summary = run(
        configured(prompts, samples_per_prompt=3, tokens_per_batch=130, rows_per_shard=64), on_progress=calls.append
    )
    rows = logitstore.open(tmp_path / "store.zarr").rows[:]
    assert summary.perplexity == pytest.approx(math.exp(-np.nanmean(rows.label_logprob, dtype=np.float64)), rel=1e-5)
    assert summary.new_rows == summary.manifest.rows == len(rows)
    for name in ("tokens", "new_tokens", "bytes", "committed_rows"):
        series = [getattr(call, name) for call in calls]
        assert series == sorted(series), name
    assert len(calls) > 10
    last = calls[-1]
    assert last.tokens == last.new_tokens == last.total_tokens == len(rows)
    assert calls[len(calls) // 2].total_tokens == pytest.approx(len(rows), rel=0.5)


def test_logits_of_few_rows_exist_at_a_time(
    configured: Any, prompts: str, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from logitstore.build import extract

    sizes = []
    select = extract.select_rows

    def counted(logits: torch.Tensor, *arguments: Any, **named: Any) -> Any:
        sizes.append(len(logits))
        return select(logits, *arguments, **named)

    monkeypatch.setattr(extract, "select_rows", counted)
    run(configured(prompts, samples_per_prompt=5, rows_per_chunk=8))
    assert max(sizes) == 8
    assert sum(sizes) / len(sizes) > 5, "rows of several steps go through the selection together"
