"""A teacher that writes: what it is asked, and the prompts, batch by batch.

A window of such a build is one batch. Which prompts it holds follows from the prompts and the configuration, so a build
that resumes at the start of one computes the same rows as one that was never interrupted. How many rows it will have
is known only once it is written.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from logitstore.build.windows import Cursor, Window
from logitstore.corpus import iter_documents, record_key, sample_key
from logitstore.errors import InvalidArgumentError
from logitstore.records import TokenDocument
from logitstore.select import Sampling
from logitstore.teacher import end_token_ids

if TYPE_CHECKING:
    from collections.abc import Iterator

    from logitstore.build.config import BuildConfig
    from logitstore.corpus import CorpusCounters
    from logitstore.teacher import Teacher

__all__ = ["GenerationConfig", "generation_settings", "iter_prompt_windows", "new_tokens"]


@dataclass(frozen=True)
class GenerationConfig:
    """How a teacher writes.

    Attributes
    ----------
    documents
        Write so many documents from no prompt at all, from the tokenizer's BOS on, or its EOS if it has no BOS. None
        goes on from the prompts of the corpus.
    samples_per_prompt
        Documents written for each prompt.
    max_new_tokens
        Tokens written per document at most, the one that ends it included. A document also ends at ``seq_len``.
    sampling
        How the next token is drawn.
    end_tokens
        Tokens that end a document, as the vocabulary spells them. None: the tokenizer's EOS and those that the model's
        generation configuration names.

    Raises
    ------
    InvalidArgumentError
        If a value is out of range.
    """

    documents: int | None = None
    samples_per_prompt: int = 1
    max_new_tokens: int = 512
    sampling: Sampling = field(default_factory=Sampling)
    end_tokens: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("documents", "samples_per_prompt", "max_new_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InvalidArgumentError(f"{name} is at least 1, found {value}")
        if self.documents is not None and self.samples_per_prompt != 1:
            raise InvalidArgumentError("without prompts, documents says how many are written; leave samples_per_prompt")


def generation_settings(generation: GenerationConfig, teacher: Teacher) -> dict[str, Any]:
    """Return, as JSON, what the manifest keeps under ``build.generation``.

    Raises
    ------
    InvalidArgumentError
        An end token is not in the vocabulary, or there is nothing to start from.
    """
    return {
        **dataclasses.asdict(generation.sampling),
        "max_new_tokens": generation.max_new_tokens,
        "samples_per_prompt": generation.samples_per_prompt,
        "documents": generation.documents,
        "start_token": None if generation.documents is None else _start_token(teacher.tokenizer),
        "end_tokens": list(_end_tokens(generation, teacher)),
    }


def _start_token(tokenizer: Any) -> int:
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    raise InvalidArgumentError(
        "to write from no prompt, the teacher's tokenizer needs a BOS or an EOS token, and has neither; give prompts"
    )


def _end_tokens(generation: GenerationConfig, teacher: Teacher) -> tuple[int, ...]:
    if generation.end_tokens is None:
        return end_token_ids(teacher)
    vocabulary = teacher.tokenizer.get_vocab()
    for token in generation.end_tokens:
        if token not in vocabulary:
            raise InvalidArgumentError(f"an end token must be a token of the vocabulary, {token!r} is none")
    return tuple(sorted({int(vocabulary[token]) for token in generation.end_tokens}))


def new_tokens(config: BuildConfig, document: TokenDocument) -> int:
    """Return how many tokens may be written behind a prompt.

    Raises
    ------
    InvalidArgumentError
        There is no room for any.
    """
    assert config.generation is not None
    assert config.corpus.seq_len is not None
    room = config.corpus.seq_len - len(document.tokens)
    if room < 1:
        raise InvalidArgumentError(
            f"a document may have {config.corpus.seq_len} tokens, but the prompt of {document.key!r} has"
            f" {len(document.tokens)}, which leaves no room to write; shorten it, or raise --seq-len (up to the"
            " teacher's context) or --tokens-per-batch"
        )
    return min(room, config.generation.max_new_tokens)


def iter_prompt_windows(
    config: BuildConfig, tokenizer: Any, start: Cursor, counters: CorpusCounters
) -> Iterator[Window]:
    """Yield the prompts, a batch in each window, from ``start`` on.

    A batch is filled with consecutive prompts while their number times the longest sequence that may come of them stays
    within ``tokens_per_batch``, and their number within ``rows_per_chunk``. The ``row`` of a cursor is that of
    ``start``.
    """
    prompts: list[TokenDocument] = []
    cursor, longest_prompt, most_new = start, 0, 0
    for record, sample, prompt in _prompts(config, tokenizer, start, counters):
        new = new_tokens(config, prompt)
        size = max(longest_prompt, len(prompt.tokens)) + max(most_new, new)
        fits = (len(prompts) + 1) * size <= config.tokens_per_batch and len(prompts) < config.rows_per_chunk
        if prompts and not fits:
            yield Window(cursor, tuple(prompts))
            cursor = dataclasses.replace(cursor, document=cursor.document + len(prompts))
            prompts, longest_prompt, most_new = [], 0, 0
        if not prompts:
            cursor = dataclasses.replace(cursor, record=record, piece=sample)
        prompts.append(prompt)
        longest_prompt, most_new = max(longest_prompt, len(prompt.tokens)), max(most_new, new)
    if prompts:
        yield Window(cursor, tuple(prompts))


def _prompts(
    config: BuildConfig, tokenizer: Any, start: Cursor, counters: CorpusCounters
) -> Iterator[tuple[int, int, TokenDocument]]:
    """Yield each prompt as often as it is to be gone on with, with the number of its record and of the sample."""
    assert config.generation is not None
    samples = config.generation.samples_per_prompt
    if config.generation.documents is not None:
        tokens = np.array([_start_token(tokenizer)], np.uint32)
        counters.size_total, counters.size_skipped = config.generation.documents, start.record
        for number in range(start.record, config.generation.documents):
            counters.size_read = number + 1
            counters.documents += 1
            counters.windows += 1
            counters.tokens += 1
            yield number, 0, TokenDocument(record_key("generated", number), tokens, np.zeros(1, np.uint8))
        return
    for item in iter_documents(config.corpus, tokenizer, skip_documents=start.record, counters=counters):
        first = start.piece if item.source_index == start.record else 0
        for sample in range(first, samples):
            key = sample_key(item.document.key, sample, samples)
            yield item.source_index, sample, dataclasses.replace(item.document, key=key)
