"""What may change between a build and its resumption, and what happens to a directory that is in the way."""

from __future__ import annotations

import dataclasses
import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest

import logitstore
from logitstore.build import build
from logitstore.errors import CorruptDataError, InvalidArgumentError
from logitstore.layout import MANIFEST_FILE

if TYPE_CHECKING:
    from pathlib import Path

    from logitstore.build import BuildConfig

pytestmark = pytest.mark.usefixtures("load_once")


@pytest.fixture
def data(write_corpus: Any, texts: Any) -> str:
    return str(write_corpus(texts(14, 2, 9, 10, 5, 8)))


@pytest.fixture
def config(configure: Any, data: str) -> BuildConfig:
    return configure(data, top_k=4, seq_len=40, tokens_per_batch=50, rows_per_shard=64)  # type: ignore[no-any-return]


@pytest.fixture
def unfinished(config: BuildConfig, tmp_path: Path) -> Path:
    """A store that was interrupted after its first shard."""
    store = tmp_path / "store.zarr"

    def interrupt(progress: Any) -> None:
        if progress.committed_rows:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(config, store, on_progress=interrupt)
    return store


@pytest.mark.parametrize(
    ("changes", "differences"),
    [
        ({"dtype": "bfloat16"}, ["teacher.dtype was 'float32' and is now 'bfloat16'"]),
        ({"top_k": 5}, ["selection.top_k was 4 and is now 5", "slots was 4 and is now 5"]),
        ({"top_p": 0.5, "max_k": 4, "top_k": None}, ["selection.top_k was 4 and is now None", "selection.top_p"]),
        ({"samples": 3, "top_k": 1}, ["selection.samples was None and is now 3"]),
        ({"seq_len": 32}, ["build.corpus.seq_len was 40 and is now 32"]),
        ({"append_eos": True}, ["build.corpus.append_eos was False and is now True"]),
        ({"metadata_fields": ("*",)}, ["build.corpus.metadata_fields was [] and is now ['*']"]),
        ({"values": "logit"}, ["values was 'logprob' and is now 'logit'"]),
        ({"rows": "masked"}, ["build.rows was 'all' and is now 'masked'"]),
        ({"temperatures": (2.0,)}, ["temperatures was () and is now (2.0,)"]),
        ({"tokens_per_batch": 64}, ["build.tokens_per_batch was 50 and is now 64"]),
        ({"rows_per_shard": 32}, ["rows_per_shard was 64 and is now 32"]),
        ({"values": "logit", "seq_len": 8}, ["values was 'logprob' and is now 'logit'", "build.corpus.seq_len was 40"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_resume_names_every_difference(
    changes: dict[str, Any], differences: list[str], configure: Any, data: str, unfinished: Path, files_of: Any
) -> None:
    before = files_of(unfinished)
    settings = {"top_k": 4, "seq_len": 40, "tokens_per_batch": 50, "rows_per_shard": 64} | changes
    with pytest.raises(InvalidArgumentError, match="cannot be resumed") as caught:
        build(configure(data, **settings), unfinished, resume=True)
    for difference in differences:
        assert difference in str(caught.value)
    assert str(unfinished) in str(caught.value)
    assert files_of(unfinished) == before


def test_resume_refuses_a_corpus_that_was_edited(
    config: BuildConfig, unfinished: Path, write_corpus: Any, texts: Any
) -> None:
    write_corpus(texts(14, 2, 9, 10, 5, 7))
    with pytest.raises(InvalidArgumentError, match=r"with this one: corpus was '\w+' and is now '\w+' \["):
        build(config, unfinished, resume=True)


def _with_teacher(config: BuildConfig, model: str) -> BuildConfig:
    return dataclasses.replace(config, teacher=dataclasses.replace(config.teacher, model=model))


def test_resume_refuses_another_teacher(config: BuildConfig, unfinished: Path, make_teacher: Any) -> None:
    with pytest.raises(InvalidArgumentError, match=r"with this one: teacher\.weights_digest was '\w+' and is now"):
        build(_with_teacher(config, make_teacher("other", seed=1)), unfinished, resume=True)


def test_resume_refuses_another_tokenizer(
    config: BuildConfig, unfinished: Path, teacher_folder: str, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(teacher_folder, copy)
    described = json.loads((copy / "tokenizer.json").read_text())
    described["pre_tokenizer"]["add_prefix_space"] = True
    (copy / "tokenizer.json").write_text(json.dumps(described))
    with pytest.raises(InvalidArgumentError, match=r"with this one: tokenizer\.digest was '\w+' and is now '\w+' \["):
        build(_with_teacher(config, str(copy)), unfinished, resume=True)


def test_resume_accepts_a_corpus_and_a_teacher_that_were_moved(
    config: BuildConfig, unfinished: Path, data: str, teacher_folder: str, tmp_path: Path, files_of: Any
) -> None:
    build(config, tmp_path / "whole.zarr")
    shutil.copytree(teacher_folder, tmp_path / "elsewhere" / "teacher")
    moved = str(tmp_path / "elsewhere" / "corpus.jsonl")
    shutil.move(data, moved)
    here = _with_teacher(config, str(tmp_path / "elsewhere" / "teacher"))
    here = dataclasses.replace(here, corpus=dataclasses.replace(here.corpus, data=(moved,)))
    store = unfinished.rename(tmp_path / "moved.zarr")
    build(here, store, resume=True)
    assert files_of(store) == files_of(tmp_path / "whole.zarr")


def test_a_finished_store_is_not_taken_for_another_one(
    config: BuildConfig, configure: Any, data: str, run: Any
) -> None:
    run(config)
    with pytest.raises(InvalidArgumentError, match="values was 'logprob' and is now 'logit'"):
        run(dataclasses.replace(config, values="logit"), resume=True)


def test_a_store_is_only_replaced_when_asked(config: BuildConfig, run: Any, tmp_path: Path, files_of: Any) -> None:
    run(config)
    before = files_of(tmp_path / "store.zarr")
    with pytest.raises(InvalidArgumentError, match="the store exists"):
        run(config)
    assert files_of(tmp_path / "store.zarr") == before
    run(dataclasses.replace(config, values="logit"), overwrite=True)
    assert logitstore.open(tmp_path / "store.zarr").manifest.values == "logit"
    assert not (tmp_path / "store.zarr" / "logprobs").exists()


def test_an_unfinished_store_is_only_replaced_when_asked(config: BuildConfig, unfinished: Path, run: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="the store exists; ask for resume"):
        run(config)
    assert run(config, overwrite=True).manifest.complete


def test_resume_and_overwrite_exclude_each_other(config: BuildConfig, run: Any) -> None:
    with pytest.raises(InvalidArgumentError, match=r"resume.*overwrite"):
        run(config, resume=True, overwrite=True)


def test_a_teacher_that_does_not_load_leaves_the_old_store(
    config: BuildConfig, run: Any, tmp_path: Path, files_of: Any
) -> None:
    run(config)
    before = files_of(tmp_path / "store.zarr")
    with pytest.raises(InvalidArgumentError, match="does not exist"):
        run(_with_teacher(config, str(tmp_path / "nowhere")), overwrite=True)
    assert files_of(tmp_path / "store.zarr") == before


@pytest.mark.parametrize("options", [{}, {"overwrite": True}, {"resume": True}], ids=["new", "overwrite", "resume"])
@pytest.mark.parametrize(
    "content",
    [{"precious.txt": "x"}, {MANIFEST_FILE: '{"name": "a web app"}', "precious.txt": "x"}, {MANIFEST_FILE: "not JSON"}],
    ids=["other", "other-manifest", "broken-manifest"],
)
def test_what_is_no_store_is_never_touched(
    content: dict[str, str], options: dict[str, bool], config: BuildConfig, tmp_path: Path, files_of: Any
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, text in content.items():
        (folder / name).write_text(text)
    before = files_of(folder)
    with pytest.raises((InvalidArgumentError, CorruptDataError), match=r"not a logitstore|manifest"):
        build(config, folder, **options)
    assert files_of(folder) == before


@pytest.mark.parametrize("options", [{}, {"overwrite": True}, {"resume": True}], ids=["new", "overwrite", "resume"])
def test_a_file_is_never_replaced(options: dict[str, bool], config: BuildConfig, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(InvalidArgumentError, match="not a logitstore"):
        build(config, tmp_path / "file", **options)
    assert (tmp_path / "file").read_text() == "precious"
