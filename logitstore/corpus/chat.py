"""Conversations as text, with the parts the assistant said."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from logitstore.errors import CorruptDataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["RenderedChat", "render_plain", "render_plain_prompt", "render_template", "render_template_prompt"]

Span = tuple[int, int]

_GENERATION_TAG = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True)
class RenderedChat:
    """A conversation as one text.

    Attributes
    ----------
    text
        What the tokenizer gets.
    targets
        ``(start, end)`` of the assistant's parts, in characters of ``text``, ascending, not overlapping.
    """

    text: str
    targets: tuple[Span, ...]


def render_plain(messages: Sequence[dict[str, Any]], eos_token: str | None) -> RenderedChat:
    r"""Write a conversation in the plain template, for tokenizers that bring none.

    Every message is its role with a capital letter, a colon, a blank and its content, and messages are set apart by
    an empty line. The EOS token, if the tokenizer has one, follows each of the assistant's messages, and belongs to
    its target like the content. ::

        System: Be brief.

        User: Hello!

        Assistant: Hi.</s>

        User: Who are you?

        Assistant: A model.</s>

    Examples
    --------
    >>> chat = render_plain([{"role": "user", "content": "Hello!"}, {"role": "assistant", "content": "Hi."}], "</s>")
    >>> chat.text
    'User: Hello!\n\nAssistant: Hi.</s>'
    >>> [chat.text[start:end] for start, end in chat.targets]
    ['Hi.</s>']
    """
    text = ""
    targets = []
    for message in messages:
        text += ("\n\n" if text else "") + f"{message['role'].capitalize()}: "
        start = len(text)
        text += message["content"]
        if message["role"] == "assistant":
            text += eos_token or ""
            targets.append((start, len(text)))
    return RenderedChat(text, tuple(targets))


def render_template(messages: Sequence[dict[str, Any]], tokenizer: Any) -> RenderedChat:
    """Write a conversation through the tokenizer's chat template and find the assistant's parts.

    A template with ``{% generation %}`` says itself what the assistant wrote. With any other, an assistant's turn
    reaches from where the conversation so far, with the prompt to generate, ends, to where the conversation up to and
    including the turn ends. White space that the template puts behind the end-of-turn marker is not part of the turn.

    Raises
    ------
    CorruptDataError
        If the template refuses the conversation, or the turns cannot be told apart in what it writes.
    """
    text: str = _apply(tokenizer, messages)
    # Tokenizers may hold several named templates; this one gives the template used without tools.
    if _GENERATION_TAG.search(tokenizer.get_chat_template()):
        return RenderedChat(text, _generation_spans(messages, tokenizer))
    targets = []
    for turn, message in enumerate(messages):
        if message["role"] == "assistant":
            if turn == 0:
                raise CorruptDataError(_mismatch(turn, "no template can show where a first turn starts"))
            before = _apply(tokenizer, messages[:turn], add_generation_prompt=True)
            through = _apply(tokenizer, messages[: turn + 1])
            targets.append(_turn_span(turn, text, before, through, message["content"].strip()))
    return RenderedChat(text, tuple(targets))


def render_plain_prompt(messages: Sequence[dict[str, Any]], eos_token: str | None) -> str:
    r"""Write a conversation in the plain template up to where the assistant's next turn starts.

    It ends behind the colon: the blank that follows belongs to the first token of what is said.

    Raises
    ------
    CorruptDataError
        If nobody but the assistant has said anything.

    Examples
    --------
    >>> render_plain_prompt([{"role": "user", "content": "Hello!"}, {"role": "assistant", "content": "Hi."}], "</s>")
    'User: Hello!\n\nAssistant:'
    """
    return render_plain(_to_be_answered(messages), eos_token).text + "\n\nAssistant:"


def render_template_prompt(messages: Sequence[dict[str, Any]], tokenizer: Any) -> str:
    """Write a conversation through the tokenizer's chat template, with its prompt for the assistant's next turn.

    Raises
    ------
    CorruptDataError
        If the template refuses the conversation, or nobody but the assistant has said anything.
    """
    text: str = _apply(tokenizer, _to_be_answered(messages), add_generation_prompt=True)
    return text


def _to_be_answered(messages: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
    """Leave out what the assistant says last: it is what is to be said anew."""
    end = len(messages)
    while end and messages[end - 1]["role"] == "assistant":
        end -= 1
    if not end:
        raise CorruptDataError(
            f"a conversation to go on from must have a message that is not the assistant's, found {len(messages)} of it"
        )
    return messages[:end]


def _apply(tokenizer: Any, messages: Sequence[dict[str, Any]], **options: Any) -> Any:
    from jinja2 import TemplateError

    try:
        return tokenizer.apply_chat_template(list(messages), **{"tokenize": False, **options})
    except (TemplateError, TypeError, ValueError) as error:
        roles = ", ".join(message["role"] for message in messages)
        raise CorruptDataError(
            f"the tokenizer's chat template refuses the conversation with the roles {roles}: {error}"
        ) from error


def _generation_spans(messages: Sequence[dict[str, Any]], tokenizer: Any) -> tuple[Span, ...]:
    encoded = _apply(
        tokenizer,
        messages,
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
        tokenizer_kwargs={"return_offsets_mapping": True, "verbose": False},
    )
    said = zip(encoded["offset_mapping"], encoded["assistant_masks"], strict=True)
    return _joined((start, end) for (start, end), by_assistant in said if by_assistant and end > start)


def _joined(spans: Iterable[Span]) -> tuple[Span, ...]:
    """Join ascending spans that touch or overlap."""
    joined: list[Span] = []
    for start, end in spans:
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return tuple(joined)


def _turn_span(turn: int, text: str, before: str, through: str, content: str) -> Span:
    """Find an assistant's turn in ``text``.

    Parameters
    ----------
    before, through
        The conversation up to the turn, with the prompt to generate, and up to and including the turn.
    content
        What the assistant said, without white space around it.
    """
    start = len(before)
    if not text.startswith(before):
        raise CorruptDataError(_mismatch(turn, "the conversation before it is written otherwise when more follows"))
    if text.startswith(through) and len(through) >= start:
        end = len(through)
    else:
        # Some templates write the last turn in another way than those before it (Qwen3 adds an empty <think> block).
        # What closes a turn is the same for both.
        at = through.rfind(content)
        closed = content + through[at + len(content) :]
        spoken_at = len(text) - len(text[start:].lstrip())
        if at < 0 or not content or not text.startswith(closed, spoken_at):
            raise CorruptDataError(_mismatch(turn, "the turn itself is written otherwise when more follows"))
        end = spoken_at + len(closed)
    spoken = text[start:end].rstrip()
    return (start, end) if spoken.endswith(content) else (start, start + len(spoken))


def _mismatch(turn: int, reason: str) -> str:
    return (
        f"cannot find the assistant's turn (message {turn}) in what the chat template writes: {reason}; use a template "
        "with {% generation %} or the plain chat template"
    )
