"""From content to tokens, with the tokens that are targets."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from logitstore.corpus.chat import render_plain, render_plain_prompt, render_template, render_template_prompt
from logitstore.corpus.content import Chat, Content, PlainText
from logitstore.errors import CorruptDataError, InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["EncodedText", "RenderedText", "Tokenizing", "vocabulary_size"]


@dataclass(frozen=True)
class RenderedText:
    """A text ready for the tokenizer.

    Attributes
    ----------
    text
        What is tokenised, in one go.
    targets
        ``(start, end)`` of the targets, in characters, ascending; None if all of it is one.
    add_special_tokens
        Whether the tokenizer puts its special tokens around the text.
    append_eos
        Whether an EOS token is put behind it.
    is_open
        Whether it is to be gone on with: an EOS that the tokenizer itself puts behind it is taken off.
    """

    text: str
    targets: tuple[tuple[int, int], ...] | None
    add_special_tokens: bool
    append_eos: bool
    is_open: bool = False


@dataclass(frozen=True)
class EncodedText:
    """Tokens of a whole document.

    Attributes
    ----------
    tokens
        ``(L,)`` uint32.
    mask
        ``(L,)`` uint8, 1 where the *next* token is a target; the last is 0.
    """

    tokens: NDArray[np.uint32]
    mask: NDArray[np.uint8]


def vocabulary_size(tokenizer: Any) -> int:
    """Return the largest token id of a Hugging Face tokenizer plus one, added tokens included."""
    return int(max(tokenizer.get_vocab().values(), default=-1)) + 1


class Tokenizing:
    """How documents become tokens.

    Plain text is tokenised as it is, and all of it is a target. A prompt and its completion are put together without
    anything in between and tokenised as one text; a token with characters of both counts as completion. A conversation
    goes through the tokenizer's chat template, which also decides about special tokens, or through the plain one of
    `logitstore.corpus.chat.render_plain`. A BOS or EOS that a text already begins or ends with is not added again.

    Parameters
    ----------
    tokenizer
        A Hugging Face tokenizer. Conversations and prompts need a fast one, which knows the characters of each token.
    add_special_tokens
        Whether texts get the tokenizer's own special tokens; chat templates are not affected.
    append_eos
        Whether texts, prompt and completion included, end with EOS.
    chat_template
        ``"auto"`` or ``"plain"``.
    prompts
        Whether texts are to be gone on with: conversations then end where the assistant's next turn starts.

    Raises
    ------
    InvalidArgumentError
        If EOS is asked for and the tokenizer has none.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        add_special_tokens: bool = True,
        append_eos: bool = False,
        chat_template: str = "auto",
        prompts: bool = False,
    ) -> None:
        if append_eos and tokenizer.eos_token_id is None:
            raise InvalidArgumentError("append_eos needs a tokenizer with an EOS token, this one has none")
        self._tokenizer = tokenizer
        self._add_special_tokens = add_special_tokens
        self._append_eos = append_eos
        self._prompts = prompts
        has_template = bool(getattr(tokenizer, "chat_template", None))
        self.chat_format = "template" if chat_template == "auto" and has_template else "plain"
        """How conversations are written: ``"template"`` or ``"plain"``."""

    @cached_property
    def vocab_size(self) -> int:
        """The largest token id plus one."""
        return vocabulary_size(self._tokenizer)

    def render(self, content: Content) -> RenderedText:
        """Turn content into the text to tokenise.

        Raises
        ------
        CorruptDataError
            If the chat template cannot write the conversation.
        InvalidArgumentError
            If targets have to be found and the tokenizer is not a fast one.
        """
        if self._prompts:
            return self._render_prompt(content)
        if isinstance(content, PlainText):
            return RenderedText(content.text, None, self._add_special_tokens, self._append_eos)
        if not getattr(self._tokenizer, "is_fast", False):
            raise InvalidArgumentError(
                "conversations and prompt + completion need a fast tokenizer, which maps tokens to characters, found "
                f"{type(self._tokenizer).__name__}"
            )
        if not isinstance(content, Chat):
            text = content.prompt + content.completion
            targets = ((len(content.prompt), len(text)),)
            return RenderedText(text, targets, self._add_special_tokens, self._append_eos)
        if self.chat_format == "template":
            chat = render_template(content.messages, self._tokenizer)
            return RenderedText(chat.text, chat.targets, add_special_tokens=False, append_eos=False)
        chat = render_plain(content.messages, self._tokenizer.eos_token)
        return RenderedText(chat.text, chat.targets, self._add_special_tokens, append_eos=False)

    def _render_prompt(self, content: Content) -> RenderedText:
        add_special_tokens = self._add_special_tokens
        if isinstance(content, PlainText):
            text = content.text
        elif not isinstance(content, Chat):
            text = content.prompt
        elif self.chat_format == "template":
            text, add_special_tokens = render_template_prompt(content.messages, self._tokenizer), False
        else:
            text = render_plain_prompt(content.messages, self._tokenizer.eos_token)
        return RenderedText(text, None, add_special_tokens, append_eos=False, is_open=True)

    def encode(self, texts: Sequence[RenderedText]) -> list[EncodedText]:
        """Tokenise texts, in order; how they are grouped into calls does not change the result.

        Raises
        ------
        CorruptDataError
            If the tokenizer gives an id outside its vocabulary.
        """
        encoded: dict[int, EncodedText] = {}
        for add_special_tokens in (True, False):
            for with_offsets in (True, False):
                group = [
                    number
                    for number, text in enumerate(texts)
                    if text.add_special_tokens == add_special_tokens and (text.targets is not None) == with_offsets
                ]
                if group:
                    output = self._call([texts[number].text for number in group], add_special_tokens, with_offsets)
                    for place, number in enumerate(group):
                        encoded[number] = self._finish(
                            texts[number],
                            output["input_ids"][place],
                            output["special_tokens_mask"][place],
                            output["offset_mapping"][place] if with_offsets else None,
                        )
        return [encoded[number] for number in range(len(texts))]

    def _call(self, texts: list[str], add_special_tokens: bool, with_offsets: bool) -> Any:
        return self._tokenizer(
            texts,
            add_special_tokens=add_special_tokens,
            padding=False,
            truncation=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            return_special_tokens_mask=True,
            # A slow tokenizer refuses the argument, whatever its value.
            **({"return_offsets_mapping": True} if with_offsets else {}),
            # Silences the warning that a text is longer than the model's context: it is cut into windows later.
            verbose=False,
        )

    def _finish(
        self,
        text: RenderedText,
        ids: list[int],
        added_by_tokenizer: list[int],
        offsets: list[tuple[int, int]] | None,
    ) -> EncodedText:
        tokens = np.array(ids, np.int64)
        added = np.array(added_by_tokenizer, bool)
        target = np.ones(len(tokens), bool)
        if text.targets is not None and offsets is not None:
            target = _overlaps(np.array(offsets, np.int64).reshape(-1, 2), text.targets) & ~added
            # What the tokenizer puts behind the text (EOS) belongs to whatever the text ends with.
            written = np.flatnonzero(~added)
            if len(written):
                target[written[-1] + 1 :] = target[written[-1]]
        bos, eos = self._tokenizer.bos_token_id, self._tokenizer.eos_token_id
        if len(tokens) > 1 and added[0] and tokens[0] == tokens[1] == bos:
            tokens, added, target = tokens[1:], added[1:], target[1:]
        if len(tokens) > 1 and added[-1] and tokens[-1] == tokens[-2] == eos:
            tokens, target = tokens[:-1], target[:-1]
        if text.is_open and len(tokens) > 1 and added[-1] and tokens[-1] == eos:
            tokens, target = tokens[:-1], target[:-1]
        if text.append_eos and (len(tokens) == 0 or tokens[-1] != eos):
            tokens, target = np.append(tokens, eos), np.append(target, True)
        self._check_range(text, tokens)
        mask = np.zeros(len(tokens), np.uint8)
        mask[:-1] = target[1:]
        return EncodedText(tokens.astype(np.uint32), mask)

    def _check_range(self, text: RenderedText, tokens: NDArray[np.int64]) -> None:
        outside = np.flatnonzero((tokens < 0) | (tokens >= self.vocab_size))
        if len(outside):
            raise CorruptDataError(
                f"token ids must lie in 0..{self.vocab_size - 1}, the tokenizer gave {tokens[outside[0]]} at position "
                f"{outside[0]} of the text that starts {text.text[:60]!r}"
            )


def _overlaps(offsets: NDArray[np.int64], targets: Sequence[tuple[int, int]]) -> NDArray[np.bool_]:
    """Return which tokens have a character in a target. ``offsets`` is ``(L, 2)``: start and end of each token."""
    if not targets:
        return np.zeros(len(offsets), bool)
    starts, ends = np.array(targets, np.int64).T
    first = offsets[:, 0]
    # A token without characters of its own belongs to the character it stands before.
    last = np.maximum(offsets[:, 1], first + 1)
    candidate = np.searchsorted(ends, first, side="right")
    inside = candidate < len(ends)
    overlaps: NDArray[np.bool_] = inside & (starts[np.minimum(candidate, len(ends) - 1)] < last)
    return overlaps
