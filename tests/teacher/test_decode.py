"""Writing token by token: the rows of the steps themselves, held against a plain forward of what was written."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import transformers

from logitstore.errors import InvalidArgumentError
from logitstore.teacher import Decoding, Teacher, TeacherConfig, end_token_ids, load_teacher, require_decoding

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

VOCAB_SIZE = 90
# Rotary, learned, sliding window (narrower than the texts), scaled logits, ALiBi.
KINDS = ["llama", "gpt2", "gemma2", "granite", "cohere", "bloom"]
END = (7, 11)


def prompts_of(*lengths: int, seed: int = 0) -> list[Any]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, VOCAB_SIZE, length).astype(np.uint32) for length in lengths]


class Chooser:
    """Draws from a generator per sequence, so that batches do not matter; remembers whom it was asked about."""

    def __init__(self, numbers: Sequence[int] | None = None, greedy: bool = False) -> None:
        self.asked: list[list[int]] = []
        self._numbers = numbers
        self._greedy = greedy

    def __call__(self, logits: torch.Tensor, sequences: Any, step: int) -> torch.Tensor:
        assert logits.shape == (len(sequences), VOCAB_SIZE)
        self.asked.append(sequences.tolist())
        if self._greedy:
            return logits.argmax(1)
        numbers = sequences if self._numbers is None else np.array(self._numbers)[sequences]
        drawn = [np.random.default_rng([int(number), step]).random() for number in numbers]
        cumulative = (logits.double() / 2).softmax(1).cumsum(1)
        target = torch.tensor(drawn, dtype=torch.float64)[:, None] * cumulative[:, -1:]
        return torch.searchsorted(cumulative, target, right=True)[:, 0]


def write(
    teacher: Teacher, prompts: Any, limits: Any, *, rows_per_chunk: int = 9, all_rows: bool = True,
    choose: Any = None, end: Any = END,
) -> tuple[list[np.ndarray], list[torch.Tensor], list[torch.Tensor]]:  # fmt: skip
    """Return tokens, logits and labels per sequence; rows that did not come are NaN and -2."""
    decoding = Decoding(
        teacher, prompts, limits, choose or Chooser(), end_tokens=end, rows_per_chunk=rows_per_chunk, all_rows=all_rows
    )
    chunks = []
    for chunk in decoding.rows():
        assert 0 < len(chunk) <= rows_per_chunk
        chunks.append((chunk.logits.float().clone(), chunk.labels, chunk.documents, chunk.rows))
    tokens = [np.concatenate([p, np.array(g, np.uint32)]) for p, g in zip(prompts, decoding.generated, strict=True)]
    assert decoding.tokens == sum(map(len, tokens))
    logits = [torch.full((len(t), VOCAB_SIZE), torch.nan) for t in tokens]
    labels = [torch.full((len(t),), -2) for t in tokens]
    last = [-1] * len(tokens)
    for part, following, sequences, rows in chunks:
        for i, (sequence, row) in enumerate(zip(sequences.tolist(), rows.tolist(), strict=True)):
            assert row > last[sequence], "rows rise"
            last[sequence] = row
            logits[sequence][row], labels[sequence][row] = part[i], following[i]
    return tokens, logits, labels


def plain_forward(teacher: Teacher, tokens: Any) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = teacher.model(torch.from_numpy(tokens.astype(np.int64))[None]).logits[0]
    return logits[:, :VOCAB_SIZE].float()


@pytest.mark.parametrize("kind", KINDS)
def test_rows_equal_a_plain_forward_of_what_was_written(kind: str, teacher_folder: Callable[[str], str]) -> None:
    teacher = load_teacher(TeacherConfig(teacher_folder(kind), device="cpu"))
    require_decoding(teacher)
    prompts = prompts_of(5, 1, 20, 9, 3)
    limits = [30, 40, 44, 1, 30]
    tokens, logits, labels = write(teacher, prompts, limits)
    assert len({len(t) for t in tokens}) > 2
    for prompt, limit, text, rows, following in zip(prompts, limits, tokens, logits, labels, strict=True):
        assert text[: len(prompt)].tolist() == prompt.tolist()
        new = text[len(prompt) :].tolist()
        assert 1 <= len(new) <= limit
        assert not set(new[:-1]) & set(END)
        assert len(new) == limit or new[-1] in END
        torch.testing.assert_close(rows, plain_forward(teacher, text), rtol=1e-4, atol=1e-4)
        assert following.tolist() == [*text[1:].tolist(), -1]


@pytest.mark.parametrize("keeps_head", [True, False])
def test_only_rows_before_chosen_tokens(
    keeps_head: bool, teacher_folder: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = load_teacher(TeacherConfig(teacher_folder("llama"), device="cpu"))
    if not keeps_head:
        monkeypatch.setattr(teacher, "head", None)
    prompts = prompts_of(5, 1, 20)
    whole, every, _ = write(teacher, prompts, [9, 20, 6])
    tokens, logits, labels = write(teacher, prompts, [9, 20, 6], all_rows=False)
    for prompt, a, b, rows, all_rows, following in zip(prompts, whole, tokens, logits, every, labels, strict=True):
        assert a.tolist() == b.tolist()
        chosen = slice(len(prompt) - 1, len(b) - 1)
        torch.testing.assert_close(rows[chosen], all_rows[chosen], rtol=1e-5, atol=1e-5)
        assert rows[: len(prompt) - 1].isnan().all()
        assert rows[-1].isnan().all()
        assert following[chosen].tolist() == b[len(prompt) :].tolist()


@pytest.mark.parametrize("rows_per_chunk", [3, 8, 1000])
def test_a_teacher_without_a_head_of_its_own(
    rows_per_chunk: int, teacher_folder: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = load_teacher(TeacherConfig(teacher_folder("llama"), device="cpu"))
    prompts = prompts_of(5, 1, 20)
    expected, rows, _ = write(teacher, prompts, [9, 20, 6])
    monkeypatch.setattr(teacher, "head", None)
    tokens, logits, _ = write(teacher, prompts, [9, 20, 6], rows_per_chunk=rows_per_chunk)
    for number in range(3):
        assert tokens[number].tolist() == expected[number].tolist()
        torch.testing.assert_close(logits[number], rows[number], rtol=1e-4, atol=1e-4)


def test_the_batch_does_not_change_what_is_written(teacher_folder: Callable[[str], str]) -> None:
    teacher = load_teacher(TeacherConfig(teacher_folder("llama"), device="cpu", dtype="float32"))
    prompts = prompts_of(5, 1, 20, 9, 3)
    together, _, _ = write(teacher, prompts, [30] * 5)
    for number, prompt in enumerate(prompts):
        ((alone,), _, _) = write(teacher, [prompt], [30], choose=Chooser([number]))
        assert alone.tolist() == together[number].tolist()


def test_finished_sequences_leave_the_batch(teacher_folder: Callable[[str], str]) -> None:
    teacher = load_teacher(TeacherConfig(teacher_folder("llama"), device="cpu"))
    read = []
    handle = teacher.model.base_model.register_forward_pre_hook(
        lambda _, arguments, named: read.append(tuple(named["input_ids"].shape)), with_kwargs=True
    )
    choose = Chooser()
    write(teacher, prompts_of(4, 4, 4), [1, 5, 3], choose=choose, end=())
    handle.remove()
    # One more step than tokens gives the row after the last token.
    assert read == [(3, 4), (3, 1), (2, 1), (2, 1), (1, 1), (1, 1)]
    assert choose.asked == [[0, 1, 2], [1, 2], [1, 2], [1], [1]]
    read.clear()
    handle = teacher.model.base_model.register_forward_pre_hook(
        lambda _, arguments, named: read.append(tuple(named["input_ids"].shape)), with_kwargs=True
    )
    write(teacher, prompts_of(4, 4, 4), [1, 5, 3], end=(), all_rows=False)
    handle.remove()
    assert read == [(3, 4), (2, 1), (2, 1), (1, 1), (1, 1)]


def test_greedy_equals_the_argmax_and_transformers(teacher_folder: Callable[[str], str]) -> None:
    teacher = load_teacher(TeacherConfig(teacher_folder("llama"), device="cpu"))
    prompts = prompts_of(6, 2)
    tokens, logits, _ = write(teacher, prompts, [25, 25], choose=Chooser(greedy=True), end=())
    for prompt, text, rows in zip(prompts, tokens, logits, strict=True):
        assert text[len(prompt) :].tolist() == rows[len(prompt) - 1 : -1].argmax(1).tolist()
        model = transformers.AutoModelForCausalLM.from_pretrained(teacher.describe()["id"])
        theirs = model.generate(
            torch.from_numpy(prompt.astype(np.int64))[None], attention_mask=torch.ones(1, len(prompt)), do_sample=False,
            max_new_tokens=25, eos_token_id=-1, pad_token_id=0, suppress_tokens=list(range(VOCAB_SIZE, 96)),
        )  # fmt: skip
        assert text.tolist() == theirs[0].tolist()


def test_end_tokens_are_those_of_tokenizer_and_generation_configuration(
    teacher_folder: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = load_teacher(TeacherConfig(teacher_folder("llama"), device="cpu"))
    assert end_token_ids(teacher) == (0,)
    monkeypatch.setattr(teacher.model.generation_config, "eos_token_id", [5, 3, 95])
    assert end_token_ids(teacher) == (3, 5)  # 95 is padding of the vocabulary
    teacher.tokenizer.eos_token = "w8"
    assert end_token_ids(teacher) == (3, 5, 8)
    monkeypatch.setattr(teacher.model.generation_config, "eos_token_id", None)
    teacher.tokenizer.eos_token = None
    assert end_token_ids(teacher) == ()


@pytest.mark.parametrize("kind", KINDS)
def test_an_eager_bfloat16_teacher_may_write(kind: str, teacher_folder: Callable[[str], str]) -> None:
    require_decoding(
        load_teacher(TeacherConfig(teacher_folder(kind), device="cpu", dtype="bfloat16", attn_implementation="eager"))
    )


def test_a_teacher_without_a_key_value_cache_is_refused(teacher_folder: Callable[[str], str]) -> None:
    teacher = load_teacher(TeacherConfig(teacher_folder("mamba"), device="cpu"))
    with pytest.raises(InvalidArgumentError, match="key-value cache; MambaForCausalLM"):
        require_decoding(teacher)


@pytest.mark.parametrize("ignored", ["position_ids", "attention_mask"])
def test_a_teacher_that_ignores_padding_is_refused(
    ignored: str, teacher_folder: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = load_teacher(TeacherConfig(teacher_folder("gpt2"), device="cpu"))
    plain = teacher.model.base_model.forward

    @functools.wraps(plain)
    def forward(*arguments: Any, **named: Any) -> Any:
        return plain(*arguments, **(named | {ignored: None}))

    monkeypatch.setattr(teacher.model.base_model, "forward", forward)
    with pytest.raises(InvalidArgumentError, match="the same step by step and at once"):
        require_decoding(teacher)


@pytest.mark.parametrize(
    ("lengths", "limits", "rows_per_chunk", "message"),
    [
        ([3, 60], [4, 5], 8, "60 tokens with 5 new ones .* context of 64"),
        ([3], [0], 8, "3 tokens with 0 new ones"),
        ([3, 3], [1, 1], 1, "2 sequences at a time are more than 1 rows"),
        ([3, 0], [1, 1], 8, "document 1 of the batch has none"),
    ],
)
def test_invalid_arguments(
    lengths: list[int], limits: list[int], rows_per_chunk: int, message: str, teacher_folder: Callable[[str], str]
) -> None:
    teacher = load_teacher(TeacherConfig(teacher_folder("llama"), device="cpu"))
    with pytest.raises(InvalidArgumentError, match=message):
        write(teacher, prompts_of(*lengths), limits, rows_per_chunk=rows_per_chunk)


def test_a_text_may_fill_the_context(teacher_folder: Callable[[str], str]) -> None:
    for kind in ("llama", "gpt2"):
        teacher = load_teacher(TeacherConfig(teacher_folder(kind), device="cpu"))
        ((text,), (rows,), _) = write(teacher, prompts_of(3), [61], end=())
        assert len(text) == 64
        torch.testing.assert_close(rows, plain_forward(teacher, text), rtol=1e-4, atol=1e-4)
