"""Does the teacher say what the store says? It is run again on some documents, twice, to learn how far it may differ.

A teacher's logits depend a little on how documents are batched. What two runs over the same documents differ by, once
in padded batches and once document by document, is the noise; the stored values may differ by a few times as much, by
the last digit of the teacher's own dtype, and by their rounding to float16.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from logitstore import layout
from logitstore.audit.report import Problem
from logitstore.errors import InvalidArgumentError
from logitstore.reader import open_store
from logitstore.teacher import TeacherConfig, load_teacher, plan_batches

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from numpy.typing import NDArray

    from logitstore.container.invariants import Bound
    from logitstore.container.manifest import Manifest
    from logitstore.reader import Document, Store
    from logitstore.teacher import Teacher

__all__ = ["TeacherCheck", "check_teacher"]

_NOISE_FACTOR = 4.0
_FLOOR = 2e-3
"""Nats. Other hardware or software sums in another order even where both runs here agree to the last bit."""
_LAST_DIGITS = 2.0
"""Units in the last place of the largest logit, for the same reason: much for bfloat16, nothing for float32."""
_TOKENS_PER_BATCH = 4096
_ROWS_PER_CHUNK = 256
_LISTED = 20


@dataclass(frozen=True)
class TeacherCheck:
    """Result of `check_teacher`.

    Attributes
    ----------
    ok
        Whether all rows that were compared agree.
    errors
        The first problem of each document that does not.
    documents, rows_compared
        How much was sampled.
    noise, tolerance
        Largest difference between both runs; what the stored values may differ by. Nats.
    largest_difference
        Largest difference between store and teacher beside rounding to float16. Nats.
    notes
        Where the teacher is not the one that the manifest names.
    """

    ok: bool
    errors: list[Problem]
    documents: int
    rows_compared: int
    noise: float
    tolerance: float
    largest_difference: float
    notes: list[str]

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON; a difference that is infinite is None."""
        largest = self.largest_difference if math.isfinite(self.largest_difference) else None
        return {**dataclasses.asdict(self), "largest_difference": largest}


@dataclass(frozen=True)
class _Said:
    """What a run said about the stored entries of a document.

    ``(n, K)`` float32 log-probabilities of the stored ids, ``(n,)`` lse, label's log-probability (NaN without label),
    and the largest log-probability of all ids that are not stored.
    """

    logprobs: NDArray[np.float32]
    lse: NDArray[np.float32]
    label_logprob: NDArray[np.float32]
    best_outside: NDArray[np.float32]

    @property
    def largest_logit(self) -> float:
        """Magnitude of the largest logit among the stored ids."""
        return float(np.nan_to_num(np.abs(self.logprobs + self.lse[:, None])).max(initial=0.0))


def check_teacher(
    path: str | os.PathLike[str],
    model: str,
    *,
    sample_rows: int = 2048,
    seed: int = 0,
    dtype: str | None = None,
    device: str = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    progress: Callable[[str], None] | None = None,
) -> TeacherCheck:
    """Run a teacher over sampled documents and compare.

    Parameters
    ----------
    path
        Directory of the store.
    model, revision, dtype, device, trust_remote_code
        As for `TeacherConfig`; ``dtype`` None takes what the manifest says.
    sample_rows
        Documents are drawn until they have so many rows, at least two if there are two.
    seed
        Seed of the draw.
    progress
        Called with what is done next.

    Raises
    ------
    InvalidArgumentError
        The teacher cannot be loaded or has another vocabulary, or ``sample_rows`` is not positive.
    LogitStoreError
        The store cannot be read.
    """
    if sample_rows < 1:
        raise InvalidArgumentError(f"sample_rows is at least 1, found {sample_rows}")
    say = progress or (lambda _: None)
    with open_store(path, order="stored") as store:
        identity = store.manifest.teacher.get("identity", {})
        say("loading")
        config = TeacherConfig(
            model,
            revision=revision,
            dtype=dtype or identity.get("dtype", "auto"),
            device=device,
            trust_remote_code=trust_remote_code,
        )
        teacher = load_teacher(config)
        if teacher.vocab_size != store.vocab_size:
            raise InvalidArgumentError(
                f"the teacher has a vocabulary of {teacher.vocab_size} ids, the store one of {store.vocab_size}",
                path=model,
            )
        found = teacher.describe()["identity"]
        notes = [
            f"the teacher's {name} is {found[name]}, the store was built with {known}"
            for name, known in identity.items()
            if name in found and found[name] != known
        ]
        documents = _sample(store, sample_rows, seed)
        say("first run, in batches")
        batched: dict[int, _Said] = {}
        for batch in plan_batches([len(document) for document in documents], _TOKENS_PER_BATCH):
            batched |= zip(batch, _run(teacher, [documents[number] for number in batch]), strict=True)
        say("second run, one by one")
        alone = [_run(teacher, [document])[0] for document in documents]
        digit = torch.finfo(teacher.model.dtype).eps * max(said.largest_logit for said in alone)
        holds_top = "samples" not in store.manifest.selection and bool(store.manifest.selection)
    noise = max(_distance(batched[number], said) for number, said in enumerate(alone))
    tolerance = _FLOOR + _NOISE_FACTOR * noise + _LAST_DIGITS * digit
    bound = store.manifest.bound
    differences = [_compare(document, said, holds_top, bound) for document, said in zip(documents, alone, strict=True)]
    problems = [
        _problem(store.manifest, document, by_rule, tolerance)
        for document, by_rule in zip(documents, differences, strict=True)
    ]
    errors = [problem for problem in problems if problem is not None]
    return TeacherCheck(
        ok=not errors,
        errors=errors[:_LISTED],
        documents=len(documents),
        rows_compared=sum(int(np.count_nonzero(_filled(document))) for document in documents),
        noise=noise,
        tolerance=tolerance,
        largest_difference=max(
            float(by_row.max(initial=0.0)) for by_rule in differences for by_row in by_rule.values()
        ),
        notes=notes,
    )


