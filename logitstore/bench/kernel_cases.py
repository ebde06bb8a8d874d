"""Selection and losses, against torch, against ourselves without kernels, and against Liger if it is installed."""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import cross_entropy, linear

from logitstore.bench.measure import Case, Contender, Goal
from logitstore.bench.random_data import (
    kept_sets,
    random_labels,
    random_leaves,
    random_logits,
    random_teacher_rows,
)
from logitstore.bench.switch import without_kernels
from logitstore.loss import CrossEntropy, ForwardKL
from logitstore.select import select_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from logitstore.bench.measure import Setting
    from logitstore.loss.base import Loss
    from logitstore.select import Selection

__all__ = ["fused_cases", "loss_cases", "select_cases"]

_TORCH_SELECT = "torch topk + logsumexp"
_LIGER = "Liger fused linear cross-entropy"


def select_cases(setting: Setting) -> Iterator[Case]:
    """Yield both selections of whole rows of logits."""
    for name, selection in kept_sets(setting.sizes):
        yield _select_case(setting, name, selection)


def _select_case(setting: Setting, name: str, selection: Selection) -> Case:
    sizes, device, _ = setting
    logits, labels = random_logits(sizes, device), random_labels(sizes, device)
    k = selection.top_entries(sizes.vocab_size)

    def ours() -> object:
        return select_rows(logits, selection, labels, check=False)  # as a build does

    return Case(
        f"select, {name}",
        "one read of the logits",
        [
            Contender("logitstore", ours),
            Contender("logitstore, no kernels", without_kernels(ours)),
            Contender(_TORCH_SELECT, lambda: (logits.topk(k, dim=1), logits.logsumexp(1))),
        ],
        goals=(Goal(3), Goal(0.2, _TORCH_SELECT)) if selection.top_fraction else (),
        bytes=logits.nbytes,
    )


def loss_cases(setting: Setting) -> Iterator[Case]:
    """Yield value and gradient of a sparse loss from logits, in place."""
    for name, selection in kept_sets(setting.sizes):
        yield _loss_case(setting, name, selection.top_entries(setting.sizes.vocab_size))


def _loss_case(setting: Setting, name: str, k: int) -> Case:
    sizes, device, _ = setting
    logits = random_logits(sizes, device).requires_grad_()
    rows, labels, loss = random_teacher_rows(sizes, device, k), random_labels(sizes, device), ForwardKL("tail")
    ours = _with_gradient([logits], lambda: loss(logits, rows))
    return Case(
        f"loss and gradient from logits, {name}",
        "one read and one write of the logits",
        [
            Contender("logitstore", ours),
            Contender("logitstore, no kernels", without_kernels(ours)),
            Contender("torch cross_entropy", _with_gradient([logits], lambda: cross_entropy(logits, labels))),
        ],
        goals=(Goal(1.3),),
        bytes=2 * logits.nbytes,
    )


def fused_cases(setting: Setting) -> Iterator[Case]:
    """Yield value and gradient of losses fused with the LM head."""
    sizes, device, _ = setting
    hidden, weight = random_leaves(sizes, device)
    rows, labels = random_teacher_rows(sizes, device, sizes.top_k), random_labels(sizes, device)

    def fused(loss: Loss) -> Callable[[], object]:
        return _with_gradient([hidden, weight], lambda: loss.fused(hidden, weight, rows))

    contenders = [
        Contender(f"logitstore forward_kl, k = {sizes.top_k}", fused(ForwardKL("tail"))),
        Contender("logitstore cross_entropy", fused(CrossEntropy())),
        Contender("logitstore forward_kl, no kernels", without_kernels(fused(ForwardKL("tail")))),
        Contender(
            "torch linear + cross_entropy",
            _with_gradient([hidden, weight], lambda: cross_entropy(linear(hidden, weight), labels)),
        ),
    ]
    # Liger's kernels know no CPU.
    if device.type == "cuda" and importlib.util.find_spec("liger_kernel") is not None:
        liger: Any = importlib.import_module("liger_kernel.transformers").LigerFusedLinearCrossEntropyLoss()
        run = _with_gradient([hidden, weight], lambda: liger(weight, hidden, labels))
        contenders.append(Contender(_LIGER, run))

    def products() -> object:
        with torch.no_grad():
            logits = hidden @ weight.T
            return logits @ weight, logits.T @ hidden

    yield Case(
        "loss and gradient from hidden states",
        "its three matrix products",
        contenders,
        goals=(Goal(1.15, _LIGER), Goal(1.1, _LIGER, "peak_bytes")),
        least=Contender("", products),
    )


def _with_gradient(leaves: list[torch.Tensor], value: Callable[[], torch.Tensor]) -> Callable[[], object]:
    return lambda: torch.autograd.grad(value(), leaves)
