"""Prompts: what a teacher goes on from, without what completes it."""

from __future__ import annotations

from typing import Any

import pytest

from logitstore.corpus import CorpusConfig, iter_documents
from logitstore.corpus.config import CorpusCounters
from logitstore.corpus.keys import sample_key
from logitstore.errors import CorruptDataError, InvalidArgumentError

USER = {"role": "user", "content": "Hello there!"}
SAID = {"role": "assistant", "content": "Hi, how can I help?"}
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def read(path: str, tokenizer: Any, **settings: Any) -> list[Any]:
    return [item.document for item in iter_documents(CorpusConfig(data=(path,), prompts=True, **settings), tokenizer)]


def texts(documents: list[Any], tokenizer: Any) -> list[str]:
    return [tokenizer.decode(document.tokens.astype(int)) for document in documents]


def test_texts_and_prompts_without_their_completions(write_jsonl: Any, bos_tokenizer: Any) -> None:
    path = write_jsonl("p.jsonl", [
        {"text": "Once upon a time"}, {"prompt": "The quick", "completion": " brown fox"}, {"prompt": "1, 2", "x": 7},
    ])  # fmt: skip
    documents = read(path, bos_tokenizer, metadata_fields=("*",))
    assert texts(documents, bos_tokenizer) == ["<s>Once upon a time", "<s>The quick", "<s>1, 2"]
    # What was left out is still at hand, to compare with.
    assert [document.metadata for document in documents] == [{}, {"completion": " brown fox"}, {"x": 7}]


def test_fields_may_be_named(write_jsonl: Any, tokenizer: Any) -> None:
    path = write_jsonl("p.jsonl", [{"question": "The quick", "prompt": "no", "answer": "fox"}])
    assert texts(read(path, tokenizer, prompt_field="question"), tokenizer) == ["The quick"]
    assert texts(read(path, tokenizer, text_field="question"), tokenizer) == ["The quick"]
    assert texts(read(path, tokenizer, completion_field="answer"), tokenizer) == ["no"]


@pytest.mark.parametrize("messages", [[USER], [USER, SAID], [USER, SAID, SAID]])
def test_plain_chats_end_where_the_assistant_starts(messages: Any, write_jsonl: Any, bos_tokenizer: Any) -> None:
    path = write_jsonl("p.jsonl", [{"messages": messages}])
    assert texts(read(path, bos_tokenizer), bos_tokenizer) == ["<s>User: Hello there!\n\nAssistant:"]


def test_what_the_assistant_said_before_stays(write_jsonl: Any, tokenizer: Any) -> None:
    path = write_jsonl("p.jsonl", [{"messages": [USER, SAID, USER, SAID]}])
    (text,) = texts(read(path, tokenizer), tokenizer)
    expected = "User: Hello there!\n\nAssistant: Hi, how can I help?</s>\n\nUser: Hello there!\n\nAssistant:"
    assert text == expected


def test_chats_through_the_tokenizers_template(
    write_jsonl: Any, bos_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bos_tokenizer, "chat_template", TEMPLATE, raising=False)
    path = write_jsonl("p.jsonl", [{"messages": [USER, SAID]}])
    (text,) = texts(read(path, bos_tokenizer), bos_tokenizer)
    assert text == "<|im_start|>user\nHello there!<|im_end|>\n<|im_start|>assistant\n"
    plain = read(path, bos_tokenizer, chat_template="plain")
    assert texts(plain, bos_tokenizer) == ["<s>User: Hello there!\n\nAssistant:"]


def test_nothing_closes_a_prompt(write_jsonl: Any, tokenizer: Any) -> None:
    class Closing:
        """A tokenizer that puts </s> behind every text."""

        def __getattr__(self, name: str) -> Any:
            return getattr(tokenizer, name)

        def __call__(self, texts: list[str], **options: Any) -> Any:
            output = tokenizer(texts, **options)
            for ids, added in zip(output["input_ids"], output["special_tokens_mask"], strict=True):
                ids.append(tokenizer.eos_token_id)
                added.append(1)
            return output

    path = write_jsonl("p.jsonl", [{"text": "The quick"}])
    assert texts(read(path, Closing()), tokenizer) == ["The quick"]


def test_prompts_are_not_cut(write_jsonl: Any, tokenizer: Any) -> None:
    path = write_jsonl("p.jsonl", [{"text": "The quick brown fox jumps over the lazy dog. " * 20}])
    (document,) = read(path, tokenizer, seq_len=8)
    assert len(document.tokens) > 8
    assert document.parent is None


def test_empty_prompts_are_counted(write_jsonl: Any, tokenizer: Any) -> None:
    path = write_jsonl("p.jsonl", [{"text": " "}, {"prompt": "", "completion": "x"}, {"text": "The"}])
    counters = CorpusCounters()
    config = CorpusConfig(data=(path,), prompts=True)
    assert len(list(iter_documents(config, tokenizer, counters=counters))) == 1
    assert (counters.documents, counters.empty_documents, counters.estimated_documents()) == (1, 2, 1)


def test_a_chat_of_the_assistant_alone_is_an_error(write_jsonl: Any, tokenizer: Any) -> None:
    path = write_jsonl("p.jsonl", [{"messages": [SAID]}])
    with pytest.raises(CorruptDataError, match=r"line 1: .*not the assistant's"):
        read(path, tokenizer)


def test_prompts_do_not_end_with_eos() -> None:
    with pytest.raises(InvalidArgumentError, match="append_eos"):
        CorpusConfig(data=("x",), prompts=True, append_eos=True)


def test_only_prompts_may_come_from_nowhere() -> None:
    assert CorpusConfig(data=(), prompts=True).data == ()
    with pytest.raises(InvalidArgumentError, match="data must name"):
        CorpusConfig(data=())


def test_samples_have_keys_of_their_own() -> None:
    assert [sample_key("a", n, 3) for n in range(3)] == ["a-s0000", "a-s0001", "a-s0002"]
    assert sample_key("a", 0, 1) == "a"
    assert sample_key("a", 7, 20_000) == "a-s00007"
