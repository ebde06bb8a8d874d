"""The rows of `logitstore.audit.gpu_bench`: what is measured, and against whom."""

from __future__ import annotations

import importlib
import importlib.util
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import cross_entropy, linear

from logitstore.audit.gpu_bench import Case, Contender
from logitstore.kernels.choice import VARIABLE
from logitstore.loss import CrossEntropy, ForwardKL, TeacherRows
from logitstore.select import Selection, select_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from logitstore.audit.gpu_bench import Sizes
    from logitstore.loss.base import Loss

__all__ = ["CASES", "kernels_set_to"]


def _select_top_k(sizes: Sizes, device: torch.device) -> Case:
    return _select(f"select, k = {sizes.top_k}", Selection(top_k=sizes.top_k), sizes, device)


def _select_top_fraction(sizes: Sizes, device: torch.device) -> Case:
    name = f"select, {100 * sizes.top_fraction:g} %"
    return _select(name, Selection(top_fraction=sizes.top_fraction), sizes, device)


def _select(name: str, selection: Selection, sizes: Sizes, device: torch.device) -> Case:
    logits, labels = _logits(sizes, device), _labels(sizes, device)
    k = selection.top_entries(sizes.vocab_size)
    ours: Callable[[], object] = lambda: select_rows(logits, selection, labels)  # noqa: E731
    return Case(
        name,
        "one read of the logits",
        [
            Contender("logitstore", ours),
            Contender("logitstore, no kernels", _without_kernels(ours)),
            Contender("torch topk + logsumexp", lambda: (logits.topk(k, dim=1), logits.logsumexp(1))),
        ],
        bytes=logits.nbytes,
    )


def _loss(sizes: Sizes, device: torch.device) -> Case:
    logits = _logits(sizes, device).requires_grad_()
    rows, labels, loss = _teacher(sizes, device), _labels(sizes, device), ForwardKL("tail")
    ours = _with_gradient([logits], lambda: loss(logits, rows))
    return Case(
        f"loss and gradient from logits, k = {sizes.top_k}",
        "one read and one write of the logits",
        [
            Contender("logitstore", ours),
            Contender("logitstore, no kernels", _without_kernels(ours)),
            Contender("torch cross_entropy", _with_gradient([logits], lambda: cross_entropy(logits, labels))),
        ],
        bytes=2 * logits.nbytes,
    )


def _fused_loss(sizes: Sizes, device: torch.device) -> Case:
    hidden, weight = _leaves(sizes, device)
    rows, labels = _teacher(sizes, device), _labels(sizes, device)

    def fused(loss: Loss) -> Callable[[], object]:
        return _with_gradient([hidden, weight], lambda: loss.fused(hidden, weight, rows))

    contenders = [
        Contender(f"logitstore forward_kl, k = {sizes.top_k}", fused(ForwardKL("tail"))),
        Contender("logitstore cross_entropy", fused(CrossEntropy())),
        Contender("logitstore forward_kl, no kernels", _without_kernels(fused(ForwardKL("tail")))),
        Contender(
            "torch linear + cross_entropy",
            _with_gradient([hidden, weight], lambda: cross_entropy(linear(hidden, weight), labels)),
        ),
    ]
    # Liger's kernels know no CPU.
    if device.type == "cuda" and importlib.util.find_spec("liger_kernel") is not None:
        liger: Any = importlib.import_module("liger_kernel.transformers").LigerFusedLinearCrossEntropyLoss()
        run = _with_gradient([hidden, weight], lambda: liger(weight, hidden, labels))
        contenders.append(Contender("Liger fused linear cross-entropy", run))

    def products() -> object:
        with torch.no_grad():
            logits = hidden @ weight.T
            return logits @ weight, logits.T @ hidden

    return Case("loss and gradient from hidden states", "its three matrix products", contenders, least=products)


CASES: list[Callable[[Sizes, torch.device], Case]] = [_select_top_k, _select_top_fraction, _loss, _fused_loss]
"""Each makes its tensors when its turn comes, so that those of one case exist at a time."""


def _logits(sizes: Sizes, device: torch.device) -> torch.Tensor:
    generator = torch.Generator(device).manual_seed(0)
    made = torch.randn(
        sizes.rows, sizes.vocab_size, generator=generator, device=device, dtype=sizes.dtype, requires_grad=False
    )
    return made.mul_(3)


def _labels(sizes: Sizes, device: torch.device) -> torch.Tensor:
    return torch.arange(sizes.rows, device=device) * 7919 % sizes.vocab_size


def _teacher(sizes: Sizes, device: torch.device) -> TeacherRows:
    generator = torch.Generator(device).manual_seed(1)
    logits = torch.randn(sizes.rows, 4 * sizes.top_k, generator=generator, device=device) * 3
    logprobs, slots = logits.log_softmax(1).topk(sizes.top_k, dim=1)
    # Spread over the vocabulary, ascending as a store has them.
    slots, order = slots.sort(1)
    step = max(1, sizes.vocab_size // (4 * sizes.top_k))
    return TeacherRows(
        ids=(slots * step).int(), logprobs=logprobs.gather(1, order).half(), labels=_labels(sizes, device)
    )


def _leaves(sizes: Sizes, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator(device).manual_seed(2)
    shapes = [(sizes.rows, sizes.hidden), (sizes.vocab_size, sizes.hidden)]
    hidden, weight = (torch.randn(*s, generator=generator, device=device, dtype=sizes.dtype) for s in shapes)
    weight *= 3 / sizes.hidden**0.5
    return hidden.requires_grad_(), weight.requires_grad_()


def _with_gradient(leaves: list[torch.Tensor], value: Callable[[], torch.Tensor]) -> Callable[[], object]:
    return lambda: torch.autograd.grad(value(), leaves)


def _without_kernels(run: Callable[[], object]) -> Callable[[], object]:
    def plain() -> object:
        with kernels_set_to("off"):
            return run()

    return plain


@contextmanager
def kernels_set_to(mode: str) -> Iterator[None]:
    """Decide whether kernels are used, as the environment variable does."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = mode
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before
