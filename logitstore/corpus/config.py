"""What to read and how, and what was counted while reading."""

from __future__ import annotations

from dataclasses import dataclass

from logitstore.errors import InvalidArgumentError

__all__ = ["CorpusConfig", "CorpusCounters"]


@dataclass(frozen=True)
class CorpusConfig:
    """The input of a build. ``dataclasses.asdict`` gives JSON, and ``CorpusConfig(**json)`` the same configuration.

    Attributes
    ----------
    data
        What to read, in this order: files (``.txt``, ``.jsonl``, ``.jsonl.gz``, ``.parquet``), folders (all such files
        below, sorted), globs, fsspec URLs of any of them, folders written by ``Dataset.save_to_disk``, and names of
        Hugging Face datasets (``owner/name`` or ``owner/name:configuration``).
    text_field, messages_field, prompt_field, completion_field
        Fields that hold a record's content. None looks, record by record, for ``messages``, else ``prompt`` and
        ``completion``, else ``text``. As soon as one of the four is given, only the given ones are looked at.
    key_field
        Field that names the document, a string or an integer. None: ``<file stem>-<record number>``.
    doc_separator
        String between the documents of a ``.txt`` file. None: a file is one document.
    split
        Split to read from Hugging Face datasets that have splits.
    metadata_fields
        Fields kept with each document; ``("*",)`` keeps all fields that are JSON and not content. None keeps nothing.
    seq_len
        Longest document in tokens; longer ones are cut into windows that do not overlap. None never cuts.
    add_special_tokens
        Whether plain text gets the special tokens that the tokenizer puts around a text (usually a leading BOS).
    append_eos
        Whether text and prompt + completion end with the tokenizer's EOS token. Chats end as their template says.
    chat_template
        ``"auto"``: the tokenizer's own chat template, or the plain one if it has none. ``"plain"``: the plain one.
    limit
        Read only the first ``limit`` records, empty ones included. None reads all.
    prompts
        Read prompts, for the teacher to go on from. A record is then a text, a prompt whatever completes it, or a chat
        without the assistant's last turn. Nothing is cut, nothing ends with EOS, and ``data`` may be empty.

    Raises
    ------
    InvalidArgumentError
        If a value is out of range.

    Examples
    --------
    >>> CorpusConfig(data=("stories/*.jsonl",), seq_len=512).split
    'train'
    """

    data: tuple[str, ...]
    text_field: str | None = None
    messages_field: str | None = None
    prompt_field: str | None = None
    completion_field: str | None = None
    key_field: str | None = None
    doc_separator: str | None = None
    split: str = "train"
    metadata_fields: tuple[str, ...] | None = None
    seq_len: int | None = None
    add_special_tokens: bool = True
    append_eos: bool = False
    chat_template: str = "auto"
    limit: int | None = None
    prompts: bool = False

    def __post_init__(self) -> None:
        for name in ("data", "metadata_fields"):
            value = getattr(self, name)
            if isinstance(value, str):
                raise InvalidArgumentError(f"{name} must be a sequence of strings, found the string {value!r}")
            if value is not None:
                object.__setattr__(self, name, tuple(str(item) for item in value))
        if (not self.data and not self.prompts) or "" in self.data:
            raise InvalidArgumentError(f"data must name files, folders, globs, URLs or datasets, found {self.data!r}")
        for name in ("seq_len", "limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InvalidArgumentError(f"{name} must be at least 1, found {value}")
        if self.prompts and self.append_eos:
            raise InvalidArgumentError("append_eos ends a text, prompts are there to go on from; leave out one of them")
        if self.doc_separator == "":
            raise InvalidArgumentError("doc_separator must not be empty; None makes every file one document")
        if self.chat_template not in ("auto", "plain"):
            raise InvalidArgumentError(f"chat_template must be 'auto' or 'plain', found {self.chat_template!r}")


@dataclass
class CorpusCounters:
    """What has been read so far; kept in step with the documents that were handed out.

    Attributes
    ----------
    documents
        Source documents handed out.
    windows
        Pieces handed out: equals ``documents`` if nothing had to be cut.
    tokens
        Tokens handed out.
    empty_documents
        Records skipped because they hold no text but white space, or no tokens.
    files_ignored
        Files in folders and globs that are of none of the known kinds.
    metadata_values_omitted
        Values that ``metadata_fields=("*",)`` left out because they are not JSON.
    size_total
        Size of the inputs: bytes of files, rows of saved datasets; records where a ``limit`` is set. None if unknown.
    size_read, size_skipped
        How much of it has been read, and how much of that was passed over by ``skip_documents``.
    tokens_read
        Tokens of all that was read and not passed over; ahead of ``tokens`` by what waits to be handed out.
    """

    documents: int = 0
    windows: int = 0
    tokens: int = 0
    empty_documents: int = 0
    files_ignored: int = 0
    metadata_values_omitted: int = 0
    size_total: int | None = None
    size_read: int = 0
    size_skipped: int = 0
    tokens_read: int = 0

    def estimated_documents(self) -> int | None:
        """Source documents that will have been handed out at the end, judged by what was read so far, or None."""
        size = self.size_read - self.size_skipped
        if self.size_total is None or size <= 0 or not self.documents:
            return None
        return round(self.documents * max(1.0, (self.size_total - self.size_skipped) / size))

    def estimated_tokens(self) -> int | None:
        """Tokens that reading will have handed out at its end, judged by what was read so far; None if unknown."""
        size = self.size_read - self.size_skipped
        if self.size_total is None or size <= 0 or not self.tokens_read:
            return None
        return round(self.tokens_read * max(1.0, (self.size_total - self.size_skipped) / size))
