from __future__ import annotations

import copy

import pytest

from logitstore.corpus.chat import render_plain, render_template
from logitstore.errors import CorruptDataError

HEADER = "'<|im_start|>' + m['role'] + '\n'"
PROMPT = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
CHATML = "{% for m in messages %}{{ " + HEADER + " + m['content'] + '<|im_end|>\n' }}{% endfor %}" + PROMPT
GENERATION = (
    "{% for m in messages %}{{ " + HEADER + " }}"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}" + PROMPT
)
THINK_ON_LAST = (
    "{% for m in messages %}{{ " + HEADER + " }}"
    "{% if m['role'] == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ m['content'] + '<|im_end|>\n' }}{% endfor %}" + PROMPT
)
INST = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
SHOUT_EARLIER = (
    "{% for m in messages %}{{ " + HEADER + " }}"
    "{% if loop.last %}{{ m['content'] }}{% else %}{{ m['content'] | upper }}{% endif %}{{ '<|im_end|>\n' }}"
    "{% endfor %}" + PROMPT
)

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello there!"},
    {"role": "assistant", "content": "Hi, how can I help?"},
    {"role": "user", "content": "Name a number."},
    {"role": "assistant", "content": "Three."},
]


def said(messages, tokenizer, template):
    tokenizer = copy.copy(tokenizer)
    tokenizer.chat_template = template
    chat = render_template(messages, tokenizer)
    return [chat.text[start:end] for start, end in chat.targets]


def test_plain_template_is_the_documented_one():
    chat = render_plain(MESSAGES, "</s>")
    assert chat.text == (
        "System: Be brief.\n\nUser: Hello there!\n\nAssistant: Hi, how can I help?</s>\n\n"
        "User: Name a number.\n\nAssistant: Three.</s>"
    )
    assert [chat.text[start:end] for start, end in chat.targets] == ["Hi, how can I help?</s>", "Three.</s>"]


def test_plain_template_without_eos_token():
    chat = render_plain(MESSAGES, None)
    assert [chat.text[start:end] for start, end in chat.targets] == ["Hi, how can I help?", "Three."]


@pytest.mark.parametrize("template", [CHATML, GENERATION], ids=["prefixes", "generation tag"])
def test_assistant_turns_with_their_end_marker_are_targets(tokenizer, template):
    assert said(MESSAGES, tokenizer, template) == ["Hi, how can I help?<|im_end|>", "Three.<|im_end|>"]


def test_template_that_writes_the_last_turn_otherwise(tokenizer):
    assert said(MESSAGES, tokenizer, THINK_ON_LAST) == [
        "Hi, how can I help?<|im_end|>",
        "<think>\n\n</think>\n\nThree.<|im_end|>",
    ]


def test_white_space_around_what_was_said_does_not_hide_it(tokenizer):
    messages = [*MESSAGES[:2], {"role": "assistant", "content": " Hi \n"}, *MESSAGES[3:]]
    assert said(messages, tokenizer, THINK_ON_LAST)[0] == " Hi \n<|im_end|>"


def test_template_without_a_generation_prompt(tokenizer):
    assert said(MESSAGES[1:], tokenizer, INST) == [" Hi, how can I help?</s>", " Three.</s>"]


def test_conversation_without_assistant_has_no_targets(tokenizer):
    assert said(MESSAGES[:2], tokenizer, CHATML) == []
    assert said(MESSAGES[:2], tokenizer, GENERATION) == []


@pytest.mark.parametrize(
    ("messages", "template", "message"),
    [
        (MESSAGES, INST, "refuses the conversation with the roles system, user.*Only user and assistant"),
        (MESSAGES, SHOUT_EARLIER, r"cannot find the assistant's turn \(message 2\).*before it is written otherwise"),
        (MESSAGES[2:], CHATML, r"\(message 0\).*where a first turn starts"),
    ],
)
def test_conversations_a_template_cannot_show_are_errors(tokenizer, messages, template, message):
    with pytest.raises(CorruptDataError, match=message):
        said(messages, tokenizer, template)


def test_turn_that_reads_otherwise_once_more_follows_is_an_error(tokenizer):
    template = CHATML.replace("m['content']", "(m['content'] if loop.last or m['role'] == 'user' else '...')")
    with pytest.raises(CorruptDataError, match=r"message 1\).*the turn itself is written otherwise"):
        said(MESSAGES[1:], tokenizer, template)
