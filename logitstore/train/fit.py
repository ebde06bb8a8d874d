"""Whether student, tokenizer, loss and store belong together; asked before the first step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from logitstore.corpus import tokenizer_fingerprint
from logitstore.errors import InvalidArgumentError

if TYPE_CHECKING:
    from logitstore.loss import Loss
    from logitstore.reader import Store

__all__ = ["check_loss", "check_tokenizer", "check_vocabulary"]

_PARTS = {
    "vocabulary": "vocabulary (which token has which id)",
    "merges": "merges",
    "special_tokens": "special tokens (which there are, and which is BOS, EOS, …)",
    "segmentation": "segmentation (how text is cut before merging)",
}


def check_tokenizer(tokenizer: Any, store: Store, *, ignore_mismatch: bool = False) -> None:
    """Compare a tokenizer with the one whose fingerprint is in the store's manifest.

    Parameters
    ----------
    tokenizer
        The student's, of transformers.
    store
        The teacher's rows.
    ignore_mismatch
        Let everything pass but another vocabulary, which would give each id another meaning.

    Raises
    ------
    InvalidArgumentError
        Names the parts that differ.
    """
    theirs, ours = store.manifest.tokenizer, tokenizer_fingerprint(tokenizer)
    if "digest" not in theirs:
        if not ignore_mismatch:
            raise InvalidArgumentError(
                "the store does not say which tokenizer its teacher had; ignore_tokenizer_mismatch"
                " (--ignore-tokenizer-mismatch) takes the student's on trust",
                path=store.path,
            )
        return
    if theirs["digest"] == ours["digest"]:
        return
    differing = [name for name in _PARTS if theirs.get(name) != ours[name]]
    if "vocabulary" in differing:
        sizes = f"{theirs.get('vocab_size')} ids there, {ours['vocab_size']} here"
        hint = f"the student must be trained on the teacher's token ids; {sizes}"
    elif ignore_mismatch:
        return
    else:
        hint = (
            "ids mean the same, so ignore_tokenizer_mismatch (--ignore-tokenizer-mismatch) lets it pass, if the store's"
            " tokens are what the student is meant to read"
        )
    parts = ", ".join(_PARTS[name] for name in differing)
    raise InvalidArgumentError(
        f"the student's tokenizer ({ours['class']}) is not the teacher's ({theirs.get('class')}); they differ in:"
        f" {parts}; {hint}",
        path=store.path,
    )


def check_vocabulary(model: Any, store: Store) -> None:
    """Compare the sizes of a student with the ids of a store. More embeddings than ids are fine: they are padding.

    Raises
    ------
    InvalidArgumentError
        If there are fewer.
    """
    embeddings = int(model.get_input_embeddings().weight.shape[0])
    head = model.get_output_embeddings()
    width = embeddings if head is None else int(head.weight.shape[0])
    if min(embeddings, width) < store.vocab_size:
        raise InvalidArgumentError(
            f"the store has ids up to {store.vocab_size - 1}, but the student has {embeddings} embeddings and {width}"
            f" logits; a student needs at least vocab_size {store.vocab_size} in its configuration",
            path=store.path,
        )


def check_loss(loss: Loss, store: Store) -> None:
    """Look for what a loss needs in what a store has.

    Raises
    ------
    InvalidArgumentError
        If it is not there.
    """
    if "full_logits" in loss.needs:
        raise InvalidArgumentError(f"{loss.name} needs all logits of a teacher that runs along, which no store holds")
    if "counts" in loss.needs and not store.manifest.has_counts:
        raise InvalidArgumentError(
            f"{loss.name} needs the counts of random draws; build the store with --sample", path=store.path
        )
    if "lse_T" in loss.needs and loss_temperature(loss) not in store.manifest.temperatures:
        stored = ", ".join(map(str, store.manifest.temperatures)) or "none"
        raise InvalidArgumentError(
            f"{loss.name} at temperature {loss_temperature(loss)} needs the teacher's log-sum-exp at it; temperatures"
            f" in the store: {stored}; build it with --temperature {loss_temperature(loss)}",
            path=store.path,
        )


def loss_temperature(loss: Loss) -> float:
    """Return the temperature of a loss, or of the one that is mixed with cross-entropy."""
    return float(getattr(loss, "loss", loss).temperature)
