"""Selecting without a check asks the device for nothing, so that the host may run ahead of it.

On torch's meta device whatever asks for a value fails, and sizes that depend on values do not exist.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from logitstore.select import Selection, refused_row, select_rows

SELECTIONS = [
    Selection(top_k=5), Selection(top_p=0.9, max_k=20), Selection(samples=9), Selection(top_k=5, samples=9),
]  # fmt: skip


@pytest.mark.parametrize("values", ["logprob", "logit"])
@pytest.mark.parametrize("selection", SELECTIONS, ids=repr)
def test_nothing_is_asked_of_the_device(selection: Selection, values: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # The one thing that is: how many logits reach the cut. Kernels know better.
    found: list[int] = []

    def as_if_counted(logits: torch.Tensor, cut: torch.Tensor) -> torch.Tensor:
        found.append(len(cut))
        return torch.empty(len(logits) * 7, dtype=torch.int64, device=logits.device)

    monkeypatch.setattr("logitstore.select.top._flat_positions_at_least", as_if_counted)
    logits = torch.empty(4, 1000, dtype=torch.bfloat16, device="meta")
    numbers = torch.empty(4, dtype=torch.int64, device="meta")
    rows = select_rows(
        logits,
        selection,
        numbers,
        numbers,
        values=values,
        temperatures=(2.0,),
        check=False,  # type: ignore[arg-type]
    )
    assert rows.ids.shape == (4, selection.slots(1000))
    assert rows.refused is not None
    assert found == ([4] if selection.top_entries(1000) else [])
    with pytest.raises(RuntimeError, match="meta"):
        select_rows(logits, selection, numbers, numbers)


@pytest.mark.parametrize("values", ["logprob", "logit"])
@pytest.mark.parametrize("selection", SELECTIONS, ids=repr)
def test_rows_to_be_refused_are_told_and_leave_others_alone(selection: Selection, values: str) -> None:
    torch.manual_seed(0)
    logits = torch.randn(6, 300)
    logits[1, 7], logits[2, 8], logits[4] = np.nan, np.inf, -np.inf
    logits[3, 9:11] = 70_000
    labels, keys = torch.tensor([0, 1, 2, 3, 4, -1]), torch.arange(6)
    options = {"values": values, "temperatures": (2.0,)}
    rows = select_rows(logits, selection, labels, keys, check=False, **options)  # type: ignore[arg-type]
    assert rows.refused is not None
    assert rows.refused.isnan().tolist() == [False, True, True, False, True, False]
    assert rows.refused[[0, 3, 5]].tolist() == [0, 70_000 if values == "logit" else 0, 0]
    found = refused_row(rows.refused, rows.lse)
    assert found is not None
    assert found[0] == 1
    sound = [0, 5]
    alone = select_rows(logits[sound], selection, labels[sound], keys[sound], **options)  # type: ignore[arg-type]
    assert alone.refused is None
    for name in ("ids", "values", "lse", "label_logprob", "counts", "lse_T"):
        expected = getattr(alone, name)
        if expected is not None:
            torch.testing.assert_close(getattr(rows, name)[sound], expected, rtol=0, atol=0, equal_nan=True)