def _sample(store: Store, sample_rows: int, seed: int) -> list[Document]:
    documents: list[Document] = []
    rows = 0
    for number in np.random.default_rng(seed).permutation(len(store)):
        if rows >= sample_rows and len(documents) >= 2:
            break
        document = store[int(number)]
        if _filled(document).any():
            documents.append(document)
            rows += int(np.count_nonzero(_filled(document)))
    if not documents:
        raise InvalidArgumentError("no document of the store has rows to compare", path=store.path)
    return documents


def _filled(document: Document) -> NDArray[np.bool_]:
    return np.asarray((document.ids != layout.UNUSED_ID).any(axis=1))


@torch.inference_mode()
def _run(teacher: Teacher, documents: list[Document]) -> list[_Said]:
    """Run the teacher over one batch; other rows than the stored ones are NaN."""
    said = []
    for document in documents:
        n, slots = document.ids.shape
        said.append(_Said(np.full((n, slots), np.nan, np.float32), *(np.full(n, np.nan, np.float32) for _ in range(3))))
    chunks = teacher.forward_rows(
        [document.tokens for document in documents],
        rows_per_chunk=_ROWS_PER_CHUNK,
        needed=[_filled(document) for document in documents],
    )
    for chunk in chunks:
        logits = chunk.logits.float()
        lse = torch.logsumexp(logits, 1)
        logprobs = logits - lse[:, None]
        labels = chunk.labels
        at_label = logprobs.gather(1, labels.clamp(min=0)[:, None])[:, 0].masked_fill(labels < 0, torch.nan)
        for number in np.unique(chunk.documents):
            here = chunk.documents == number
            rows, target = chunk.rows[here], said[number]
            ids = torch.from_numpy(documents[number].ids[rows].astype(np.int64)).to(logits.device)
            unused = ids == layout.UNUSED_ID
            # Unused slots repeat the row's first id, which changes nothing.
            ids = torch.where(unused, ids[:, :1], ids)
            mine = logprobs[torch.from_numpy(here).to(logits.device)]
            target.logprobs[rows] = mine.gather(1, ids).masked_fill(unused, torch.nan).cpu().numpy()
            target.best_outside[rows] = mine.scatter(1, ids, -torch.inf).amax(1).cpu().numpy()
            target.lse[rows] = lse.cpu().numpy()[here]
            target.label_logprob[rows] = at_label.cpu().numpy()[here]
    return said


def _distance(one: _Said, other: _Said) -> float:
    """Return the largest difference between two runs over the same document."""
    largest = 0.0
    for name in ("logprobs", "lse", "label_logprob"):
        with np.errstate(invalid="ignore"):  # -inf - -inf: both rule it out
            difference = np.abs(getattr(one, name) - getattr(other, name))
        largest = max(largest, float(np.nan_to_num(difference, nan=0.0, posinf=np.inf).max(initial=0.0)))
    return largest


def _compare(document: Document, said: _Said, holds_top: bool, bound: Bound) -> dict[str, NDArray[np.float32]]:
    """Return by rule how much each row differs, beside rounding to float16 and what quantising may lose, in nats."""
    stored = document.values.astype(np.float32)
    expected = said.logprobs if document.stores == "logprob" else said.logprobs + said.lse[:, None]
    rounding = np.abs(expected) * np.float32(2.0**-11) + np.float32(2.0**-24)
    label = np.where(np.isnan(said.label_logprob), np.nan, document.label_logprob)
    with np.errstate(invalid="ignore"):  # -inf - -inf: both rule the label out
        parts = {
            "teacher-value": bound.excess(expected, stored, rounding),
            "teacher-lse": np.abs(document.lse - said.lse)[:, None],
            "teacher-label": np.abs(label - said.label_logprob)[:, None],
        }
        if holds_top:
            least = np.where(np.isnan(said.logprobs), np.inf, said.logprobs).min(axis=1)
            # Two ids may trade places where their log-probabilities differ by no more than both may be off.
            parts["teacher-selection"] = ((said.best_outside - least) / 2)[:, None]
    return {
        rule: np.nan_to_num(difference, nan=0.0, neginf=0.0, posinf=np.inf).max(axis=1)
        for rule, difference in parts.items()
    }


def _problem(
    manifest: Manifest, document: Document, by_rule: dict[str, NDArray[np.float32]], tolerance: float
) -> Problem | None:
    """Return the first row of a document that differs by more than ``tolerance``."""
    for rule, by_row in by_rule.items():
        broken = np.flatnonzero(by_row > tolerance)
        if not len(broken):
            continue
        first = int(broken[0])
        shard = (document.first_row + first) // manifest.rows_per_shard
        name = {"teacher-lse": "lse", "teacher-label": "label_logprob", "teacher-selection": "ids"}.get(rule)
        field = next(field for field in manifest.row_fields if field.name in (name or "logprobs", name or "logits"))
        return Problem(
            field.file_name(shard), shard, document.first_row + first, rule,
            f"row {first} of document {document.key!r} differs from the teacher by {by_row[first]:.4g} nats, "
            f"{tolerance:.2g} are allowed; {len(broken)} of its {len(document)} rows differ",
        )  # fmt: skip
    return None
