"""The corpus as a stream of documents ready for the teacher."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from logitstore.corpus.config import CorpusConfig, CorpusCounters
from logitstore.corpus.content import Content, PlainText, read_content, read_key, read_metadata
from logitstore.corpus.files import read_file
from logitstore.corpus.hub import dataset_size, read_dataset
from logitstore.corpus.inputs import CorpusFile, InputRecord, resolve_inputs
from logitstore.corpus.keys import KeyRegistry, window_key
from logitstore.corpus.tokenizing import EncodedText, RenderedText, Tokenizing
from logitstore.errors import CorruptDataError, InvalidArgumentError
from logitstore.records import TokenDocument

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["SourcedDocument", "iter_documents"]

# Enough to keep a parallel tokenizer busy, without holding many long books at a time.
_BATCH_RECORDS = 64
_BATCH_CHARACTERS = 1 << 20


class SourcedDocument(NamedTuple):
    """A document and where in the corpus it comes from.

    Attributes
    ----------
    source_index
        Number of the record in the corpus, empty ones counted. ``iter_documents(..., skip_documents=source_index + 1)``
        goes on behind it.
    window
        Number of this piece of the record, from 0.
    is_last_window
        Whether no further piece of the record follows.
    document
        The document itself.
    """

    source_index: int
    window: int
    is_last_window: bool
    document: TokenDocument


@dataclass(frozen=True)
class _SourceDocument:
    """A record with its content found and written as text; ``text`` is None if there is none."""

    index: int
    key: str
    text: RenderedText | None
    metadata: dict[str, Any] = field(default_factory=dict)
    metadata_omitted: int = 0


def iter_documents(
    config: CorpusConfig, tokenizer: Any, *, skip_documents: int = 0, counters: CorpusCounters | None = None
) -> Iterator[SourcedDocument]:
    """Yield the documents of a corpus, tokenised and cut, always in the same order and under the same keys.

    Parameters
    ----------
    config
        What to read and how.
    tokenizer
        A Hugging Face tokenizer.
    skip_documents
        Leave out the first so many records of the corpus (the cursor is `SourcedDocument.source_index`). They are
        read but not tokenised, and not counted.
    counters
        Added to as documents are handed out; ``files_ignored`` is set.

    Raises
    ------
    InvalidArgumentError
        If an input does not exist or is of no supported kind, or more records are to be skipped than there are.
    CorruptDataError
        If a record cannot be read; the message names its file and line.

    Examples
    --------
    >>> for source_index, window, is_last, document in iter_documents(config, tokenizer):  # doctest: +SKIP
    ...     print(source_index, document.key, len(document.tokens))
    """
    counters = counters if counters is not None else CorpusCounters()
    tokenizing = Tokenizing(
        tokenizer,
        add_special_tokens=config.add_special_tokens,
        append_eos=config.append_eos,
        chat_template=config.chat_template,
        prompts=config.prompts,
    )
    for batch in _batches(_source_documents(config, tokenizing, skip_documents, counters)):
        encoded = iter(tokenizing.encode([source.text for source in batch if source.text is not None]))
        for source in batch:
            text = next(encoded) if source.text is not None else None
            if text is None or len(text.tokens) == 0:
                counters.empty_documents += 1
                continue
            counters.tokens_read += len(text.tokens)
            counters.documents += 1
            counters.metadata_values_omitted += source.metadata_omitted
            for item in _cut(source, text, None if config.prompts else config.seq_len):
                counters.windows += 1
                counters.tokens += len(item.document.tokens)
                yield item


def _source_documents(
    config: CorpusConfig, tokenizing: Tokenizing, skip_documents: int, counters: CorpusCounters
) -> Iterator[_SourceDocument]:
    # Keys made from names and numbers are unique by construction; only those the data brings need watching.
    registry = KeyRegistry() if config.key_field is not None else None
    index = -1
    for index, record in enumerate(islice(_input_records(config, counters), config.limit)):
        if config.limit is not None:
            # Then records are the measure: how much of the last file will be read is not known.
            counters.size_total, counters.size_read = config.limit, index + 1
        if index < skip_documents:
            counters.size_skipped = counters.size_read
            if registry is None:
                continue
        try:
            key = _key_of(record, config, registry)
            if index >= skip_documents:
                yield _read_source(index, key, record, config, tokenizing)
        except CorruptDataError as error:
            raise CorruptDataError(f"{record.place}: {error.message}", path=record.path) from error
    if index + 1 < skip_documents:
        raise InvalidArgumentError(f"cannot skip {skip_documents} documents, the corpus has {index + 1}")


def _input_records(config: CorpusConfig, counters: CorpusCounters) -> Iterator[InputRecord]:
    resolved = resolve_inputs(config)
    counters.files_ignored = resolved.files_ignored
    sizes: list[int | None] = [
        source.filesystem.size(source.path) if isinstance(source, CorpusFile) else dataset_size(source, config.split)
        for source in resolved.inputs
    ]
    counters.size_total = None if None in sizes else sum(size or 0 for size in sizes)
    for source, size in zip(resolved.inputs, sizes, strict=True):
        start = counters.size_read
        records = read_file(source, config) if isinstance(source, CorpusFile) else read_dataset(source, config)
        for record, position in records:
            counters.size_read = start + position
            yield record
        counters.size_read = start + (size or 0)


def _key_of(record: InputRecord, config: CorpusConfig, registry: KeyRegistry | None) -> str:
    key = original = record.key
    # Bare text has no fields; it keeps the key that follows from its place.
    if config.key_field is not None and isinstance(record.fields, dict):
        key, original = read_key(record.fields, config.key_field)
    if registry is not None:
        registry.add(key, original)
    return key


def _read_source(
    index: int, key: str, record: InputRecord, config: CorpusConfig, tokenizing: Tokenizing
) -> _SourceDocument:
    content: Content | None
    if isinstance(record.fields, str):
        content = PlainText(record.fields) if record.fields.strip() else None
        return _SourceDocument(index, key, None if content is None else tokenizing.render(content))
    content = read_content(record.fields, config)
    metadata, omitted = read_metadata(record.fields, config)
    return _SourceDocument(index, key, None if content is None else tokenizing.render(content), metadata, omitted)


def _batches(sources: Iterable[_SourceDocument]) -> Iterator[list[_SourceDocument]]:
    batch: list[_SourceDocument] = []
    characters = 0
    for source in sources:
        batch.append(source)
        characters += 0 if source.text is None else len(source.text.text)
        if len(batch) >= _BATCH_RECORDS or characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _cut(source: _SourceDocument, text: EncodedText, seq_len: int | None) -> Iterator[SourcedDocument]:
    length = len(text.tokens)
    if seq_len is None or length <= seq_len:
        document = TokenDocument(source.key, text.tokens, text.mask, metadata=source.metadata)
        yield SourcedDocument(source.index, 0, True, document)
        return
    windows = -(-length // seq_len)
    for window in range(windows):
        start = window * seq_len
        tokens = text.tokens[start : start + seq_len].copy()
        mask = text.mask[start : start + seq_len].copy()
        # The teacher does not see the next window, so nothing follows the last token of this one.
        mask[-1] = 0
        document = TokenDocument(
            window_key(source.key, window, windows), tokens, mask, parent=(source.key, start), metadata=source.metadata
        )
        yield SourcedDocument(source.index, window, window == windows - 1, document)
