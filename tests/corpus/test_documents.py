from __future__ import annotations

import dataclasses
import gzip
import json
import re

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from logitstore.corpus import CorpusConfig, CorpusCounters, iter_documents
from logitstore.errors import CorruptDataError, InvalidArgumentError, TruncatedDataError


def read(tokenizer, *data, **options):
    return [item.document for item in iter_documents(CorpusConfig(data=data, **options), tokenizer)]


def texts(tokenizer, documents):
    return [tokenizer.decode(document.tokens) for document in documents]


def keys(documents):
    return [document.key for document in documents]


def test_text_file_is_a_document(tokenizer, tmp_path):
    path = tmp_path / "my story.txt"
    path.write_bytes("\ufeffOnce upon\r\na tíme.\n".encode())
    [document] = read(tokenizer, str(path))
    assert document.key == "my_story"
    assert texts(tokenizer, [document]) == ["Once upon\r\na tíme.\n"]
    assert document.parent is None
    assert document.metadata == {}


@pytest.mark.parametrize("ending", ["", "\n", "<END>", "<END>\n"])
def test_text_file_split_at_a_separator(tokenizer, tmp_path, ending):
    path = tmp_path / "a.txt"
    path.write_text(f"one<END>two\n<END>\n<END>three{ending}")
    counters = CorpusCounters()
    config = CorpusConfig(data=(str(path),), doc_separator="<END>")
    documents = [item.document for item in iter_documents(config, tokenizer, counters=counters)]
    assert [text.strip() for text in texts(tokenizer, documents)] == ["one", "two", "three"]
    assert keys(documents) == ["a-00000000", "a-00000001", "a-00000003"]
    assert counters.empty_documents == 1 + (ending == "<END>\n")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(pieces=st.lists(st.text("aé-\n", max_size=8), min_size=1, max_size=6), chunk=st.integers(1, 5))
def test_separators_are_found_across_chunks(tokenizer, tmp_path, monkeypatch, pieces, chunk):
    monkeypatch.setattr("logitstore.corpus.files._CHUNK_BYTES", chunk)
    path = tmp_path / "a.txt"
    path.write_bytes("→→".join(pieces).encode())
    documents = read(tokenizer, str(path), doc_separator="→→")
    assert texts(tokenizer, documents) == [piece for piece in pieces if piece.strip()]


RECORDS = [{"text": "Once upon"}, {"text": "a time"}, {"text": " "}, {"text": "there was"}]


def test_json_lines_parquet_and_gzip_agree(tokenizer, tmp_path, write_jsonl):
    plain = write_jsonl("plain/a.jsonl", RECORDS)
    (tmp_path / "gz").mkdir()
    with open(plain, "rb") as source, gzip.open(tmp_path / "gz" / "a.jsonl.gz", "wb") as target:
        target.write(source.read())
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(RECORDS), tmp_path / "a.parquet", row_group_size=2)
    expected = [("a-00000000", "Once upon"), ("a-00000001", "a time"), ("a-00000003", "there was")]
    for path in (plain, str(tmp_path / "gz"), str(tmp_path / "a.parquet")):
        documents = read(tokenizer, path)
        assert list(zip(keys(documents), texts(tokenizer, documents), strict=True)) == expected


def test_blank_lines_are_empty_documents(tokenizer, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "one"}\n\n{"text": "two"}')
    counters = CorpusCounters()
    items = list(iter_documents(CorpusConfig(data=(str(path),)), tokenizer, counters=counters))
    assert [(item.source_index, item.document.key) for item in items] == [(0, "a-00000000"), (2, "a-00000002")]
    tokens = sum(len(item.document.tokens) for item in items)
    size = path.stat().st_size
    assert counters == CorpusCounters(
        documents=2, windows=2, tokens=tokens, empty_documents=1, size_total=size, size_read=size, tokens_read=tokens
    )


