"""Off by one, the silent failure: on every way to a training step, each row must be what the teacher says there.

The teacher is run again over the texts, without a store in between, and every row of every batch is compared with what
it says at that very position about the very next token. Nothing is trained.
"""

from __future__ import annotations

import gc
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import step
import torch
import transformers
import webdataset as wds
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

import logitstore
from examples import accelerate_loop, datasets_iterable, hf_trainer, pytorch_loop, webdataset_pipeline
from logitstore.loss import TeacherRows
from logitstore.stream import BatchStream, Collate, DocumentDataset
from tests.tiny_stores import make_stores

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.tiny_stores import TinyStores

    Batch = dict[str, torch.Tensor]

pytestmark = [
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
    # WebDataset leaves closing its files to the garbage collector.
    pytest.mark.filterwarnings("ignore:unclosed file .*tar:ResourceWarning"),
]

CUT = 20


@dataclass(frozen=True)
class Said:
    """What the teacher says about a text: log-probabilities ``(n, V)`` and lse after each of n tokens; and targets."""

    tokens: torch.Tensor
    logprobs: torch.Tensor
    lse: torch.Tensor
    mask: torch.Tensor


@pytest.fixture(scope="module", autouse=True)
def _one_thread_of_the_cpu() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyStores:
    return make_stores(tmp_path_factory.mktemp("alignment"))


@pytest.fixture(scope="module")
def live(tiny: TinyStores) -> list[Said]:
    """What the teacher says about each document, alone, in the order of the store."""
    teacher = transformers.AutoModelForCausalLM.from_pretrained(tiny.teacher, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny.teacher)
    documents = []
    for text, prompt in zip(tiny.texts, tiny.prompts, strict=True):
        encoded = tokenizer(text, return_offsets_mapping=True)
        tokens = torch.tensor(encoded["input_ids"])
        with torch.no_grad():
            logits = teacher(input_ids=tokens[None]).logits[0]
        mask = torch.zeros(len(tokens), dtype=torch.bool)
        mask[:-1] = torch.tensor([stop > len(prompt) for _, stop in encoded["offset_mapping"][1:]], dtype=torch.bool)
        documents.append(Said(tokens, logits.log_softmax(-1), logits.logsumexp(-1), mask))
    return documents


def close(stored: torch.Tensor, said: torch.Tensor) -> bool:
    """Whether they are equal but for float16, of which both ends of a comparison have at most a last digit."""
    return bool(((stored.float() - said).abs() <= 2**-10 * said.abs() + 1e-3).all())


def check(batch: Batch, live: list[Said], *, cut: int | None = None) -> int:
    """Compare every row with what the teacher says; return how many there are.

    `cut` is the length of the pieces that long documents are in: the teacher has seen all of the document.
    """
    batch = padded(batch)
    there = batch["attention_mask"]
    assert (batch["labels"][~there] == -100).all()
    assert not batch["mask"][~there].any()
    assert (batch["ids"][~there] == -1).all()
    assert (batch["document_ids"][~there] == -1).all()
    for b, start, stop in segments(batch):
        check_piece({name: batch[name][b, start:stop] for name in ROW_FIELDS}, live, cut)
    return int(there.sum())


ROW_FIELDS = (
    "tokens", "labels", "mask", "position_ids", "document_ids", "ids", "logprobs", "lse", "label_logprob",
)  # fmt: skip


def check_piece(piece: Batch, live: list[Said], cut: int | None) -> None:
    n, number = len(piece["tokens"]), int(piece["document_ids"][0])
    assert (piece["document_ids"] == number).all()
    assert piece["position_ids"].tolist() == list(range(n))
    document = live[number]
    length = len(document.tokens)
    starts = [
        start
        for start in range(0, length, cut or length)
        if min(length, start + (cut or length)) == start + n
        and torch.equal(document.tokens[start : start + n], piece["tokens"])
    ]
    assert len(starts) == 1, f"{n} tokens are found in document {number} at {starts}"
    rows = slice(starts[0], starts[0] + n)
    said, mask = document.logprobs[rows], document.mask[rows]
    following = document.tokens[rows.start + 1 : rows.stop + 1]

    assert close(piece["logprobs"], said.gather(1, piece["ids"].long()))
    kept = torch.zeros_like(said, dtype=torch.bool).scatter(1, piece["ids"].long(), value=True)
    worst, best_other = piece["logprobs"].float().amin(1), said.masked_fill(kept, -torch.inf).amax(1)
    assert (best_other <= worst + 2**-10 * worst.abs() + 1e-3).all()
    top = piece["ids"].gather(1, piece["logprobs"].float().argmax(1, keepdim=True)).long()
    assert close(said.gather(1, top)[:, 0], said.amax(1))
    assert torch.allclose(piece["lse"], document.lse[rows], atol=1e-3)

    assert torch.equal(piece["mask"], mask)
    next_tokens = torch.full((n,), -100)
    next_tokens[: len(following)] = following
    assert torch.equal(piece["labels"], torch.where(mask, next_tokens, -100))
    label_logprob = piece["label_logprob"]
    assert close(label_logprob[: len(following)], said[: len(following)].gather(1, following[:, None])[:, 0])
    assert torch.equal(piece["labels"] >= 0, mask)
    if rows.stop == length:
        assert piece["labels"][-1] == -100
        assert label_logprob[-1].isnan()


