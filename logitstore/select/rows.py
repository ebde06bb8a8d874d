from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Literal

import torch

from logitstore.errors import InvalidArgumentError
from logitstore.kernels import use_kernels
from logitstore.select.draws import count_entries, draw_ids
from logitstore.select.lse import log_sum_exp
from logitstore.select.refused import refusals, require_labels, require_sound
from logitstore.select.top import UNUSED, nucleus_ids, top_k_ids, top_p_ids

if TYPE_CHECKING:
    from collections.abc import Sequence

    from logitstore.select.selection import Selection

__all__ = ["SelectedRows", "Values", "checked", "join_rows", "select_rows"]

Values = Literal["logprob", "logit"]

# A CPU is three times as fast on rows that stay in its cache; an accelerator wants many rows but has temporaries of
# up to 16 bytes per logit.
_BLOCK_LOGITS_CPU = 2**20
_BLOCK_LOGITS_DEVICE = 2**26
# The kernels have half a byte at 5 %.
_BLOCK_LOGITS_KERNELS = 2**29

_BELOW_FP16 = 65536.0
"""A log-probability of minus this is -inf as float16 (which ends at 65504 and rounds up from 65520)."""


@dataclass(frozen=True)
class SelectedRows:
    """What is kept of ``n`` rows of logits, on the device of the logits.

    Attributes
    ----------
    ids
        ``(n, K)`` int32, ascending within a row; unused slots come last and hold -1.
    values
        ``(n, K)`` float16, in the order of ``ids``: log-probabilities or logits; unused slots hold ``-inf``.
    lse
        ``(n,)`` float32, log-sum-exp over the whole vocabulary.
    label_logprob
        ``(n,)`` float32, log-probability of the label; NaN where there is none, ``-inf`` where the
        teacher rules the label out.
    counts
        ``(n, K)`` uint8, draws per id, or None without draws.
    lse_T
        ``(n, m)`` float32, log-sum-exp of ``logits / T``, or None without temperatures.
    refused
        ``(n,)`` float32, not 0 where `select_rows` would have raised, for `refused_row`; None where it has looked.
    """

    ids: torch.Tensor
    values: torch.Tensor
    lse: torch.Tensor
    label_logprob: torch.Tensor
    counts: torch.Tensor | None = None
    lse_T: torch.Tensor | None = None
    refused: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.ids)


