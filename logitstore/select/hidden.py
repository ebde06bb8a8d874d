from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from logitstore.errors import InvalidArgumentError
from logitstore.select.refused import require_labels
from logitstore.select.rows import SelectedRows, Values, checked, join_rows, select_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from logitstore.select.selection import Selection

__all__ = ["select_hidden"]

_CHUNK_LOGITS = 2**26


@torch.inference_mode()
def select_hidden(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    selection: Selection,
    labels: torch.Tensor,
    row_keys: torch.Tensor | None = None,
    *,
    bias: torch.Tensor | None = None,
    chunk_rows: int | None = None,
    values: Values = "logprob",
    temperatures: Sequence[float] = (),
) -> SelectedRows:
    """Reduce hidden states to the entries that are stored: the logits exist for a chunk of rows, in their own type.

    For a teacher that is a plain LM head; `logitstore.teacher` runs whatever head a model has, in chunks as well.

    Parameters
    ----------
    hidden
        ``(n, H)``, what goes into the head.
    weight, bias
        ``(V, H)`` and ``(V,)`` or None, of the type of ``hidden``, without padding of the vocabulary.
    chunk_rows
        Rows at a time; by default as many as make 64 Mi logits.
    selection, labels, row_keys, values, temperatures
        As in `select_rows`.

    Raises
    ------
    InvalidArgumentError
        As `select_rows`, or if hidden and weight differ in width or type.
    CorruptDataError
        As `select_rows`.

    Examples
    --------
    >>> from logitstore.select import Selection
    >>> rows = select_hidden(torch.eye(2), torch.tensor([[0.0, 3.0], [2.0, 0.0], [1.0, 1.0]]), Selection(top_k=1),
    ...                      torch.tensor([1, 0]))
    >>> rows.ids
    tensor([[1],
            [0]], dtype=torch.int32)
    """
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1] or hidden.dtype != weight.dtype:
        raise InvalidArgumentError(
            f"hidden (n, H) must fit weight (V, H) in width and type; found {tuple(hidden.shape)} {hidden.dtype}"
            f" and {tuple(weight.shape)} {weight.dtype}"
        )
    n, V = len(hidden), len(weight)
    step = max(1, _CHUNK_LOGITS // V) if chunk_rows is None else chunk_rows
    if step < 1:
        raise InvalidArgumentError(f"chunk_rows must be at least 1, not {chunk_rows}")
    require_labels(labels, V)
    memory = hidden.new_empty(min(step, n), V)
    blocks = []
    for start in range(0, max(n, 1), step):
        rows = slice(start, start + step)
        logits = memory[: len(hidden[rows])]
        if bias is None:
            torch.mm(hidden[rows], weight.T, out=logits)
        else:
            torch.addmm(bias, hidden[rows], weight.T, out=logits)
        keys = None if row_keys is None else row_keys[rows]
        blocks.append(
            select_rows(logits, selection, labels[rows], keys, values=values, temperatures=temperatures, check=False)
        )
    return checked(join_rows(blocks))
