"""The teacher writes: a batch of prompts goes through the model once, then token by token over a key-value cache.

The rows are those of the very steps that chose the tokens. Prompts are padded on the left, so that all sequences write
into the same column and distances between columns are distances between tokens; positions are given, and padding is
masked. A sequence that has ended leaves the batch, and its part of the cache with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from logitstore.errors import InvalidArgumentError
from logitstore.teacher.head import call_model, close, probe_logits
from logitstore.teacher.teacher import LogitRows, to_device

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Generator, Iterator, Sequence

    from numpy.typing import NDArray

    from logitstore.teacher.teacher import Teacher

    Choose = Callable[[torch.Tensor, NDArray[np.int64], int], torch.Tensor]

__all__ = ["Decoding", "end_token_ids", "require_decoding"]

_PROBE_UNITS = 16
_PROBE_LEAST = 1e-3
"""What a cached step may differ by from a plain forward, in units in the last place of the largest logit, but at least
this share of it: layers add up the noise, and a wrong position or a seen padding does far more."""


def end_token_ids(teacher: Teacher) -> tuple[int, ...]:
    """Return, ascending, the tokens that end a text: the tokenizer's EOS and those of the generation configuration."""
    configured = getattr(getattr(teacher.model, "generation_config", None), "eos_token_id", None)
    several = configured if isinstance(configured, (list, tuple)) else [configured]
    ids = {int(token) for token in (*several, teacher.tokenizer.eos_token_id) if token is not None}
    return tuple(sorted(token for token in ids if 0 <= token < teacher.vocab_size))