@torch.inference_mode()
def select_rows(
    logits: torch.Tensor,
    selection: Selection,
    labels: torch.Tensor,
    row_keys: torch.Tensor | None = None,
    *,
    values: Values = "logprob",
    temperatures: Sequence[float] = (),
    check: bool = True,
) -> SelectedRows:
    """Reduce rows of logits to the entries that are stored.

    All arithmetic is in float32, whatever the dtype of the logits; only draws and the sum of ``top_p`` use float64.
    A row's result is a function of its logits (and its key), bit for bit: it does not depend on the other rows.
    An entry whose log-probability is ``-inf`` as float16 (a masked-out token) is not kept, and its row is shorter.

    Parameters
    ----------
    logits
        ``(n, V)``, any floating dtype; ``V`` is the real vocabulary size, without padding.
    selection
        What to keep.
    labels
        ``(n,)`` int64, the next token, -1 where there is none.
    row_keys
        ``(n,)`` int64, a number that is unique to each row of the store and does not change between runs. Required by
        selections that draw, else unused.
    values
        Store log-probabilities or raw logits. The entries kept are the same.
    temperatures
        Further temperatures at which to record the log-sum-exp.
    check
        Whether to look at what labels and rows hold. Without, the caller vouches for the labels, and has yet to call
        `refused_row` for the rows, with ``refused``: then nothing waits for the device, if kernels select.

    Raises
    ------
    InvalidArgumentError
        If shapes disagree, a label or a temperature is out of range, or row keys are missing.
    CorruptDataError
        If a row holds NaN or +inf or no finite logit at all, or a raw logit to be kept exceeds float16.
        Its ``row`` is the index into ``logits``.
    """
    _check_arguments(logits, selection, labels, row_keys, values, temperatures)
    if check:
        require_labels(labels, logits.shape[1])
    n, V = logits.shape
    block_logits = _BLOCK_LOGITS_CPU if logits.device.type == "cpu" else _BLOCK_LOGITS_DEVICE
    select = _select_block
    if selection.samples is None and use_kernels(logits):
        block_logits, select = _BLOCK_LOGITS_KERNELS, _select_block_kernels
    block = max(1, block_logits // V)
    blocks = []
    for start in range(0, max(n, 1), block):
        rows = slice(start, start + block)
        keys = None if row_keys is None else row_keys[rows]
        blocks.append(select(logits[rows], selection, labels[rows], keys, values, temperatures))
    joined = join_rows(blocks)
    return checked(joined) if check else joined


def checked(rows: SelectedRows) -> SelectedRows:
    """Return rows that were selected without a check, or raise `CorruptDataError` for the first that is refused."""
    if rows.refused is not None:
        require_sound(rows.refused, rows.lse)
    return replace(rows, refused=None)


def _select_block(
    logits: torch.Tensor,
    selection: Selection,
    labels: torch.Tensor,
    row_keys: torch.Tensor | None,
    values: Values,
    temperatures: Sequence[float],
) -> SelectedRows:
    V = logits.shape[1]
    logits = logits.detach().float().contiguous()
    lse = log_sum_exp(logits)
    floor = lse - _BELOW_FP16
    top = selection.top_entries(V)

    ids: torch.Tensor | None = None
    counts: torch.Tensor | None = None
    if selection.top_p is not None:
        ids = top_p_ids(logits, lse, selection.top_p, top, floor)
    elif top:
        ids = top_k_ids(logits, top, floor)
    if selection.samples is not None:
        assert row_keys is not None
        drawn = draw_ids(logits, selection.seed, row_keys, selection.samples)
        ids, counts = count_entries(drawn, ids, selection.slots(V))
    assert ids is not None

    ids, stored, counts, refused = _stored_entries(logits, lse, ids, counts, values)
    return SelectedRows(
        refused=refused,
        ids=ids,
        values=stored,
        lse=lse,
        label_logprob=_label_logprob(logits, lse, labels),
        counts=counts,
        lse_T=torch.stack([log_sum_exp(logits, T) for T in temperatures], 1) if temperatures else None,
    )


def _select_block_kernels(
    logits: torch.Tensor,
    selection: Selection,
    labels: torch.Tensor,
    row_keys: torch.Tensor | None,  # noqa: ARG001 - the same call as `_select_block`
    values: Values,
    temperatures: Sequence[float],
) -> SelectedRows:
    """Do the same with the kernels, which read the logits in their own type, and once."""
    from logitstore.kernels.select import row_log_sum_exp, select_top

    logits = logits.detach()
    lse, ids, stored = select_top(logits, selection.top_entries(logits.shape[1]), raw=values == "logit")
    if selection.top_p is not None:
        nucleus = nucleus_ids(logits, ids.long(), lse, selection.top_p)
        ids, stored, _, refused = _stored_entries(logits, lse, nucleus, None, values)
    elif values == "logit":
        refused = refusals(lse, stored, logits.gather(1, ids.long().clamp(min=0)), ids == UNUSED)
    else:
        refused = refusals(lse)
    return SelectedRows(
        refused=refused,
        ids=ids,
        values=stored,
        lse=lse,
        label_logprob=_label_logprob(logits, lse, labels),
        lse_T=torch.stack([row_log_sum_exp(logits, T) for T in temperatures], 1) if temperatures else None,
    )


def _stored_entries(
    logits: torch.Tensor, lse: torch.Tensor, ids: torch.Tensor, counts: torch.Tensor | None, values: Values
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """Return int32 ids, float16 values and counts, unused slots last, and what rows are refused for."""
    kept_logits = logits.gather(1, ids.clamp(min=0)).float()
    logprobs = (kept_logits - lse[:, None]).half()
    unused = (ids == UNUSED) | logprobs.isinf()
    if values == "logprob":
        stored, refused = logprobs, refusals(lse)
    else:
        stored = kept_logits.half()
        refused = refusals(lse, stored, kept_logits, unused)
    # On a device, to hear whether there are any takes longer than to move them.
    if logits.device.type != "cpu" or bool(unused.any()):
        slots = (~unused).long().cumsum(1).sub_(1).masked_fill_(unused, unused.shape[1])
        ids, stored = _packed(ids, slots, UNUSED), _packed(stored, slots, -torch.inf)
        counts = None if counts is None else _packed(counts, slots, 0)
    return ids.to(torch.int32), stored, counts, refused


def _packed(column: torch.Tensor, slots: torch.Tensor, unused: float) -> torch.Tensor:
    """Return ``(n, K)`` with each entry in its slot, or in none if that is K, and the rest filled."""
    n, K = column.shape
    return column.new_full((n, K + 1), unused).scatter_(1, slots, column)[:, :K].contiguous()


def _label_logprob(logits: torch.Tensor, lse: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    at_label = logits.gather(1, labels.clamp(min=0)[:, None]).squeeze(1).float()
    return (at_label - lse).masked_fill(labels < 0, torch.nan)


def _check_arguments(
    logits: torch.Tensor,
    selection: Selection,
    labels: torch.Tensor,
    row_keys: torch.Tensor | None,
    values: str,
    temperatures: Sequence[float],
) -> None:
    if logits.dim() != 2 or not logits.is_floating_point() or logits.shape[1] == 0:
        raise InvalidArgumentError(
            f"logits must be (rows, vocabulary) of a floating dtype, not {tuple(logits.shape)} {logits.dtype}"
        )
    n, V = logits.shape
    selection.slots(V)
    for name, tensor in (("labels", labels), ("row_keys", row_keys)):
        if tensor is not None and (tensor.shape != (n,) or tensor.dtype != torch.int64):
            raise InvalidArgumentError(
                f"{name} must be ({n},) int64 beside {n} rows of logits, not {tuple(tensor.shape)} {tensor.dtype}"
            )
    if selection.samples is not None and row_keys is None:
        raise InvalidArgumentError("a selection with samples needs row_keys: they are what makes a draw reproducible")
    if values not in ("logprob", "logit"):
        raise InvalidArgumentError(f"values must be 'logprob' or 'logit', not {values!r}")
    for T in temperatures:
        if not (math.isfinite(T) and T > 0):
            raise InvalidArgumentError(f"a temperature must be a finite number above 0, not {T}")


def join_rows(blocks: list[SelectedRows]) -> SelectedRows:
    """Return the rows of all blocks, one at least, as one."""
    if len(blocks) == 1:
        return blocks[0]

    def join(name: str) -> torch.Tensor | None:
        parts = [getattr(block, name) for block in blocks]
        return None if parts[0] is None else torch.cat(parts)

    return SelectedRows(**{column.name: join(column.name) for column in fields(SelectedRows)})  # type: ignore[arg-type]
