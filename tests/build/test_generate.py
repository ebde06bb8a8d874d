"""The teacher writes: what it sampled is what is stored, with the rows of the very steps."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import transformers

import logitstore
from logitstore.audit import verify
from logitstore.audit.teacher_check import check_teacher
from logitstore.build import BuildConfig, GenerationConfig, build
from logitstore.corpus import CorpusConfig
from logitstore.errors import CorruptDataError, InvalidArgumentError
from logitstore.select import Sampling
from logitstore.teacher import TeacherConfig
from tests.build.test_rows import Plain, check_plain_zarr, check_store

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from logitstore.reader import Document

pytestmark = pytest.mark.usefixtures("load_once")

CONTEXT = 96
# So many of the 290 tokens that most texts end before their limit, at different lengths.
END = tuple("abcdefghijklmnopqrst")
SELECTIONS: list[dict[str, Any]] = [
    {"top_k": 6}, {"top_fraction": 0.05}, {"top_p": 0.7, "max_k": 40}, {"samples": 12}, {"top_k": 5, "samples": 20},
]  # fmt: skip


@pytest.fixture(scope="module")
def plain(teacher_folder: str) -> Plain:
    return Plain(teacher_folder)


@pytest.fixture
def configured(configure: Any) -> Callable[..., BuildConfig]:
    """Make a configuration that goes on with prompts; without any, it says how many documents."""

    def make(data: str | None = None, **settings: Any) -> BuildConfig:
        names = {field.name for field in dataclasses.fields(GenerationConfig)}
        asked = {name: settings.pop(name) for name in names & set(settings)}
        drawn = [name for name in settings if name.startswith("sampling_")]
        sampling = {name.removeprefix("sampling_"): settings.pop(name) for name in drawn}
        generation = GenerationConfig(
            **({"max_new_tokens": 25, "end_tokens": END} | asked), sampling=Sampling(**sampling)
        )
        config = configure(data or "none", prompts=data is not None, **settings,
                           **({"generation": generation} if data else {}))  # fmt: skip
        if data:
            return config  # type: ignore[no-any-return]
        corpus = dataclasses.replace(config.corpus, data=(), prompts=True)
        return dataclasses.replace(config, corpus=corpus, generation=generation)

    return make


@pytest.fixture
def prompts(write_corpus: Any, texts: Any) -> str:
    return str(write_corpus(texts(6, 1, 9, 3, 3, 14, 2)))


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


@pytest.fixture(params=["zarr", "webdataset"])
def awkward(request: Any, configured: Any, write_corpus: Any, texts: Any) -> BuildConfig:
    """Batches, prompts' samples and shards that all end in different places."""
    data = write_corpus(["", *texts(6, 1, 9, 3, 12, 2)])
    config = configured(
        data, samples_per_prompt=3, tokens_per_batch=130, rows_per_chunk=40, rows_per_shard=64, top_k=3, samples=2,
        temperatures=(2.0,),
    )  # fmt: skip
    return dataclasses.replace(config, container=request.param, shard_bytes=2048)  # type: ignore[no-any-return]


