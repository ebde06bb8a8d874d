from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tokenizers
import torch
import transformers

from logitstore import InvalidArgumentError
from logitstore.audit.teacher_check import check_teacher
from logitstore.build.config import BuildConfig
from logitstore.container import writer as writer_module
from logitstore.corpus import CorpusConfig
from logitstore.reader import open_store
from logitstore.records import RowBatch, TokenDocument
from logitstore.select import Selection
from logitstore.teacher import TeacherConfig

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("one_thread")

VOCAB_SIZE = 90


def save_teacher(folder: Path, seed: int = 0, size: int = VOCAB_SIZE) -> str:
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=96, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, bos_token_id=0, eos_token_id=0, pad_token_id=None,
        initializer_range=0.5,
    )  # fmt: skip
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    words = {f"w{i}": i for i in range(size - 1)} | {"<unk>": size - 1}
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=model, unk_token="<unk>").save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_teacher(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    generator = np.random.default_rng(0)
    lengths = [1, 2, 7, 20, 33, 50, 12]
    lines = [{"text": " ".join(f"w{n}" for n in generator.integers(0, 89, length))} for length in lengths]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(file)


def build_store(path: Path, teacher: str, corpus: str, **settings: Any) -> Path:
    from logitstore.build import build

    selection = settings.pop("selection", Selection(top_k=8))
    dtype = settings.pop("dtype", "float32")
    config = BuildConfig(
        TeacherConfig(teacher, dtype=dtype, device="cpu"), CorpusConfig((corpus,)), selection, **settings
    )
    build(config, path)
    return path


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"values": "logit"},
        {"dtype": "bfloat16"},
        {"dtype": "bfloat16", "values": "logit"},
        {"dtype": "float16"},
        {"selection": Selection(samples=20)},
        {"selection": Selection(top_p=0.7, max_k=30)},
        {"selection": Selection(top_k=90)},
    ],
    ids=str,
)
def test_the_same_teacher_says_the_same(tmp_path: Path, teacher: str, corpus: str, settings: dict[str, Any]) -> None:
    path = build_store(tmp_path / "s", teacher, corpus, **settings)
    check = check_teacher(path, teacher, sample_rows=1000, device="cpu")
    json.dumps(check.to_json(), allow_nan=False)
    assert (check.ok, check.errors, check.notes) == (True, [], [])
    assert (check.documents, check.rows_compared) == (7, 125)
    assert 0 <= check.largest_difference <= check.tolerance < (0.01 if "dtype" not in settings else 1.5)


def test_only_so_many_rows_are_sampled(tmp_path: Path, teacher: str, corpus: str) -> None:
    path = build_store(tmp_path / "s", teacher, corpus)
    check = check_teacher(path, teacher, sample_rows=1, device="cpu")
    assert check.documents == 2
    assert check == check_teacher(path, teacher, sample_rows=1, device="cpu")


def rewrite(path: Path, out: Path, monkeypatch: pytest.MonkeyPatch, change: Any) -> Path:
    """Copy a store with its rows changed, document by document."""
    monkeypatch.setattr(writer_module, "check_rows", lambda *_, **__: [])
    with open_store(path, order="stored") as store:
        writer_module.prepare_directory(out)
        with writer_module.StoreWriter(out, store.manifest) as writer:
            for document in store:
                names = [field.name for field in dataclasses.fields(RowBatch)]
                rows = RowBatch(**{name: getattr(document, name) for name in names})
                rows = dataclasses.replace(rows, **change(rows))
                writer.append(TokenDocument(document.key, document.tokens, document.mask), rows)
            writer.finish()
    return out


def rolled(*names: str) -> Any:
    return lambda rows: {name: np.roll(getattr(rows, name), 1, axis=0) for name in names}


@pytest.mark.parametrize(
    ("rule", "change"),
    [
        ("teacher-value", rolled("ids", "values", "lse", "label_logprob")),
        ("teacher-lse", lambda rows: {"lse": rows.lse + np.float32(0.02)}),
        ("teacher-label", lambda rows: {"label_logprob": rows.label_logprob - np.float32(0.02)}),
        ("teacher-value", lambda rows: {"values": (rows.values.astype("f4") * 1.02).astype("f2")}),
        ("teacher-selection", lambda rows: {"ids": rows.ids, "values": rows.values} | drop_best(rows)),
    ],
)
@pytest.mark.parametrize("values", ["logprob", "logit"])
def test_what_the_teacher_did_not_say_is_found(
    tmp_path: Path, teacher: str, corpus: str, monkeypatch: pytest.MonkeyPatch, rule: str, change: Any, values: str
) -> None:
    path = build_store(tmp_path / "s", teacher, corpus, values=values)
    check = check_teacher(rewrite(path, tmp_path / "t", monkeypatch, change), teacher, device="cpu")
    assert not check.ok
    assert rule in {error.rule for error in check.errors}
    assert {error.shard for error in check.errors} == {0}


def drop_best(rows: Any) -> dict[str, Any]:
    """Leave the most probable entry out."""
    keep = np.arange(rows.ids.shape[1]) != rows.values.astype("f4").argmax(axis=1)[:, None]
    ids, values = np.full_like(rows.ids, 0xFFFFFFFF), np.full_like(rows.values, -np.inf)
    ids[:, :-1] = rows.ids[keep].reshape(len(rows), -1)
    values[:, :-1] = rows.values[keep].reshape(len(rows), -1)
    return {"ids": ids, "values": values}


def test_another_teacher_is_noted_and_found(tmp_path: Path, teacher: str, corpus: str) -> None:
    path = build_store(tmp_path / "s", teacher, corpus)
    other = save_teacher(tmp_path / "other", seed=1)
    check = check_teacher(path, other, device="cpu")
    assert not check.ok
    assert any("weights_digest" in note for note in check.notes)
    with pytest.raises(InvalidArgumentError, match="vocabulary"):
        check_teacher(path, save_teacher(tmp_path / "small", size=80), device="cpu")
    with pytest.raises(InvalidArgumentError, match="sample_rows"):
        check_teacher(path, teacher, sample_rows=0)


def test_rows_that_were_not_asked_for_are_not_compared(tmp_path: Path, teacher: str) -> None:
    file = tmp_path / "chat.jsonl"
    lines = [{"prompt": "w1 w2 w3 w4", "completion": f"w{n} w6 w7"} for n in range(5)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    path = build_store(tmp_path / "s", teacher, str(file), rows="masked")
    with open_store(path) as store:
        filled = sum(int((document.ids != 0xFFFFFFFF).any(axis=1).sum()) for document in store)
        assert 0 < filled < len(store.rows)
    check = check_teacher(path, teacher, device="cpu")
    assert check.ok
    assert check.rows_compared == filled