class Decoding:
    """Go on with a batch of prompts.

    Parameters
    ----------
    teacher
        Who writes.
    prompts
        ``(L,)`` tokens of each prompt, at least one; the batch has at most ``rows_per_chunk`` of them.
    limits
        New tokens of each sequence at most, at least 1.
    choose
        Gets ``(n, V)`` logits in the teacher's dtype, the ``n`` sequences' numbers, and how many tokens they have
        been given before; returns ``(n,)`` int64 ids beside the logits.
    end_tokens
        Tokens after which a sequence is finished.
    rows_per_chunk
        Rows whose logits are held, beside those of the step itself.
    all_rows
        Whether to give the rows of prompts, and the row after a sequence's last token, which costs one more step. Else
        only rows whose next token was chosen here.

    Attributes
    ----------
    generated
        Tokens of each sequence so far, without its prompt.
    """

    def __init__(
        self,
        teacher: Teacher,
        prompts: Sequence[NDArray[np.uint32]],
        limits: Sequence[int],
        choose: Choose,
        *,
        end_tokens: Collection[int],
        rows_per_chunk: int,
        all_rows: bool,
    ) -> None:
        teacher.check_documents(prompts, rows_per_chunk)
        if len(prompts) > rows_per_chunk:
            raise InvalidArgumentError(f"{len(prompts)} sequences at a time are more than {rows_per_chunk} rows")
        for prompt, limit in zip(prompts, limits, strict=True):
            if limit < 1 or (teacher.max_length is not None and len(prompt) + limit > teacher.max_length):
                raise InvalidArgumentError(
                    f"a prompt of {len(prompt)} tokens with {limit} new ones must gain at least one and stay within the"
                    f" teacher's context of {teacher.max_length}"
                )
        self._teacher = teacher
        self._prompts = prompts
        self._limits = np.array(limits, np.int64)
        self._choose = choose
        self._end_tokens = np.array(sorted(end_tokens), np.int64)
        self._rows_per_chunk = rows_per_chunk
        self._all_rows = all_rows
        self.generated: list[list[int]] = [[] for _ in prompts]

    @property
    def tokens(self) -> int:
        """Tokens read or written so far, prompts included."""
        return sum(map(len, self._prompts)) + sum(map(len, self.generated))

    @torch.inference_mode()
    def rows(self) -> Iterator[LogitRows]:
        """Decode, and give the rows a chunk at a time; each sequence's in rising order.

        ``documents`` of a chunk is the sequence's number. The logits are good until the next chunk is asked for.
        """
        lengths = np.array([len(prompt) for prompt in self._prompts], np.int64)
        state = _State(self._teacher, self._prompts, int(self._limits.max()))
        logits = yield from self._read_prompts(state, lengths)
        held = _HeldRows(logits, self._rows_per_chunk)
        alive = np.arange(len(self._prompts))
        ended = np.zeros(len(alive), bool)
        for step in range(int(self._limits.max()) + 1):
            labels = np.full(len(alive), -1, np.int64)
            going = np.flatnonzero(~ended)
            if len(going):
                part = logits if len(going) == len(alive) else logits.index_select(0, to_device(going, logits.device))
                labels[going] = self._choose(part, alive[going], step).cpu().numpy()
                del part
            if held.is_full(len(alive)):
                yield held.take()
            held.add(logits, labels, alive, lengths[alive] - 1 + step)
            alive, labels = alive[going], labels[going]
            for sequence, token in zip(alive.tolist(), labels.tolist(), strict=True):
                self.generated[sequence].append(token)
            ended = np.isin(labels, self._end_tokens) | (self._limits[alive] == step + 1)
            if not self._all_rows:
                going, alive, labels = going[~ended], alive[~ended], labels[~ended]
                ended = np.zeros(len(alive), bool)
            if not len(alive):
                break
            state.keep(going)
            logits = state.step(labels)
        if len(held):
            yield held.take()

    def _read_prompts(self, state: _State, lengths: NDArray[np.int64]) -> Generator[LogitRows, None, torch.Tensor]:
        """Run the model over the prompts, yield their rows but the last ones, and return the logits of these."""
        width = state.width
        # Without a head of its own the model gives logits of all columns: it reads so few at a time that they fit.
        columns = width if state.has_head else max(1, self._rows_per_chunk // len(lengths))
        last = None
        for start in range(0, width, columns):
            end = min(start + columns, width)
            said = state.read(start, end)
            if self._all_rows:
                yield from self._prompt_rows(state, said, start, lengths)
            last = said[:, -1]
        assert last is not None
        return state.logits(last)

    def _prompt_rows(
        self, state: _State, said: torch.Tensor, start: int, lengths: NDArray[np.int64]
    ) -> Iterator[LogitRows]:
        width, columns = state.width, said.shape[1]
        sequence, column = np.nonzero(
            np.arange(start, start + columns) >= (width - lengths)[:, None]
        )  # row by row, hence each sequence's rows in rising order
        row = column + start - (width - lengths)[sequence]
        inner = row < lengths[sequence] - 1
        sequence, column, row = sequence[inner], column[inner], row[inner]
        flat = said.flatten(0, 1)
        positions = to_device(sequence * columns + column, flat.device)
        following = zip(sequence.tolist(), (row + 1).tolist(), strict=True)
        labels = np.array([self._prompts[number][after] for number, after in following], np.int64)
        for first in range(0, len(row), self._rows_per_chunk):
            chunk = slice(first, first + self._rows_per_chunk)
            logits = state.logits(flat.index_select(0, positions[chunk]))
            yield LogitRows(logits, to_device(labels[chunk], logits.device), sequence[chunk], row[chunk])


class _State:
    """The model in the middle of a batch: its cache, and where each sequence's tokens lie."""

    def __init__(self, teacher: Teacher, prompts: Sequence[NDArray[np.uint32]], steps: int) -> None:
        self._teacher = teacher
        self.has_head = teacher.head is not None
        self.width = max(map(len, prompts))
        input_ids = np.zeros((len(prompts), self.width), np.int64)
        mask = np.zeros((len(prompts), self.width + steps), np.int64)
        for i, prompt in enumerate(prompts):
            input_ids[i, self.width - len(prompt) :] = prompt
            mask[i, self.width - len(prompt) :] = 1
        positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
        self._input_ids = to_device(input_ids, teacher.device)
        self._mask = to_device(mask, teacher.device)
        self._positions = to_device(positions, teacher.device)
        self._cache: Any = None
        self._end = 0

    def read(self, start: int, end: int) -> torch.Tensor:
        """Read columns of the prompts; return ``(B, end - start, …)`` hidden states or logits."""
        return self._run(self._input_ids[:, start:end])

    def step(self, tokens: NDArray[np.int64]) -> torch.Tensor:
        """Read one more token of each sequence; return ``(B, V)`` logits."""
        return self.logits(self._run(to_device(tokens[:, None], self._teacher.device))[:, -1])

    def _run(self, input_ids: torch.Tensor) -> torch.Tensor:
        start, self._end = self._end, self._end + input_ids.shape[1]
        model = self._teacher.model
        output = call_model(
            model.base_model if self.has_head else model,
            input_ids=input_ids,
            attention_mask=self._mask[:, : self._end],
            position_ids=self._positions[:, start : self._end],
            past_key_values=self._cache,
            use_cache=True,
        )
        self._cache = getattr(output, "past_key_values", None)
        if not hasattr(self._cache, "batch_select_indices"):
            raise InvalidArgumentError(
                f"to write, a teacher needs a key-value cache; {type(model).__name__} gives"
                f" {type(self._cache).__name__} for one"
            )
        said: torch.Tensor = output.last_hidden_state if self.has_head else output.logits
        return said

    def logits(self, said: torch.Tensor) -> torch.Tensor:
        """Return ``(n, V)`` logits of ``(n, …)`` hidden states or padded logits."""
        if self._teacher.head is not None:
            said = self._teacher.head(inputs_embeds=said[None]).logits[0]
        return said[:, : self._teacher.vocab_size]

    def keep(self, sequences: NDArray[np.int64]) -> None:
        """Keep these sequences of the batch, by their places in it."""
        if len(sequences) == len(self._mask):
            return
        # In host memory: the layers of a model that is spread out lie on several devices.
        self._cache.batch_select_indices(torch.from_numpy(sequences))
        places = to_device(sequences, self._teacher.device)
        self._mask, self._positions = self._mask[places], self._positions[places]


class _HeldRows:
    """Rows of several steps, gathered so that what follows gets many at a time."""

    def __init__(self, like: torch.Tensor, size: int) -> None:
        self._size = size
        self._logits = like.new_empty((size, like.shape[1]))
        self._parts: list[tuple[NDArray[np.int64], ...]] = []
        self._rows = 0

    def __len__(self) -> int:
        return self._rows

    def is_full(self, rows: int) -> bool:
        """Whether there is no room for so many more."""
        return self._rows + rows > self._size

    def add(self, logits: torch.Tensor, *columns: NDArray[np.int64]) -> None:
        """Take rows with their labels, sequences and numbers."""
        self._logits[self._rows : self._rows + len(logits)] = logits
        self._parts.append(columns)
        self._rows += len(logits)

    def take(self) -> LogitRows:
        """Give out all rows."""
        labels, documents, rows = (np.concatenate(column) for column in zip(*self._parts, strict=True))
        logits = self._logits[: self._rows]
        self._parts, self._rows = [], 0
        return LogitRows(logits, to_device(labels, logits.device), documents, rows)


@dataclass(frozen=True)
class _Dictation:
    """Instead of choosing: tokens that are known."""

    tokens: NDArray[np.int64]

    def __call__(self, logits: torch.Tensor, sequences: NDArray[np.int64], step: int) -> torch.Tensor:
        return to_device(self.tokens[sequences, step], logits.device)


@torch.inference_mode()
def require_decoding(teacher: Teacher) -> None:
    """Check on a few tokens that writing step by step says what reading says.

    Raises
    ------
    InvalidArgumentError
        The model has no key-value cache, or pays no regard to padding, positions or cache.
    """
    longest = min(8, teacher.max_length or 8)
    if longest < 3:
        raise InvalidArgumentError(f"to write, a teacher needs a context of 3 tokens, this one's is {longest}")
    ids = (np.arange(2 * longest) * max(1, teacher.vocab_size // (2 * longest)) % teacher.vocab_size).reshape(2, -1)
    prompts = [ids[0, : longest - 2].astype(np.uint32), ids[1, :1].astype(np.uint32)]
    limits = [2, longest - 1]
    written = np.zeros((2, longest), np.int64)
    for number, (prompt, limit) in enumerate(zip(prompts, limits, strict=True)):
        written[number, :limit] = ids[number, len(prompt) : len(prompt) + limit]
    decoding = Decoding(
        teacher, prompts, limits, _Dictation(written), end_tokens=(), rows_per_chunk=2 * longest, all_rows=True
    )
    said = torch.zeros((2, longest, teacher.vocab_size), dtype=teacher.model.dtype)
    for chunk in decoding.rows():
        said[chunk.documents, chunk.rows] = chunk.logits.cpu()
    for number in range(2):
        expected = probe_logits(teacher.model, to_device(ids[number][None], teacher.device))[0, :, : teacher.vocab_size]
        if not close(said[number], expected.cpu(), units=_PROBE_UNITS, least=_PROBE_LEAST):
            difference = float((said[number].float() - expected.cpu().float()).abs().max())
            raise InvalidArgumentError(
                "to write, a teacher must say the same step by step and at once; the logits of"
                f" {type(teacher.model).__name__} differ by up to {difference:.3g}"
            )