def check_student(student: Any, batch: Batch, vocab_size: int) -> None:
    """Check that a student with the teacher's weights says, where the loss looks, what is stored for that row."""
    with torch.no_grad():
        said = step.student_logits(student, batch, vocab_size).log_softmax(-1)
    rows, there = TeacherRows.from_batch(batch), batch["attention_mask"]
    assert said.shape[:-1] == rows.shape
    assert close(rows.logprobs[there], said.gather(2, rows.ids.long().clamp(min=0))[there])
    targets = rows.labels >= 0
    assert targets.any()
    assert close(rows.label_logprob[targets], said[targets].gather(1, rows.labels[targets][:, None])[:, 0])


def padded(batch: Batch) -> Batch:
    """The batch with K slots a row, if its entries are flat."""
    if "entry_offsets" not in batch:
        return batch
    shape, counts = batch["tokens"].shape, batch["entry_offsets"].diff()
    used = torch.arange(int(counts.max())) < counts[:, None]
    entries = {}
    for name, empty in (("ids", -1), ("logprobs", -torch.inf)):
        entries[name] = torch.full(used.shape, empty, dtype=batch[name].dtype)
        entries[name][used] = batch[name]
        entries[name] = entries[name].view(*shape, -1)
    return batch | entries


def segments(batch: Batch) -> list[tuple[int, int, int]]:
    """Sequence, first row and end of every piece."""
    there = batch["attention_mask"]
    first = there & (batch["position_ids"] == 0)
    found = []
    for b in range(len(there)):
        edges = [*first[b].nonzero()[:, 0].tolist(), int(there[b].sum())]
        found += [(b, start, stop) for start, stop in itertools.pairwise(edges)]
    return found


def as_batch(document: logitstore.Document) -> Batch:
    """A document as someone would take it apart who does without `Collate`."""
    mask = torch.from_numpy(document.mask.copy()).bool()
    arrays = {
        "tokens": document.tokens.astype("int64"), "ids": document.ids.astype("int32"), "logprobs": document.logprobs,
        "lse": document.lse, "label_logprob": document.label_logprob,
    }  # fmt: skip
    batch = {name: torch.tensor(array)[None] for name, array in arrays.items()}
    n = len(document)
    return batch | {
        "labels": torch.where(mask, torch.tensor(document.labels), -100)[None],
        "mask": mask[None],
        "attention_mask": torch.ones(1, n, dtype=torch.bool),
        "position_ids": torch.arange(n)[None],
        "document_ids": torch.full((1, n), document.index),
    }


def streamed(workers: int = 0, cut: int | None = None, **collate: Any) -> Callable[[Path], Iterator[Batch]]:
    def load(path: Path) -> Iterator[Batch]:
        stream = BatchStream(path, 3, collate=Collate(seq_len=cut, **collate))
        yield from DataLoader(stream, batch_size=None, num_workers=workers)

    return load


def stateful(path: Path) -> Iterator[Batch]:
    yield from StatefulDataLoader(BatchStream(path, 3, collate=Collate(seq_len=160, pack=True)), batch_size=None)


def map_style(path: Path) -> Iterator[Batch]:
    yield from DataLoader(DocumentDataset(path), batch_size=3, shuffle=True, collate_fn=Collate())


def sourced(path: Path) -> Iterator[Batch]:
    yield from wds.DataPipeline(BatchStream(path, 3, collate=Collate(seq_len=160, pack=True)))


def opened(path: Path) -> Iterator[Batch]:
    with logitstore.open(path) as store:
        yield from map(as_batch, store)


PATHS = {
    "padded": (streamed(), None),
    "padded, by logit": (streamed(order="logit", multiple_of=8), None),
    "padded by workers": (streamed(workers=2), None),
    "packed": (streamed(cut=160, pack=True), 160),
    "cut": (streamed(cut=CUT), CUT),
    "packed and cut": (streamed(cut=CUT, pack=True), CUT),
    "flat": (streamed(entries="flat"), None),
    "packed and flat": (streamed(cut=160, pack=True, entries="flat"), 160),
    "StatefulDataLoader": (stateful, 160),
    "DocumentDataset": (map_style, None),
    "DataPipeline": (sourced, 160),
    "logitstore.open": (opened, None),
}


