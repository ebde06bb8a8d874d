from __future__ import annotations

from typing import TYPE_CHECKING

from logitstore.errors import InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["plan_batches"]


def plan_batches(lengths: Sequence[int], tokens_per_batch: int) -> list[list[int]]:
    """Group the documents of a window into batches of similar length.

    A pure function of its arguments. Documents are taken by rising length, equal lengths in their order. A batch is
    filled while documents times longest length, padding included, stays within the budget; a document that is longer
    than the budget is a batch of its own.

    Parameters
    ----------
    lengths
        Tokens per document, each at least 1.
    tokens_per_batch
        The budget, at least 1.

    Returns
    -------
    list of list of int
        Indices into ``lengths``, each exactly once.

    Examples
    --------
    >>> plan_batches([5, 1, 9, 2, 30], tokens_per_batch=12)
    [[1, 3], [0], [2], [4]]
    """
    if tokens_per_batch < 1:
        raise InvalidArgumentError(f"tokens_per_batch must be at least 1, not {tokens_per_batch}")
    batches: list[list[int]] = []
    for document in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batches and (len(batches[-1]) + 1) * lengths[document] <= tokens_per_batch:
            batches[-1].append(document)
        else:
            batches.append([document])
    return batches
