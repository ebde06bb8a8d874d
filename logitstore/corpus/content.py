"""What a record says: plain text, a conversation, or a prompt with its completion; and its key and metadata."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from logitstore.corpus.keys import MAX_KEY_CHARACTERS, sanitize_key
from logitstore.errors import CorruptDataError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from logitstore.corpus.config import CorpusConfig

__all__ = [
    "Chat",
    "Content",
    "PlainText",
    "PromptCompletion",
    "columns_to_read",
    "read_content",
    "read_key",
    "read_metadata",
]


@dataclass(frozen=True)
class PlainText:
    """A text, all of which is a target."""

    text: str


@dataclass(frozen=True)
class PromptCompletion:
    """A prompt and the completion that follows it directly; the completion is the target."""

    prompt: str
    completion: str


@dataclass(frozen=True)
class Chat:
    """A conversation; the assistant's turns are the target. Each message has ``role`` and ``content``, both strings."""

    messages: tuple[dict[str, Any], ...]


Content = PlainText | PromptCompletion | Chat


def content_forms(config: CorpusConfig) -> list[tuple[str, ...]]:
    """Fields of each form a record's content may have, in the order in which the forms are looked for."""
    explicit = [
        fields
        for given, fields in (
            (config.messages_field, _messages_fields(config)),
            (config.prompt_field or (config.completion_field and not config.prompts), _completion_fields(config)),
            (config.text_field, _text_fields(config)),
        )
        if given
    ]
    return explicit or [_messages_fields(config), _completion_fields(config), _text_fields(config)]


def _messages_fields(config: CorpusConfig) -> tuple[str, ...]:
    return (config.messages_field or "messages",)


def _completion_fields(config: CorpusConfig) -> tuple[str, ...]:
    prompt = config.prompt_field or "prompt"
    return (prompt,) if config.prompts else (prompt, config.completion_field or "completion")


def _text_fields(config: CorpusConfig) -> tuple[str, ...]:
    return (config.text_field or "text",)


def _form_of(fields: dict[str, Any], config: CorpusConfig) -> tuple[str, ...] | None:
    forms = content_forms(config)
    return next((form for form in forms if all(fields.get(name) is not None for name in form)), None)


def columns_to_read(names: Iterable[str], config: CorpusConfig) -> list[str] | None:
    """Columns of a table that can matter, or None for all of them.

    All of them as well if the table has no content: the error that follows lists what there is.
    """
    present = list(names)
    forms = content_forms(config)
    if config.metadata_fields == ("*",) or not any(set(fields) <= set(present) for fields in forms):
        return None
    wanted = {name for fields in forms for name in fields} | set(config.metadata_fields or ()) | {config.key_field}
    return [name for name in present if name in wanted]


def read_content(fields: dict[str, Any], config: CorpusConfig) -> Content | None:
    """Find a record's content; None if it is empty (white space counts as empty).

    Raises
    ------
    CorruptDataError
        If the record has no content, or content of the wrong type.
    """
    form = _form_of(fields, config)
    if form is None:
        forms = content_forms(config)
        looked_for = " or ".join(" + ".join(repr(name) for name in form) for form in forms)
        has = ", ".join(f"{name!r} (null)" if value is None else repr(name) for name, value in fields.items())
        raise CorruptDataError(f"a record must have {looked_for}, found the fields {has or '(none)'}")
    if form == _messages_fields(config):
        messages = _read_messages(fields[form[0]], form[0])
        return Chat(messages) if any(message["content"].strip() for message in messages) else None
    texts = [_checked_text(fields[name], f"field {name!r}") for name in form]
    if not any(text.strip() for text in texts):
        return None
    return PlainText(*texts) if len(texts) == 1 else PromptCompletion(*texts)


def _read_messages(value: Any, name: str) -> tuple[dict[str, Any], ...]:
    if not isinstance(value, (list, tuple)):
        raise CorruptDataError(f"field {name!r} must be a list of messages, found {type(value).__name__}")
    messages = []
    for number, message in enumerate(value):
        if not isinstance(message, dict):
            raise CorruptDataError(f"message {number} of {name!r} must be an object, found {type(message).__name__}")
        for part in ("role", "content"):
            if part not in message:
                has = ", ".join(repr(key) for key in message)
                raise CorruptDataError(f"message {number} of {name!r} must have {part!r}, found the fields {has}")
            _checked_text(message[part], f"{part!r} of message {number} of {name!r}")
        # Tables fill up what a message lacks with nulls, which templates would print.
        messages.append({key: part for key, part in message.items() if part is not None})
    return tuple(messages)


def _checked_text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise CorruptDataError(f"{what} must be a string, found {type(value).__name__}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise CorruptDataError(
            f"{what} must be valid Unicode, found a lone surrogate U+{ord(value[error.start]):04X}"
        ) from error
    return value


def read_key(fields: dict[str, Any], key_field: str) -> tuple[str, str]:
    """Return a record's key, and the value it was made from.

    Raises
    ------
    CorruptDataError
        If the field is missing, or neither a string nor an integer, or empty, or too long.
    """
    value = fields.get(key_field)
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        found = type(value).__name__ if key_field in fields else "no such field"
        raise CorruptDataError(f"the key field {key_field!r} must be a string or an integer, found {found}")
    original = str(value)
    if not 1 <= len(original) <= MAX_KEY_CHARACTERS:
        raise CorruptDataError(
            f"a key must have 1 to {MAX_KEY_CHARACTERS} characters, {key_field!r} has {len(original)} "
            f"({original[:40]!r}…)"
        )
    return sanitize_key(original), original


def read_metadata(fields: dict[str, Any], config: CorpusConfig) -> tuple[dict[str, Any], int]:
    """Return the metadata to keep, and the number of values that ``("*",)`` left out because they are not JSON.

    A field asked for by name may be missing from a record.

    Raises
    ------
    CorruptDataError
        If a field asked for by name is not JSON.
    """
    if config.metadata_fields is None:
        return {}, 0
    if config.metadata_fields != ("*",):
        kept = {name: fields[name] for name in config.metadata_fields if name in fields}
        for name, value in kept.items():
            if not _is_json(value):
                raise CorruptDataError(f"metadata must be JSON, field {name!r} holds {type(value).__name__}")
        return kept, 0
    known = {*(_form_of(fields, config) or ()), config.key_field}
    others = {name: value for name, value in fields.items() if name not in known}
    kept = {name: value for name, value in others.items() if _is_json(value)}
    return kept, len(others) - len(kept)


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return False
    return True
