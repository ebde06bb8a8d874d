"""What goes wrong is said with its place, stops all threads, and leaves what was committed."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers

import logitstore
from logitstore.build.assemble import Assembler
from logitstore.container.progress import Progress
from logitstore.container.writer import StoreWriter
from logitstore.errors import CorruptDataError, InvalidArgumentError, TruncatedDataError
from logitstore.teacher import load_teacher

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("load_once")


@pytest.fixture(autouse=True)
def _no_thread_is_left(our_threads: Any) -> Iterator[None]:
    yield
    assert our_threads() == []


@pytest.mark.parametrize("records", [[], ["", "  \n"]], ids=["no records", "blank records"])
def test_an_empty_corpus_is_an_error(records: list[str], configure: Any, write_corpus: Any, run: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="no document with any text"):
        run(configure(write_corpus(records)))


def test_a_missing_corpus_is_an_error_before_anything_is_made(configure: Any, run: Any, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=r"no such file.*nothing\.jsonl"):
        run(configure(str(tmp_path / "nothing.jsonl")))
    assert not (tmp_path / "store.zarr").exists()


def test_a_broken_line_in_the_middle_is_named_and_what_was_before_stays(
    configure: Any, write_corpus: Any, texts: Any, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("logitstore.corpus.documents._BATCH_RECORDS", 4)
    monkeypatch.setattr("logitstore.build.config._WINDOW_BYTES", 60 * 6 * 4)
    written: list[int] = []
    commit = StoreWriter._commit
    monkeypatch.setattr(StoreWriter, "_commit", lambda self, cursor: (commit(self, cursor), written.append(1)))
    data = write_corpus([*texts(*[12] * 60), {"text": 5}])
    with pytest.raises(CorruptDataError, match="line 61") as caught:
        run(configure(data, top_k=4, tokens_per_batch=50, rows_per_shard=64))
    assert data in str(caught.value)
    assert Progress.read(tmp_path / "store.zarr").shards == len(written) > 1


def test_nan_in_the_weights_names_the_document_and_keeps_what_was_committed(
    configure: Any, write_corpus: Any, texts: Any, run: Any, tmp_path: Path, make_teacher: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("logitstore.build.config._WINDOW_BYTES", 60 * 6 * 4)
    tokenizer = load_teacher(configure("x").teacher).tokenizer
    (letter,) = tokenizer("Z", add_special_tokens=False).input_ids
    records = [*texts(*[8] * 20), "the bell Z", *texts(8, 8)]
    first_row = sum(len(tokenizer(text).input_ids) for text in records[:20])
    config = configure(
        write_corpus(records), model=make_teacher("nan", nan_token=letter), top_k=4, tokens_per_batch=50,
        rows_per_shard=64,
    )  # fmt: skip
    with pytest.raises(CorruptDataError, match="log-sum-exp of this row is nan") as caught:
        run(config)
    # A masked position takes part with weight 0, and 0 times NaN is NaN: the document's first row is lost already.
    assert "(row 0 of document 'corpus-00000020')" in caught.value.message
    assert caught.value.row == first_row
    committed = Progress.read(tmp_path / "store.zarr").shards
    assert committed > 1
    assert len(list((tmp_path / "store.zarr" / "ids").glob("c.*"))) == committed
    with pytest.raises(TruncatedDataError, match=f"{committed * 64} rows of .* documents are committed"):
        logitstore.open(tmp_path / "store.zarr")
    with pytest.raises(CorruptDataError, match="corpus-00000020"):
        run(config, resume=True)


@pytest.mark.parametrize("encode", ["host", "device"])
@pytest.mark.parametrize(("bad", "values"), [(float("nan"), "logprob"), (70_000.0, "logit")])
def test_a_bad_row_is_named_wherever_it_lies_in_its_batch(
    bad: float, values: str, encode: str, configure: Any, write_corpus: Any, texts: Any, run: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    records = [*texts(3, 8, 1), "the bell Z fox", *texts(4, 8)]
    config = configure(write_corpus(records), rows_per_chunk=5, values=values)
    teacher = load_teacher(config.teacher)
    (letter,) = teacher.tokenizer("Z", add_special_tokens=False).input_ids
    tokens = [teacher.tokenizer(text).input_ids for text in records]
    row = tokens[3].index(letter) - 1
    forward_rows = type(teacher).forward_rows

    def without_a_word_for_z(*arguments: Any, **named: Any) -> Iterator[Any]:
        for chunk in forward_rows(*arguments, **named):
            yield dataclasses.replace(chunk, logits=chunk.logits.masked_fill((chunk.labels == letter)[:, None], bad))

    monkeypatch.setattr(type(teacher), "forward_rows", without_a_word_for_z)
    with pytest.raises(CorruptDataError, match=str(bad)) as caught:
        run(config, encode=encode)
    assert f"(row {row} of document 'corpus-00000003')" in caught.value.message
    assert caught.value.row == sum(map(len, tokens[:3])) + row


def test_a_logit_beyond_fp16_asks_for_log_probabilities(
    configure: Any, write_corpus: Any, texts: Any, run: Any, make_teacher: Any
) -> None:
    folder = make_teacher("loud")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        model.lm_head.weight *= 1e6
    model.save_pretrained(folder)
    data = write_corpus(texts(5))
    with pytest.raises(CorruptDataError, match=r"does not fit float16.*of document 'corpus-00000000'"):
        run(configure(data, model=folder, values="logit"))


def test_seq_len_beyond_the_context_is_refused_before_anything_is_made(
    configure: Any, write_corpus: Any, texts: Any, run: Any, tmp_path: Path
) -> None:
    data = write_corpus(texts(5))
    with pytest.raises(InvalidArgumentError, match="seq_len is 97, but the teacher's context has 96 tokens"):
        run(configure(data, seq_len=97))
    assert not (tmp_path / "store.zarr").exists()


def test_a_tokenizer_that_is_larger_than_the_model_is_refused(
    configure: Any, write_corpus: Any, texts: Any, run: Any, make_teacher: Any, tmp_path: Path
) -> None:
    folder = make_teacher("mismatch")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"<{number}>" for number in range(40)])
    tokenizer.save_pretrained(folder)
    with pytest.raises(InvalidArgumentError, match=r"tokenizer has 330 ids.*logits for 320"):
        run(configure(write_corpus(texts(5)), model=folder))
    assert not (tmp_path / "store.zarr").exists()


def test_top_k_beyond_the_vocabulary_is_refused_before_anything_is_made(
    configure: Any, write_corpus: Any, texts: Any, run: Any, tmp_path: Path
) -> None:
    with pytest.raises(InvalidArgumentError, match="top_k is 300, but the vocabulary has 290 ids"):
        run(configure(write_corpus(texts(5)), top_k=300))
    assert not (tmp_path / "store.zarr").exists()


class Broken(Exception):
    """Something no stage expects."""


def _break(*_: object, **__: object) -> Any:
    raise Broken


@pytest.mark.parametrize(
    "place",
    [
        "logitstore.build.windows.iter_documents",
        "logitstore.build.extract.select_rows",
        "logitstore.build.flow.Assembler.add",
        "logitstore.container.writer.StoreWriter.append",
        "logitstore.container.writer.check_rows",
        "logitstore.container.fields.encode",
        "logitstore.container.shard.ShardWriter.close",
        "logitstore.container.writer.StoreWriter.finish",
    ],
)
def test_an_error_in_any_thread_ends_the_build(
    place: str, configure: Any, write_corpus: Any, texts: Any, run: Any, tmp_path: Path, files_of: Any
) -> None:
    config = configure(write_corpus(texts(14, 2, 9, 10, 5, 8)), top_k=4, seq_len=40, rows_per_shard=64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(place, _break)
        with pytest.raises(Broken):
            run(config)
    run(config, resume=True)
    run(config, "whole.zarr")
    assert files_of(tmp_path / "store.zarr") == files_of(tmp_path / "whole.zarr")


def test_rows_that_break_a_rule_are_not_committed(
    configure: Any, write_corpus: Any, texts: Any, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = Assembler.add

    def shifted(self: Assembler, batch: Any) -> Iterator[Any]:
        for document, rows in add(self, batch):
            if rows is not None:
                rows.values[3] += 5
            yield document, rows

    monkeypatch.setattr(Assembler, "add", shifted)
    with pytest.raises(CorruptDataError, match="break the rule mass") as caught:
        run(configure(write_corpus(texts(10)), top_k=4))
    assert caught.value.row == 3
    assert Progress.read(tmp_path / "store.zarr").shards == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tokens_per_batch": 0}, "tokens_per_batch is at least 1, found 0"),
        ({"rows_per_chunk": -1}, "rows_per_chunk is at least 1, found -1"),
        ({"rows_per_shard": 48}, "power of two up to 2\\^30, found 48"),
        ({"rows_per_shard": 1 << 31}, "power of two up to 2\\^30, found 2147483648"),
        ({"values": "prob"}, "'logprob' or 'logit', found 'prob'"),
        ({"rows": "some"}, "'all' or 'masked', found 'some'"),
        ({"temperatures": (1.0, 0.0)}, "temperature is a finite number above 0, found 0.0"),
        ({"temperatures": (float("nan"),)}, "temperature is a finite number above 0, found nan"),
        ({"temperatures": (float("inf"),)}, "temperature is a finite number above 0, found inf"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], message: str, configure: Any) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        configure("corpus.jsonl", **settings)
