"""What a teacher that writes cannot do, and says so."""

from __future__ import annotations

import dataclasses
import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import transformers

import logitstore
from logitstore.build import GenerationConfig
from logitstore.corpus import CorpusConfig
from logitstore.errors import CorruptDataError, InvalidArgumentError
from logitstore.teacher import TeacherConfig

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("load_once")


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
