"""Selection: which entries of a row of logits are kept, and what is recorded about the rest.

>>> import torch
>>> logits = torch.tensor([[0.0, 3.0, 1.0, 3.0]])
>>> rows = select_rows(logits, Selection(top_k=2), torch.tensor([2]))
>>> rows.ids
tensor([[1, 3]], dtype=torch.int32)
>>> rows.values
tensor([[-0.7817, -0.7817]], dtype=torch.float16)
"""

from __future__ import annotations

from logitstore.select.hidden import select_hidden
from logitstore.select.refused import refused_row
from logitstore.select.rows import SelectedRows, Values, select_rows
from logitstore.select.sampling import Sampling
from logitstore.select.selection import Selection

__all__ = ["Sampling", "SelectedRows", "Selection", "Values", "refused_row", "select_hidden", "select_rows"]