def test_windows_lose_nothing(tokenizer, write_jsonl):
    path = write_jsonl("a.jsonl", [{"text": "Once upon a time there was a bell, " * 20}, {"text": "Hi"}])
    [whole, short] = read(tokenizer, path)
    length = len(whole.tokens)
    items = list(iter_documents(CorpusConfig(data=(path,), seq_len=(length - 1) // 3), tokenizer))
    windows = [item.document for item in items if item.source_index == 0]
    assert np.concatenate([window.tokens for window in windows]).tolist() == whole.tokens.tolist()
    assert [window.parent for window in windows] == [
        ("a-00000000", start) for start in range(0, length, (length - 1) // 3)
    ]
    assert keys(windows) == [f"a-00000000-w{number:04d}" for number in range(len(windows))]
    assert all(window.mask.tolist() == [1] * (len(window.tokens) - 1) + [0] for window in windows)
    assert [item.is_last_window for item in items] == [False] * (len(windows) - 1) + [True, True]
    assert items[-1].document.key == short.key


def test_a_last_window_of_one_token_is_kept(tokenizer, write_jsonl):
    path = write_jsonl("a.jsonl", [{"text": "Once upon a time there was a bell"}])
    [whole] = read(tokenizer, path)
    *_, last = read(tokenizer, path, seq_len=len(whole.tokens) - 1)
    assert last.tokens.tolist() == whole.tokens[-1:].tolist()
    assert last.mask.tolist() == [0]
    assert last.parent == ("a-00000000", len(whole.tokens) - 1)


def test_many_windows_sort_by_number(tokenizer, write_jsonl):
    windows = keys(read(tokenizer, write_jsonl("a.jsonl", [{"text": "x\n" * 5001}]), seq_len=1))
    assert len(windows) > 10_000
    assert windows == sorted(windows)


def test_forms_are_found_record_by_record(tokenizer, write_jsonl):
    messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi", "tool_calls": None}]
    path = write_jsonl(
        "a.jsonl",
        [
            {"text": "plain", "messages": None},
            {"messages": messages, "prompt": "no", "completion": "no"},
            {"prompt": "ask", "completion": "ed", "text": "no"},
        ],
    )
    documents = read(tokenizer, path)
    assert texts(tokenizer, documents) == ["plain", "User: Hello\n\nAssistant: Hi</s>", "asked"]


def test_named_fields_win(tokenizer, write_jsonl):
    path = write_jsonl("a.jsonl", [{"text": "no", "messages": [], "story": "yes", "q": "a", "a": "b"}])
    assert texts(tokenizer, read(tokenizer, path, text_field="story")) == ["yes"]
    assert texts(tokenizer, read(tokenizer, path, prompt_field="q", completion_field="a")) == ["ab"]


def test_named_text_field_that_is_missing(tokenizer, write_jsonl):
    path = write_jsonl("a.jsonl", [{"text": "x", "id": None}])
    with pytest.raises(CorruptDataError, match=r"must have 'story', found the fields 'text', 'id' \(null\)") as caught:
        read(tokenizer, path, text_field="story")
    assert caught.value.path == path


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"title": "x", "body": "y"}, r"'messages' or 'prompt' \+ 'completion' or 'text', found the fields 'title'"),
        ({}, r"found the fields \(none\)"),
        ({"text": 5}, "field 'text' must be a string, found int"),
        ({"text": None}, r"'text' \(null\)"),
        ({"text": "a\ud800b"}, r"lone surrogate U\+D800"),
        ({"messages": "hello"}, "must be a list of messages, found str"),
        ({"messages": ["hello"]}, "message 0 of 'messages' must be an object, found str"),
        ({"messages": [{"from": "human", "value": "x"}]}, "must have 'role', found the fields 'from', 'value'"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "'content' of message 0 .* must be a string, found list"),
        ({"prompt": "x", "completion": ["y"]}, "field 'completion' must be a string, found list"),
        ([1], "a line must be a JSON object, found list"),
    ],
)
def test_bad_records_name_file_and_line(tokenizer, write_jsonl, record, message):
    path = write_jsonl("a.jsonl", [{"text": "fine"}, record])
    with pytest.raises(CorruptDataError, match="line 2: .*" + message) as caught:
        read(tokenizer, path)
    assert caught.value.path == path


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "cut', "malformed JSON, .* at column 10"),
        (b'{"text": "\xff"}', "must be UTF-8, found byte 0xff"),
        (b'{"n": ' + b"1" * 5000 + b"}", "unreadable JSON"),
        (b"[" * 200_000, "unreadable JSON"),
    ],
)
def test_bad_lines_name_file_and_line(tokenizer, tmp_path, line, message):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "fine"}\n' + line)
    with pytest.raises(CorruptDataError, match=f"line 2: .*{message}") as caught:
        read(tokenizer, str(path))
    assert caught.value.path == str(path)


