from __future__ import annotations

import copy

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from logitstore.corpus.content import Chat, PlainText, PromptCompletion
from logitstore.corpus.tokenizing import Tokenizing, vocabulary_size
from logitstore.errors import CorruptDataError, InvalidArgumentError

CHATML = (
    "{{ bos_token }}{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CHAT = Chat(({"role": "user", "content": "Hello there!"}, {"role": "assistant", "content": "Hi, 世界!"}))


class OneToken:
    """A tokenizer whose every text is one given id."""

    bos_token_id = eos_token_id = None

    def __init__(self, token):
        self.token = token

    def get_vocab(self):
        return {"a": 0, "b": 9}

    def __call__(self, texts, **_):
        return {"input_ids": [[self.token]] * len(texts), "special_tokens_mask": [[0]] * len(texts)}


def encode(tokenizing, *contents):
    return tokenizing.encode([tokenizing.render(content) for content in contents])


def target_text(tokenizer, encoded):
    return tokenizer.decode([token for token, bit in zip(encoded.tokens[1:], encoded.mask, strict=False) if bit])


def test_plain_text_is_the_tokenizers_own_tokens(bos_tokenizer):
    [encoded] = encode(Tokenizing(bos_tokenizer), PlainText("Once upon a time"))
    assert encoded.tokens.tolist() == bos_tokenizer("Once upon a time").input_ids
    assert encoded.tokens.dtype == np.uint32
    assert encoded.mask.tolist() == [1] * (len(encoded.tokens) - 1) + [0]


def test_special_tokens_can_be_left_out(bos_tokenizer):
    [encoded] = encode(Tokenizing(bos_tokenizer, add_special_tokens=False), PlainText("Once"))
    assert encoded.tokens[0] != bos_tokenizer.bos_token_id


def test_bos_that_is_written_in_the_text_is_not_added_again(bos_tokenizer):
    written, plain = encode(Tokenizing(bos_tokenizer), PlainText("<s>Once"), PlainText("Once"))
    assert written.tokens.tolist() == plain.tokens.tolist()


def test_truncation_left_on_in_the_tokenizer_does_not_cut(tokenizer):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.backend_tokenizer.enable_truncation(3)
    [encoded] = encode(Tokenizing(tokenizer), PlainText("Once upon a time there was a bell"))
    assert tokenizer.decode(encoded.tokens) == "Once upon a time there was a bell"


def test_append_eos_adds_one(tokenizer):
    bare, written = encode(Tokenizing(tokenizer, append_eos=True), PlainText("Once"), PlainText("Once</s>"))
    assert bare.tokens.tolist() == written.tokens.tolist()
    assert bare.tokens.tolist()[-1] == tokenizer.eos_token_id
    assert bare.tokens.tolist().count(tokenizer.eos_token_id) == 1


def test_append_eos_needs_an_eos_token():
    with pytest.raises(InvalidArgumentError, match="EOS"):
        Tokenizing(OneToken(0), append_eos=True)


def test_completion_is_the_target(tokenizer):
    [encoded] = encode(Tokenizing(tokenizer, append_eos=True), PromptCompletion("Once upon", " a time"))
    assert target_text(tokenizer, encoded) == " a time</s>"


def test_token_across_the_boundary_counts_as_completion(tokenizer):
    whole = tokenizer("there").input_ids
    assert len(whole) < 5
    [encoded] = encode(Tokenizing(tokenizer), PromptCompletion("the quick t", "here"))
    assert encoded.tokens.tolist() == tokenizer("the quick there").input_ids
    assert "here" in target_text(tokenizer, encoded)
    assert target_text(tokenizer, encoded).strip() == "there"


def test_prompt_without_completion_has_no_target(bos_tokenizer):
    [encoded] = encode(Tokenizing(bos_tokenizer), PromptCompletion("Once upon", ""))
    assert not encoded.mask.any()


def test_chat_without_template_uses_the_plain_one(bos_tokenizer):
    tokenizing = Tokenizing(bos_tokenizer)
    [encoded] = encode(tokenizing, CHAT)
    assert tokenizing.chat_format == "plain"
    assert bos_tokenizer.decode(encoded.tokens) == "<s>User: Hello there!\n\nAssistant: Hi, 世界!</s>"
    assert target_text(bos_tokenizer, encoded).strip() == "Hi, 世界!</s>"


def test_chat_template_decides_about_special_tokens(bos_tokenizer):
    tokenizer = copy.copy(bos_tokenizer)
    tokenizer.chat_template = CHATML
    tokenizing = Tokenizing(tokenizer, append_eos=True)
    [encoded] = encode(tokenizing, CHAT)
    assert tokenizing.chat_format == "template"
    assert encoded.tokens.tolist() == tokenizer.apply_chat_template(list(CHAT.messages), return_dict=False)
    assert encoded.tokens.tolist().count(tokenizer.bos_token_id) == 1
    assert target_text(tokenizer, encoded) == "Hi, 世界!<|im_end|>"


def test_plain_can_be_asked_for_despite_a_template(tokenizer):
    tokenizer = copy.copy(tokenizer)
    tokenizer.chat_template = CHATML
    [encoded] = encode(Tokenizing(tokenizer, chat_template="plain"), CHAT)
    assert tokenizer.decode(encoded.tokens).startswith("User: ")


@pytest.mark.parametrize("token", [-1, 10])
def test_ids_outside_the_vocabulary_are_refused(token):
    with pytest.raises(CorruptDataError, match=rf"0\.\.9, the tokenizer gave {token} at position 0"):
        encode(Tokenizing(OneToken(token)), PlainText("x"))


def test_the_last_id_of_the_vocabulary_is_kept():
    assert encode(Tokenizing(OneToken(9)), PlainText("x"))[0].tokens.tolist() == [9]


def test_conversations_need_a_fast_tokenizer():
    with pytest.raises(InvalidArgumentError, match=r"fast tokenizer.*OneToken"):
        Tokenizing(OneToken(0)).render(CHAT)


def test_vocabulary_size_counts_added_tokens(tokenizer):
    tokenizer = copy.deepcopy(tokenizer)
    before = vocabulary_size(tokenizer)
    tokenizer.add_tokens(["<extra>"])
    assert vocabulary_size(tokenizer) == before + 1


TEXTS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)
CONTENTS = st.one_of(
    TEXTS.map(PlainText),
    st.tuples(TEXTS, TEXTS).map(lambda pair: PromptCompletion(*pair)),
    st.lists(st.tuples(st.sampled_from(["user", "assistant"]), TEXTS), min_size=1, max_size=4).map(
        lambda turns: Chat(tuple({"role": role, "content": text} for role, text in turns))
    ),
)


@given(st.lists(CONTENTS, min_size=1, max_size=6))
def test_grouping_does_not_change_the_result(bos_tokenizer, contents):
    tokenizing = Tokenizing(bos_tokenizer)
    together = encode(tokenizing, *contents)
    for content, encoded in zip(contents, together, strict=True):
        [alone] = encode(tokenizing, content)
        assert alone.tokens.tolist() == encoded.tokens.tolist()
        assert alone.mask.tolist() == encoded.mask.tolist()
        assert encoded.mask[-1] == 0


@given(prompt=TEXTS, completion=TEXTS)
def test_targets_cover_the_completion_and_at_most_the_boundary_token_more(bos_tokenizer, prompt, completion):
    [encoded] = encode(Tokenizing(bos_tokenizer), PromptCompletion(prompt, completion))
    offsets = bos_tokenizer(prompt + completion, return_offsets_mapping=True).offset_mapping
    expected = [int(end > len(prompt)) for _, end in offsets[1:]]
    if len(expected) == len(encoded.tokens) - 1:
        assert encoded.mask.tolist() == [*expected, 0]
