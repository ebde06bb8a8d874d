"""Every stored row against a plain forward of its document alone and the selection in plain NumPy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import transformers
import zarr

import logitstore
from logitstore import layout
from logitstore.select.reference import ReferenceRow, select_row_reference

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from logitstore.build import BuildConfig
    from logitstore.reader import Document, Store

SELECTIONS: list[dict[str, Any]] = [
    {"top_k": 1},
    {"top_k": 200},
    {"top_fraction": 0.05},
    {"top_p": 0.7, "max_k": 40},
    {"samples": 12, "seed": 3},
    {"top_k": 5, "samples": 20},
]
CHATS = [
    {"messages": [{"role": "user", "content": "the bell"}, {"role": "assistant", "content": "shiny fox"}]},
    {"prompt": "the time", "completion": " upon metal"},
    {"messages": [{"role": "user", "content": "round"}]},
    {"messages": [
        {"role": "user", "content": "Hello!"}, {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": "the fox the fox"}, {"role": "assistant", "content": "世界"},
    ]},
    {"text": "upon the metal bell"},
]  # fmt: skip


class Plain:
    """The teacher without any of our code around it."""

    def __init__(self, folder: str, dtype: torch.dtype = torch.float32) -> None:
        self.model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            logits = self.model(torch.from_numpy(tokens.astype(np.int64))[None]).logits[0]
        return logits[:, : len(self.tokenizer)].float().numpy()


@pytest.fixture(scope="module")
def plain(teacher_folder: str) -> Plain:
    return Plain(teacher_folder)


def check_row(document: Document, t: int, expected: ReferenceRow, logits: np.ndarray, stores: str) -> None:
    used = document.ids[t] != layout.UNUSED_ID
    order = np.argsort(document.ids[t][used])
    assert document.ids[t][used][order].tolist() == expected.ids.tolist()
    assert not used[used.sum() :].any(), "unused slots come last"
    assert np.isneginf(document.values[t][~used]).all()
    exact = {"logit": logits[expected.ids], "logprob": logits[expected.ids] - expected.lse}
    rounding = np.abs(exact[stores]) * 2.0**-11 + 1e-4
    for found, value in ((document.logits, exact["logit"]), (document.logprobs, exact["logprob"])):
        assert (np.abs(found[t][used][order].astype(np.float64) - value) <= rounding).all()
    assert document.values.dtype == np.float16
    assert document.lse[t] == pytest.approx(expected.lse, abs=1e-4)
    if document.counts is not None:
        assert document.counts[t][used][order].tolist() == expected.counts.tolist()
        assert not document.counts[t][~used].any()
    if document.lse_T is not None:
        assert document.lse_T[t] == pytest.approx(expected.lse_T, abs=1e-4)


def check_store(store: Store, plain: Plain, config: BuildConfig) -> None:
    """Compare all rows; those that were not asked for are empty."""
    for number, document in enumerate(store):
        logits = plain.logits(document.tokens)
        logprobs = torch.from_numpy(logits).log_softmax(1).numpy()
        for t in range(len(document)):
            if config.rows == "masked" and not document.mask[t]:
                assert (document.ids[t] == layout.UNUSED_ID).all()
                assert np.isneginf(document.values[t]).all()
                assert np.isnan(document.lse[t])
                assert np.isnan(document.label_logprob[t])
                assert document.lse_T is None or np.isnan(document.lse_T[t]).all()
                assert document.counts is None or not document.counts[t].any()
                continue
            # Where a teacher writes, nobody knows the number of a row while it is drawn from.
            row_key = document.first_row + t if config.generation is None else (number << 32) + t
            expected = select_row_reference(
                logits[t], config.selection, row_key=row_key, values=config.values, temperatures=config.temperatures
            )
            check_row(document, t, expected, logits[t], config.values)
            if t + 1 < len(document):
                label = logprobs[t, int(document.tokens[t + 1])]
                assert document.label_logprob[t] == pytest.approx(label, abs=1e-4)
            else:
                assert np.isnan(document.label_logprob[t])


def check_plain_zarr(path: Path, store: Store) -> None:
    """Hold plain Zarr equal to the reader, entry by entry as stored."""
    group = zarr.open(path, mode="r")
    with logitstore.open(path, order="stored", verify="full") as stored:
        everything = stored.rows[:]
    names = ["tokens", "ids", "lse", "label_logprob", "mask"]
    names += [name for name in ("counts", "lse_T") if getattr(everything, name) is not None]
    for name in names:
        np.testing.assert_array_equal(group[name][:], getattr(everything, name), err_msg=name)
        assert group[name].dtype == getattr(everything, name).dtype
    np.testing.assert_array_equal(group["logprobs" if store.manifest.values == "logprob" else "logits"][:],
                                  everything.values)  # fmt: skip
    assert group["doc_offsets"][:].tolist() == [*(document.first_row for document in store), store.manifest.rows]


@pytest.mark.parametrize("values", ["logprob", "logit"])
@pytest.mark.parametrize("selection", SELECTIONS, ids=lambda s: "-".join(f"{k}={v}" for k, v in s.items()))
def test_rows_equal_a_plain_forward_of_each_document(
    selection: dict[str, Any], values: str, plain: Plain, configure: Any, write_corpus: Any, texts: Any, run: Any,
    tmp_path: Path, load_once: None,
) -> None:  # fmt: skip
    data = write_corpus(texts(20, 1, 7, 31, 3))
    config = configure(
        data, **selection, values=values, temperatures=(0.5, 2.0), tokens_per_batch=48, rows_per_chunk=13,
        rows_per_shard=32, add_special_tokens=True,
    )  # fmt: skip
    run(config)
    with logitstore.open(tmp_path / "store.zarr") as store:
        check_store(store, plain, config)
        check_plain_zarr(tmp_path / "store.zarr", store)


def test_ties_at_the_cut_go_to_the_smaller_id(
    plain: Plain, configure: Any, write_corpus: Any, texts: Any, run: Any, tmp_path: Path, load_once: None
) -> None:
    run(configure(write_corpus(texts(25)), top_k=120, values="logit"))
    document = logitstore.open(tmp_path / "store.zarr", order="stored")[0]
    cut_inside_a_tie = 0
    for t, logits in enumerate(plain.logits(document.tokens)):
        zeros = np.flatnonzero(logits == 0.0)
        kept = np.isin(zeros, document.ids[t])
        assert kept.tolist() == sorted(kept.tolist(), reverse=True)
        cut_inside_a_tie += 0 < kept.sum() < len(zeros)
    assert cut_inside_a_tie > len(document) // 2


def test_tokens_keys_and_mask_are_those_of_the_corpus(
    plain: Plain, configure: Any, write_corpus: Any, texts: Any, run: Any, tmp_path: Path, load_once: None
) -> None:
    records = [{"text": text, "name": f"n{i}", "source": i} for i, text in enumerate(texts(9, 12, 2, 7))]
    data = write_corpus([*records[:2], {"text": "  ", "name": "blank", "source": 9}, *records[2:]])
    summary = run(configure(data, key_field="name", metadata_fields=("source",), rows_per_shard=16))
    assert summary.counters.empty_documents == 1
    with logitstore.open(tmp_path / "store.zarr") as store:
        assert [document.key for document in store] == ["n0", "n1", "n2", "n3"]
        for document, record in zip(store, records, strict=True):
            assert document.tokens.tolist() == plain.tokenizer(record["text"]).input_ids
            assert document.mask.tolist() == [1] * (len(document) - 1) + [0]
            assert document.metadata == {"source": record["source"]}
            assert document.parent is None


def test_vocabulary_padding_is_cut_and_recorded(
    plain: Plain, configure: Any, write_corpus: Any, texts: Any, run: Any, tmp_path: Path, load_once: None
) -> None:
    manifest = run(configure(write_corpus(texts(12)), top_fraction=1.0)).manifest
    size = len(plain.tokenizer)
    assert (manifest.vocab_size, manifest.padded_vocab_size, manifest.slots) == (size, 320, size)
    document = logitstore.open(tmp_path / "store.zarr", order="stored")[0]
    assert (document.ids == np.arange(size)).all()
    total = np.exp(document.logprobs.astype(np.float64)).sum(1)
    assert total == pytest.approx(1.0, abs=2e-3)


def test_long_documents_are_cut_into_windows_that_name_their_parent(
    plain: Plain, configure: Any, write_corpus: Any, texts: Any, run: Any, tmp_path: Path, load_once: None
) -> None:
    records = texts(50, 4, 33)
    config = configure(write_corpus(records), seq_len=16, rows_per_shard=32, tokens_per_batch=40)
    run(config)
    with logitstore.open(tmp_path / "store.zarr") as store:
        check_store(store, plain, config)
        pieces: dict[str, list[int]] = {}
        for document in store:
            key, first = document.parent or (document.key, 0)
            assert first == len(pieces.setdefault(key, []))
            assert 1 <= len(document) <= 16
            assert np.isnan(document.label_logprob[-1])
            pieces[key] += document.tokens.tolist()
        assert list(pieces.values()) == [plain.tokenizer(text).input_ids for text in records]
        assert [document.parent is None for document in store].count(True) == 1


def test_documents_are_cut_at_the_teachers_context_if_nothing_is_said(
    plain: Plain, configure: Any, write_corpus: Any, texts: Any, run: Any, tmp_path: Path, load_once: None
) -> None:
    summary = run(configure(write_corpus(texts(120))))
    assert summary.manifest.build["corpus"]["seq_len"] == 96
    assert len(logitstore.open(tmp_path / "store.zarr")[0]) == 96


@pytest.mark.parametrize("rows", ["all", "masked"])
@pytest.mark.parametrize("selection", [{"top_k": 6}, {"top_k": 2, "samples": 5}], ids=["top_k", "samples"])
def test_chats_keep_the_assistants_rows(
    rows: str, selection: dict[str, Any], plain: Plain, configure: Any, write_corpus: Any, run: Any, tmp_path: Path,
    load_once: None,
) -> None:  # fmt: skip
    config = configure(
        write_corpus(CHATS), rows=rows, **selection, temperatures=(3.0,), tokens_per_batch=40, rows_per_chunk=5,
        rows_per_shard=32, seq_len=24,
    )  # fmt: skip
    run(config)
    with logitstore.open(tmp_path / "store.zarr") as store:
        check_store(store, plain, config)
        check_plain_zarr(tmp_path / "store.zarr", store)
        targets = [store.rows[:].tokens[1:][store.rows[:].mask[:-1] == 1]]
        assert 0 < sum(map(len, targets)) < store.manifest.rows
        said = [
            plain.tokenizer.decode(d.tokens[1:][d.mask[:-1] == 1]) for d in store if d.key.startswith("corpus-00000000")
        ]
        assert "shiny fox" in "".join(said)


def test_a_bfloat16_teachers_logits_come_back_bit_for_bit(
    teacher_folder: str, configure: Any, write_corpus: Any, texts: Any, run: Any, tmp_path: Path, load_once: None
) -> None:
    run(configure(write_corpus(texts(30)), values="logit", dtype="bfloat16", top_fraction=1.0))
    document = logitstore.open(tmp_path / "store.zarr", order="stored")[0]
    logits = Plain(teacher_folder, torch.bfloat16).logits(document.tokens)
    assert (document.logits == logits.astype(np.float16)).all()


def _everything(path: Path) -> Any:
    return logitstore.open(path, order="stored").rows[:]


@pytest.mark.parametrize("selection", [{"top_k": 30}, {"top_k": 3, "samples": 9}], ids=["top_k", "samples"])
@pytest.mark.parametrize(
    "settings",
    [
        {"tokens_per_batch": 30, "rows_per_chunk": 1000},
        {"tokens_per_batch": 4096, "rows_per_chunk": 1},
        {"tokens_per_batch": 200, "rows_per_chunk": 7},
    ],
    ids=lambda s: "-".join(map(str, s.values())),
)
def test_batches_do_not_show(
    selection: dict[str, Any], settings: dict[str, int], configure: Callable[..., Any], write_corpus: Any, texts: Any,
    run: Any, tmp_path: Path, load_once: None,
) -> None:  # fmt: skip
    data = write_corpus(texts(18, 3, 1, 26, 9, 9, 14, 2, 21))
    run(configure(data, **selection, seq_len=30, rows_per_shard=64), "whole.zarr")
    run(configure(data, **selection, seq_len=30, rows_per_shard=64, **settings), "pieces.zarr")
    one, other = _everything(tmp_path / "whole.zarr"), _everything(tmp_path / "pieces.zarr")
    np.testing.assert_array_equal(one.tokens, other.tokens)
    np.testing.assert_array_equal(one.ids, other.ids)
    if one.counts is not None:
        np.testing.assert_array_equal(one.counts, other.counts)
    for name, tolerance in (("values", 1e-2), ("lse", 1e-4), ("label_logprob", 1e-4)):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), atol=tolerance, err_msg=name)