@pytest.mark.parametrize("options", [{}, {"doc_separator": "=="}])
def test_bad_utf8_in_text_names_the_line(tokenizer, tmp_path, options):
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\n==two\nthree \xc3(\n")
    with pytest.raises(CorruptDataError, match="line 3: text must be UTF-8, found byte 0xc3"):
        read(tokenizer, str(path), **options)


def test_damaged_archives(tokenizer, tmp_path):
    whole = gzip.compress(json.dumps({"text": "word " * 1000}).encode() * 1)
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(whole[:-12])
    with pytest.raises(TruncatedDataError, match="ends too early"):
        read(tokenizer, str(path))
    path.write_bytes(whole[:-8] + b"\0" * 8)
    with pytest.raises(CorruptDataError, match="damaged gzip"):
        read(tokenizer, str(path))
    (tmp_path / "b.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(CorruptDataError, match=r"unreadable Parquet.*b\.parquet"):
        read(tokenizer, str(tmp_path / "b.parquet"))


def test_parquet_without_content_lists_all_its_fields(tokenizer, tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"id": [1], "prompt": ["x"], "body": ["y"]}), tmp_path / "a.parquet")
    with pytest.raises(CorruptDataError, match=r"row 0: .*found the fields 'id', 'prompt', 'body'"):
        read(tokenizer, str(tmp_path / "a.parquet"))


def test_key_field(tokenizer, write_jsonl):
    path = write_jsonl("a.jsonl", [{"text": "x", "id": "train/1.html"}, {"text": "y", "id": 7}])
    documents = read(tokenizer, path, key_field="id")
    assert keys(documents) == ["train_1_html", "7"]
    assert all(re.fullmatch(r"[A-Za-z0-9_-]+", key) for key in keys(documents))


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["a.b", "a_b"], "keys must be unique .* has 'a_b' as well .from 'a_b'"),
        (["a", "a-w0001"], "mixed up with a window"),
        (["a-w0001", "a"], "mixed up with a window"),
        (["a", ""], "1 to 200 characters"),
        (["a", "b" * 201], "1 to 200 characters"),
        (["a", 1.5], "a string or an integer, found float"),
        (["a", True], "a string or an integer, found bool"),
    ],
)
def test_keys_that_cannot_be_used(tokenizer, write_jsonl, ids, message):
    path = write_jsonl("a.jsonl", [{"text": "x", "id": one} for one in ids])
    with pytest.raises(CorruptDataError, match="line 2: .*" + message):
        read(tokenizer, path, key_field="id")


def test_missing_key_field(tokenizer, write_jsonl):
    with pytest.raises(CorruptDataError, match=r"line 1: the key field 'id' .* found no such field"):
        read(tokenizer, write_jsonl("a.jsonl", [{"text": "x"}]), key_field="id")


def test_duplicate_keys_are_found_among_skipped_documents(tokenizer, write_jsonl):
    config = CorpusConfig(data=(write_jsonl("a.jsonl", [{"text": "x", "id": "k"}] * 2),), key_field="id")
    with pytest.raises(CorruptDataError, match="keys must be unique"):
        list(iter_documents(config, tokenizer, skip_documents=1))