@pytest.mark.parametrize("container", ["zarr", "tars"])
@pytest.mark.parametrize("name", PATHS)
def test_each_row_is_what_the_teacher_says_there(name: str, container: str, tiny: TinyStores, live: list[Said]) -> None:
    load, cut = PATHS[name]
    rows = sum(check(batch, live, cut=cut) for batch in load(getattr(tiny, container)))
    assert rows == sum(len(document.tokens) for document in live)


@pytest.mark.parametrize(
    ("example", "containers"),
    [
        (pytorch_loop, ("zarr", "tars")),
        (hf_trainer, ("zarr", "tars")),
        (accelerate_loop, ("zarr", "tars")),
        (webdataset_pipeline, ("tars",)),
        (datasets_iterable, ("zarr", "tars")),
    ],
    ids=["pytorch_loop", "hf_trainer", "accelerate_loop", "webdataset_pipeline", "datasets_iterable"],
)
def test_the_examples_train_on_such_rows(
    example: Any,
    containers: tuple[str, ...],
    tiny: TinyStores,
    live: list[Said],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The student is the teacher, and learns at rate 0: its own logits must be the stored ones, row by row."""
    seen: list[int] = []

    def spy(student: Any, batch: Batch, loss: Any, vocab_size: int, **options: Any) -> torch.Tensor:
        seen.append(check(batch, live))
        check_student(student, batch, vocab_size)
        return step.distillation_loss(student, batch, loss, vocab_size, **options)

    monkeypatch.setattr(example, "distillation_loss", spy)
    for container in containers:
        folder = tmp_path / container
        folder.mkdir()
        monkeypatch.chdir(folder)
        seen.clear()
        # A batch takes in the whole epoch.
        options = ("--steps", "2", "--lr", "0", "--batch-size", "32", "--seq-len", "256")
        accumulate = ("--accumulate", "1") if example is accelerate_loop else ()
        example.main([str(getattr(tiny, container)), str(tiny.teacher), *options, *accumulate])
        assert seen == [sum(len(document.tokens) for document in live)] * 2
    gc.collect()  # what WebDataset has left open


def rolled(batch: Batch, by: int, *names: str) -> Batch:
    return batch | {name: batch[name].roll(by, 1) for name in names}


SHIFTS: dict[str, tuple[str, ...]] = {
    "rows": ("ids", "logprobs", "lse", "label_logprob"),
    "entries": ("ids", "logprobs"),
    "ids": ("ids",),
    "lse": ("lse",),
    "label_logprob": ("label_logprob",),
    "labels": ("labels",),
    "labels and mask": ("labels", "mask"),
    "mask": ("mask",),
    "tokens": ("tokens",),
    "tokens and labels": ("tokens", "labels", "mask"),
    "positions": ("position_ids",),
    "documents": ("document_ids",),
}


@pytest.mark.parametrize("by", [-1, 1])
@pytest.mark.parametrize("name", SHIFTS)
def test_a_shift_by_one_is_noticed(name: str, by: int, tiny: TinyStores, live: list[Said]) -> None:
    for collate in (Collate(), Collate(seq_len=160, pack=True)):
        for batch in BatchStream(tiny.zarr, 3, collate=collate):
            check(batch, live, cut=collate.seq_len)
            with pytest.raises(AssertionError):
                check(rolled(batch, by, *SHIFTS[name]), live, cut=collate.seq_len)


def test_the_next_document_is_noticed(tiny: TinyStores, live: list[Said]) -> None:
    batch = next(iter(BatchStream(tiny.zarr, 3)))
    with pytest.raises(AssertionError):
        check(batch | {"document_ids": (batch["document_ids"] + 1) % len(live)}, live)


def test_what_a_student_must_not_see_is_noticed(tiny: TinyStores) -> None:
    """That the teacher's own weights give the stored logits is only so if packed documents are kept apart."""
    student = transformers.AutoModelForCausalLM.from_pretrained(tiny.teacher, dtype=torch.float32).eval()
    stream = BatchStream(tiny.zarr, 3, collate=Collate(seq_len=160, pack=True))
    vocab_size = stream.store.vocab_size
    for batch in stream:
        check_student(student, batch, vocab_size)
        if (batch["document_ids"].diff() != 0).any():
            through = torch.arange(160).expand_as(batch["position_ids"])
            with pytest.raises(AssertionError):
                check_student(student, batch | {"position_ids": through}, vocab_size)
        for names in (SHIFTS["rows"], ("labels",), ("tokens",)):
            with pytest.raises(AssertionError):
                check_student(student, rolled(batch, 1, *names), vocab_size)
