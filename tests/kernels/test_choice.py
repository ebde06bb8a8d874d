from __future__ import annotations

import pytest
import torch

from logitstore.errors import InvalidArgumentError
from logitstore.kernels import use_kernels
from logitstore.kernels.choice import VARIABLE
from logitstore.loss import CrossEntropy, TeacherRows


def test_who_decides(monkeypatch):
    assert use_kernels(torch.zeros(1, 3, dtype=torch.bfloat16))
    assert not use_kernels(torch.zeros(1, 3, dtype=torch.float64))
    # A CPU is not a GPU that happens to be slow.
    for mode in ("auto", "off"):
        monkeypatch.setenv(VARIABLE, mode)
        assert not use_kernels(torch.zeros(1, 3))
    monkeypatch.setenv(VARIABLE, "yes")
    with pytest.raises(InvalidArgumentError, match="must be auto, on or off, not 'yes'"):
        use_kernels(torch.zeros(1, 3))


def test_the_losses_of_these_tests_do_go_through_the_kernels(monkeypatch):
    logits, rows = torch.zeros(2, 4, requires_grad=True), TeacherRows(labels=torch.tensor([3, 1]))
    reductions = {"mean": "_AtOnce", "sum": "_ByKernel"}
    for reduction, name in reductions.items():
        assert name in CrossEntropy()(logits, rows, reduction=reduction).grad_fn.name()
    monkeypatch.setenv(VARIABLE, "off")
    for reduction in reductions:
        assert "_FromLogits" in CrossEntropy()(logits, rows, reduction=reduction).grad_fn.name()