def test_writing_may_be_interrupted_at_any_call(
    awkward: BuildConfig, run: Any, tmp_path: Path, files_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nothing here loses power.
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    calls: list[Any] = []
    run(awkward, "whole", on_progress=calls.append)
    whole = files_of(tmp_path / "whole")
    assert calls[-1].committed_rows > 0
    going_on = 0
    for last in range(1, len(calls) + 1, 3):
        seen: list[Any] = []

        def interrupt(progress: Any, seen: list[Any] = seen, last: int = last) -> None:
            seen.append(progress)
            if len(seen) == last:
                raise KeyboardInterrupt

        store = tmp_path / f"store{last}"
        with pytest.raises(KeyboardInterrupt):
            build(awkward, store, on_progress=interrupt)
        summary = build(awkward, store, resume=True)
        going_on += summary.new_rows < summary.manifest.rows
        assert files_of(store) == whole, f"interrupted at call {last}"
        shutil.rmtree(store)
    assert going_on > 2


def test_writing_from_no_prompt_goes_on_in_the_middle(configured: Any, run: Any, tmp_path: Path, files_of: Any) -> None:
    config = configured(documents=20, tokens_per_batch=80, rows_per_shard=64)
    run(config, "whole.zarr")

    def interrupt(progress: Any) -> None:
        if progress.committed_rows:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(config, on_progress=interrupt)
    calls: list[Any] = []
    summary = run(config, resume=True, on_progress=calls.append)
    assert summary.new_rows < summary.manifest.rows
    assert calls[-1].tokens == calls[-1].total_tokens == summary.manifest.rows
    assert files_of(tmp_path / "store.zarr") == files_of(tmp_path / "whole.zarr")


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"sampling_temperature": 0.5}, "build.generation.temperature was 1.0 and is now 0.5"),
        ({"sampling_top_p": 0.5}, "build.generation.top_p was 1.0 and is now 0.5"),
        ({"sampling_seed": 3}, "build.generation.seed was 0 and is now 3"),
        ({"max_new_tokens": 9}, "build.generation.max_new_tokens was 25 and is now 9"),
        ({"samples_per_prompt": 2}, "build.generation.samples_per_prompt was 1 and is now 2"),
        ({"end_tokens": ("a",)}, "build.generation.end_tokens was"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_resume_names_what_differs(
    changes: dict[str, Any], difference: str, configured: Any, prompts: str, run: Any
) -> None:
    first = run(configured(prompts))
    with pytest.raises(InvalidArgumentError, match=difference):
        run(configured(prompts, **changes), resume=True)
    assert run(configured(prompts, **changes), "other.zarr").manifest.store_id != first.manifest.store_id


def test_a_store_of_given_text_is_not_gone_on_with(configure: Any, configured: Any, prompts: str, run: Any) -> None:
    run(configure(prompts))
    with pytest.raises(InvalidArgumentError, match=r"build.generation.\w+ was None|build.generation was None"):
        run(configured(prompts), resume=True)


def test_a_prompt_that_leaves_no_room(configured: Any, write_corpus: Any, texts: Any, run: Any) -> None:
    data = write_corpus(texts(3, 60))
    with pytest.raises(InvalidArgumentError, match=r"may have 30 tokens, but the prompt of 'corpus-00000001' has \d+"):
        run(configured(data, seq_len=30))


def test_what_does_not_fit_the_teacher_leaves_no_store(configured: Any, prompts: str, run: Any, tmp_path: Path) -> None:
    for settings, message in (
        ({"seq_len": 97}, "context has 96"),
        ({"end_tokens": ("no such token",)}, "must be a token of the vocabulary"),
    ):
        with pytest.raises(InvalidArgumentError, match=message):
            run(configured(prompts, **settings))
        assert not (tmp_path / "store.zarr").exists()


def _without(folder: str, copy: Path, *names: str) -> str:
    """Copy a teacher and take special tokens from its tokenizer."""
    shutil.copytree(folder, copy)
    file = copy / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps({name: value for name, value in settings.items() if name not in names}))
    return str(copy)


def test_from_no_prompt_starts_with_eos_where_there_is_no_bos(
    configured: Any, teacher_folder: str, run: Any, tmp_path: Path
) -> None:
    config = configured(documents=3)
    model = _without(teacher_folder, tmp_path / "a", "bos_token")
    run(dataclasses.replace(config, teacher=dataclasses.replace(config.teacher, model=model)))
    assert [document.tokens[0] for document in logitstore.open(tmp_path / "store.zarr")] == [1, 1, 1]
    model = _without(teacher_folder, tmp_path / "b", "bos_token", "eos_token")
    with pytest.raises(InvalidArgumentError, match="needs a BOS or an EOS token, and has neither"):
        run(dataclasses.replace(config, teacher=dataclasses.replace(config.teacher, model=model)), "other.zarr")
    assert not (tmp_path / "other.zarr").exists()


def test_rows_that_are_not_finite_name_their_document(
    configured: Any, make_teacher: Any, write_corpus: Any, run: Any
) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(make_teacher("plain"))
    bad = tokenizer("z", add_special_tokens=False).input_ids[0]
    teacher = TeacherConfig(make_teacher("nan", nan_token=bad), dtype="float32", device="cpu")
    config = configured(write_corpus(["the bell", "the z"]))
    with pytest.raises(CorruptDataError, match=r"finite.*document 'corpus-00000001'"):
        run(dataclasses.replace(config, teacher=teacher))
    config = configured(write_corpus(["the bell", "z bell"]), rows="masked")
    with pytest.raises(CorruptDataError, match=r"finite.*token 0 .* document 'corpus-00000001'"):
        run(dataclasses.replace(config, teacher=teacher), "masked.zarr")


@pytest.mark.parametrize("settings", [{"documents": 0}, {"samples_per_prompt": 0}, {"max_new_tokens": 0}])
def test_numbers_are_at_least_one(settings: dict[str, int]) -> None:
    with pytest.raises(InvalidArgumentError, match="is at least 1, found 0"):
        GenerationConfig(**settings)


def test_what_does_not_go_together(configured: Any, configure: Any, prompts: str) -> None:
    with pytest.raises(InvalidArgumentError, match="leave samples_per_prompt"):
        GenerationConfig(documents=3, samples_per_prompt=2)
    config = configured(prompts)
    with pytest.raises(InvalidArgumentError, match="go together"):
        dataclasses.replace(config, generation=None)
    with pytest.raises(InvalidArgumentError, match="go together"):
        configure(prompts, generation=GenerationConfig())
    with pytest.raises(InvalidArgumentError, match="either prompts"):
        dataclasses.replace(config, generation=GenerationConfig(documents=3))
    with pytest.raises(InvalidArgumentError, match="either prompts"):
        dataclasses.replace(config, corpus=CorpusConfig(data=(), prompts=True))


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
