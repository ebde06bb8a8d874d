from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tokenizers
import transformers

import logitstore
from logitstore import InvalidArgumentError, LogitStoreError
from logitstore.audit import show_document, summarise
from logitstore.container.writer import StoreWriter, prepare_directory

if TYPE_CHECKING:
    from pathlib import Path


def test_summary_of_a_store(stores: Any, tmp_path: Path) -> None:
    path = stores.make(tmp_path / "s", [20, 13, 40])
    (path / "build.json").write_text("{}")
    summary = summarise(path)
    json.dumps(summary, allow_nan=False)
    assert summary["complete"] is True
    assert (summary["documents"], summary["rows"], summary["k_max"], summary["entries"]) == (3, 73, 5, 365)
    assert (summary["vocab_size"], summary["format_version"]) == (97, "1.0")
    total = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    assert summary["bytes_total"] == total == sum(summary["bytes_by_field"].values())
    assert summary["bytes_per_row"] == pytest.approx(total / 73)
    assert summary["bits_per_entry"] == pytest.approx(8 * total / 365)
    manifest = logitstore.open(path).manifest
    assert {name: summary["bytes_by_field"][name] for name in manifest.bytes_by_field} == manifest.bytes_by_field
    assert {"selection", "codec", "teacher", "tokenizer"} <= set(summary)


def test_summary_of_an_unfinished_and_of_an_empty_store(stores: Any, tmp_path: Path) -> None:
    manifest = stores.manifest()
    prepare_directory(tmp_path / "s")
    with StoreWriter(tmp_path / "s", manifest) as writer:
        for document, rows in stores.documents([20, 13, 40], manifest):
            writer.append(document, rows)
    summary = summarise(tmp_path / "s")
    assert summary["complete"] is False
    assert summary["progress"] == {"shards": 2, "rows": 64, "documents": 3, "entries": 320}
    assert (summary["rows"], summary["entries"]) == (64, 320)
    empty = summarise(stores.make(tmp_path / "e", []))
    assert (empty["rows"], empty["bytes_per_row"], empty["bits_per_entry"]) == (0, None, None)
    with pytest.raises(LogitStoreError):
        summarise(tmp_path)


@pytest.mark.parametrize("values", ["logprob", "logit"])
def test_a_document_in_words(stores: Any, tmp_path: Path, values: str) -> None:
    manifest = stores.manifest(values=values)
    documents = stores.documents([20, 13], manifest, ragged=True)
    path = stores.write(tmp_path / "s", documents, manifest)
    view = show_document(path, 1, rows=(2, None), top=3)
    json.dumps(view.to_json(), allow_nan=False)
    assert (view.document, view.key, view.first_row, view.length) == (1, "document 1", 20, 13)
    assert [row.row for row in view.rows] == list(range(2, 13))
    rows = documents[1][1]
    for row in view.rows:
        used = rows.ids[row.row] != 0xFFFFFFFF
        logprobs = rows.values[row.row].astype(np.float64) - (rows.lse[row.row] if values == "logit" else 0)
        order = np.lexsort((rows.ids[row.row], -logprobs))[: used.sum()]
        assert (row.token, row.kept) == (rows.tokens[row.row], used.sum())
        assert [candidate.id for candidate in row.candidates] == rows.ids[row.row][order[:3]].tolist()
        assert [candidate.probability for candidate in row.candidates] == pytest.approx(np.exp(logprobs[order[:3]]))
        assert row.kept_mass == pytest.approx(np.exp(logprobs[used]).sum())
        if row.row == 12:
            assert (row.label, row.label_rank, row.label_probability) == (None, None, None)
            continue
        kept = rows.ids[row.row][order].tolist()
        assert row.label == rows.tokens[row.row + 1]
        assert row.label_rank == (kept.index(row.label) + 1 if row.label in kept else None)
        assert row.label_probability == pytest.approx(np.exp(rows.label_logprob[row.row]))
    assert show_document(path, -1).to_json()["rows"][2:] == show_document(path, 1, rows=(2, None)).to_json()["rows"]
    for arguments in ({"document": 2}, {"document": -3}, {"document": 0, "top": 0}):
        with pytest.raises(InvalidArgumentError):
            show_document(path, **arguments)


def save_tokenizer(folder: Path) -> str:
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    backend.decoder = tokenizers.decoders.Metaspace()
    words = [f"w{number}" for number in range(40)]
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=97, special_tokens=["<s>"], show_progress=False)
    backend.train_from_iterator(["a " + " ".join(words)], trainer)
    transformers.PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>").save_pretrained(folder)
    return str(folder)


def test_texts_of_tokens(stores: Any, tmp_path: Path) -> None:
    folder = save_tokenizer(tmp_path / "tokenizer")
    path = stores.make(tmp_path / "s", [40])
    named = stores.make(tmp_path / "named", [40], teacher={"id": folder})
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    names = tokenizer.convert_ids_to_tokens(list(range(97)))
    assert sum(name is not None and name.startswith("▁w") for name in names) > 5
    for view in (show_document(path, 0, tokenizer=folder), show_document(named, 0)):
        assert view.notes == []
        for row in view.rows:
            name = names[row.token] if row.token < len(names) else None
            if name is not None:
                assert row.text == name.replace("▁", " ")
    assert show_document(path, 0).rows[0].text is None
    assert "no teacher" in show_document(path, 0).notes[0]
    missing = stores.make(tmp_path / "missing", [4], teacher={"id": str(tmp_path / "nowhere")})
    assert "not at hand" in show_document(missing, 0).notes[0]
    other = stores.make(tmp_path / "other", [4], teacher={"id": folder}, tokenizer={"digest": "0" * 64})
    assert "may be wrong" in show_document(other, 0).notes[0]
    with pytest.raises(InvalidArgumentError, match="tokenizer"):
        show_document(path, 0, tokenizer=str(tmp_path / "nowhere"))
