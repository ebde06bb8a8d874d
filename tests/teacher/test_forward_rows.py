from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import transformers

from logitstore.errors import InvalidArgumentError
from logitstore.select import Selection, select_rows
from logitstore.teacher import Teacher, TeacherConfig, load_teacher

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

VOCAB_SIZE = 90
KINDS = ["llama", "gpt2", "gemma2", "granite", "cohere", "bloom", "mamba"]


def random_documents(*lengths: int, seed: int = 0) -> list[Any]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, VOCAB_SIZE, length).astype(np.uint32) for length in lengths]


def collect(
    teacher: Teacher, documents: Sequence[Any], rows_per_chunk: int = 7, needed: Sequence[Any] | None = None
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return logits and labels per document; rows that did not come are NaN and -2."""
    logits = [torch.full((len(tokens), teacher.vocab_size), torch.nan) for tokens in documents]
    labels = [torch.full((len(tokens),), -2) for tokens in documents]
    for chunk in teacher.forward_rows(documents, rows_per_chunk=rows_per_chunk, needed=needed):
        assert 0 < len(chunk) <= rows_per_chunk
        assert chunk.logits.shape == (len(chunk), teacher.vocab_size)
        for i, (document, row) in enumerate(zip(chunk.documents, chunk.rows, strict=True)):
            assert labels[document][row] == -2, "a row came twice"
            logits[document][row] = chunk.logits[i].float()
            labels[document][row] = chunk.labels[i]
    return logits, labels


def plain_forward(teacher: Teacher, tokens: Any) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = teacher.model(torch.from_numpy(tokens.astype(np.int64))[None]).logits[0]
    return logits[:, : teacher.vocab_size].float()


@pytest.mark.parametrize("kind", KINDS)
def test_rows_equal_a_plain_forward_of_each_document_alone(kind: str, teacher_folder: Callable[[str], str]) -> None:
    teacher = load_teacher(TeacherConfig(teacher_folder(kind), device="cpu"))
    assert teacher.head_path == "chunked"
    documents = random_documents(5, 1, 30, 17)
    logits, labels = collect(teacher, documents)
    for tokens, rows, following in zip(documents, logits, labels, strict=True):
        torch.testing.assert_close(rows, plain_forward(teacher, tokens), rtol=1e-4, atol=1e-4)
        assert following.tolist() == [*tokens[1:].tolist(), -1]


@pytest.mark.parametrize("kind", KINDS)
def test_a_document_does_not_feel_its_batch(kind: str, teacher_folder: Callable[[str], str]) -> None:
    teacher = load_teacher(TeacherConfig(teacher_folder(kind), device="cpu"))
    documents = random_documents(9, 3, 40)
    together, _ = collect(teacher, documents, rows_per_chunk=1000)
    for i, tokens in enumerate(documents):
        alone, _ = collect(teacher, [tokens], rows_per_chunk=2)
        torch.testing.assert_close(together[i], alone[0], rtol=1e-4, atol=1e-4)
    others = random_documents(9, 3, 40, seed=1)
    beside_others, _ = collect(teacher, [documents[0], *others[1:]], rows_per_chunk=1000)
    torch.testing.assert_close(together[0], beside_others[0], rtol=1e-5, atol=1e-5)


def test_label_log_probability_is_that_of_the_next_token(teacher_folder: Callable[[str], str]) -> None:
    teacher = load_teacher(TeacherConfig(teacher_folder("llama"), device="cpu"))
    (tokens,) = random_documents(20)
    (chunk,) = teacher.forward_rows([tokens], rows_per_chunk=50)
    selected = select_rows(chunk.logits, Selection(top_k=4), chunk.labels)
    logprobs = plain_forward(teacher, tokens).log_softmax(1)
    for t in range(19):
        torch.testing.assert_close(selected.label_logprob[t], logprobs[t, int(tokens[t + 1])], rtol=1e-4, atol=1e-4)
    assert selected.label_logprob[19].isnan()


def test_only_needed_rows_go_through_the_head(teacher_folder: Callable[[str], str]) -> None:
    teacher = load_teacher(TeacherConfig(teacher_folder("llama"), device="cpu"))
    documents = random_documents(6, 12, 4)
    needed = [np.zeros(6, dtype=np.uint8), np.arange(12) % 3 == 1, np.ones(4, dtype=np.uint8)]
    all_rows, _ = collect(teacher, documents)
    some_rows, _ = collect(teacher, documents, rows_per_chunk=3, needed=needed)
    for everything, some, wanted in zip(all_rows, some_rows, needed, strict=True):
        chosen = torch.from_numpy(wanted.astype(bool))
        torch.testing.assert_close(some[chosen], everything[chosen], rtol=1e-5, atol=1e-5)
        assert some[~chosen].isnan().all()


def test_no_needed_rows_no_forward(teacher_folder: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = load_teacher(TeacherConfig(teacher_folder("llama"), device="cpu"))
    monkeypatch.setattr(teacher, "model", None)
    assert list(teacher.forward_rows(random_documents(3), rows_per_chunk=4, needed=[np.zeros(3)])) == []


@pytest.mark.parametrize("keeps_rows", [True, False])
def test_a_head_that_cannot_be_detached_uses_the_whole_forward(
    keeps_rows: bool, teacher_folder: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = transformers.LlamaForCausalLM
    plain = model.forward
    widths = []

    # Adds to each logit something that only the token ids tell.
    @functools.wraps(plain)
    def forward(self: Any, input_ids: Any = None, logits_to_keep: Any = 0, **others: Any) -> Any:
        output = plain(self, input_ids=input_ids, logits_to_keep=logits_to_keep, **others)
        added = input_ids[..., None].to(output.logits.dtype) / 10 * torch.arange(output.logits.shape[-1])
        output.logits = output.logits + (added if isinstance(logits_to_keep, int) else added[:, logits_to_keep])
        widths.append(output.logits.shape[0] * output.logits.shape[1])
        return output

    def forward_of_all_rows(self: Any, input_ids: Any = None, attention_mask: Any = None) -> Any:
        return forward(self, input_ids=input_ids, attention_mask=attention_mask)

    monkeypatch.setattr(model, "forward", forward if keeps_rows else forward_of_all_rows)
    teacher = load_teacher(TeacherConfig(teacher_folder("llama"), device="cpu"))
    assert teacher.head_path == "full"
    assert teacher.describe()["head_path"] == "full"
    documents = random_documents(5, 8, 30, 4, 1)
    widths.clear()
    logits, labels = collect(teacher, documents, rows_per_chunk=8)
    assert max(widths) == (8 if keeps_rows else 30)
    for tokens, rows, following in zip(documents, logits, labels, strict=True):
        torch.testing.assert_close(rows, plain_forward(teacher, tokens), rtol=1e-4, atol=1e-3)
        assert following.tolist() == [*tokens[1:].tolist(), -1]


def test_a_head_that_runs_alone_but_differs_is_not_used(
    teacher_folder: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = transformers.LlamaForCausalLM
    plain = model.forward

    @functools.wraps(plain)
    def forward(*arguments: Any, **named: Any) -> Any:
        output = plain(*arguments, **named)
        output.logits = output.logits + torch.arange(output.logits.shape[1])[None, :, None] / 100
        return output

    monkeypatch.setattr(model, "forward", forward)
    assert load_teacher(TeacherConfig(teacher_folder("llama"), device="cpu")).head_path == "full"


def test_logits_come_in_the_dtype_of_the_teacher(teacher_folder: Callable[[str], str]) -> None:
    teacher = load_teacher(TeacherConfig(teacher_folder("llama"), dtype="bfloat16", device="cpu"))
    assert teacher.head_path == "chunked"
    chunk = next(iter(teacher.forward_rows(random_documents(4), rows_per_chunk=2)))
    assert chunk.logits.dtype == torch.bfloat16


def test_grad_mode_is_as_before_between_chunks(teacher_folder: Callable[[str], str]) -> None:
    teacher = load_teacher(TeacherConfig(teacher_folder("llama"), device="cpu"))
    for _ in teacher.forward_rows(random_documents(6), rows_per_chunk=2):
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()


@pytest.mark.parametrize(
    ("documents", "arguments", "message"),
    [
        ([], {}, "at least one document"),
        ([np.array([1, 2]), np.array([], dtype=np.uint32)], {}, "document 1 of the batch has none"),
        ([np.ones(65, dtype=np.uint32)], {}, "65 tokens.*context of 64.*--seq-len"),
        ([np.array([3, VOCAB_SIZE])], {}, "token id 90.* 90 ids"),
        ([np.array([3, 4])], {"rows_per_chunk": 0}, "rows_per_chunk must be at least 1"),
        ([np.array([3, 4])], {"needed": [np.ones(3)]}, "2 rows, and 3 entries"),
    ],
)
def test_invalid_arguments(
    documents: list[Any], arguments: dict[str, Any], message: str, teacher_folder: Callable[[str], str]
) -> None:
    teacher = load_teacher(TeacherConfig(teacher_folder("llama"), device="cpu"))
    with pytest.raises(InvalidArgumentError, match=message):
        list(teacher.forward_rows(documents, **({"rows_per_chunk": 8} | arguments)))