def test_metadata(tokenizer, tmp_path, write_jsonl):
    record = {"text": "x", "id": "k", "source": {"url": "u"}, "prompt": "kept"}
    path = write_jsonl("a.jsonl", [record])
    assert read(tokenizer, path)[0].metadata == {}
    assert read(tokenizer, path, metadata_fields=("source", "missing"))[0].metadata == {"source": {"url": "u"}}
    everything = read(tokenizer, path, metadata_fields=("*",), key_field="id")[0].metadata
    assert everything == {"source": {"url": "u"}, "prompt": "kept"}


def test_metadata_that_is_not_json(tokenizer, tmp_path):
    path = str(tmp_path / "a.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"text": ["x"], "blob": [b"y"], "n": [float("nan")], "m": [1]}), path)
    counters = CorpusCounters()
    [item] = iter_documents(CorpusConfig(data=(path,), metadata_fields=("*",)), tokenizer, counters=counters)
    assert item.document.metadata == {"m": 1}
    assert counters.metadata_values_omitted == 2
    with pytest.raises(CorruptDataError, match="metadata must be JSON, field 'blob' holds bytes"):
        read(tokenizer, path, metadata_fields=("blob",))


def described(items):
    return [
        (item.source_index, item.window, item.document.key, item.document.tokens.tolist(), item.document.mask.tolist())
        for item in items
    ]


@pytest.mark.parametrize("skip", [0, 1, 99, 100, 199, 200])
def test_skipping_goes_on_where_it_stopped(tokenizer, write_jsonl, skip):
    records = [{"text": "" if number % 7 == 3 else f"document {number} " * (number % 5 + 1)} for number in range(100)]
    data = (write_jsonl("a.jsonl", records), write_jsonl("b.jsonl", records))
    config = CorpusConfig(data=data, seq_len=20)
    everything = list(iter_documents(config, tokenizer))
    rest = list(iter_documents(config, tokenizer, skip_documents=skip))
    assert described(rest) == described([item for item in everything if item.source_index >= skip])


def test_skipped_documents_are_not_tokenised(tokenizer, write_jsonl):
    path = write_jsonl("a.jsonl", [{"text": 5}, {"text": "fine"}])
    [item] = iter_documents(CorpusConfig(data=(path,)), tokenizer, skip_documents=1)
    assert item.source_index == 1


def test_skipping_more_than_there_is(tokenizer, write_jsonl):
    config = CorpusConfig(data=(write_jsonl("a.jsonl", RECORDS),))
    with pytest.raises(InvalidArgumentError, match="cannot skip 5 documents, the corpus has 4"):
        list(iter_documents(config, tokenizer, skip_documents=5))


def test_limit_reads_no_further(tokenizer, write_jsonl):
    path = write_jsonl("a.jsonl", [*RECORDS, {"broken": 1}])
    assert keys(read(tokenizer, path, limit=3)) == ["a-00000000", "a-00000001"]


def test_counters_keep_step_with_the_documents(tokenizer, write_jsonl):
    counters = CorpusCounters()
    stream = iter_documents(CorpusConfig(data=(write_jsonl("a.jsonl", RECORDS),)), tokenizer, counters=counters)
    next(stream)
    next(stream)
    assert (counters.documents, counters.empty_documents) == (2, 0)
    next(stream)
    assert (counters.documents, counters.empty_documents) == (3, 1)


def test_ignored_files_are_counted(tokenizer, tmp_path, write_jsonl):
    write_jsonl("a.jsonl", RECORDS)
    (tmp_path / "README.md").write_text("")
    counters = CorpusCounters()
    list(iter_documents(CorpusConfig(data=(str(tmp_path),)), tokenizer, counters=counters))
    assert counters.files_ignored == 1


def test_configuration_survives_json():
    config = CorpusConfig(data=("a", "b"), metadata_fields=("*",), seq_len=5, limit=3)
    assert CorpusConfig(**json.loads(json.dumps(dataclasses.asdict(config)))) == config
