"""Every loss with every option, and random teachers with rows as a store would hold them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from logitstore.loss import LOSSES, TeacherRows

if TYPE_CHECKING:
    from collections.abc import Callable

TEMPERATURE = 2.0

CONFIGURATIONS: list[tuple[str, dict[str, Any]]] = [
    ("cross_entropy", {}),
    ("decoupled", {}),
    ("decoupled", {"tau": 2.0, "ce_weight": 0.25}),
    *[("forward_kl", {"outside": outside}) for outside in ("renorm", "submass", "tail", "residual")],
    *[("forward_kl", {"outside": outside, "temperature": TEMPERATURE}) for outside in ("renorm", "submass", "tail")],
    ("forward_kl", {"outside": "residual", "ce_weight": 0.3}),
    ("forward_kl", {"outside": "tail", "temperature": TEMPERATURE, "ce_weight": 0.3}),
    ("full_kl", {}),
    ("full_kl", {"temperature": TEMPERATURE, "ce_weight": 0.5}),
    ("jensen_shannon", {}),
    ("jensen_shannon", {"beta": 0.1, "temperature": TEMPERATURE}),
    ("reverse_kl", {}),
    ("reverse_kl", {"temperature": TEMPERATURE, "ce_weight": 0.1}),
    ("sampled_kl", {}),
    ("sampled_kl", {"ce_weight": 1.0}),
    *[("slim", {"weight": w, "support": s}) for w in ("text", "eq4") for s in ("renorm", "submass", "zero_logit")],
    ("total_variation", {}),
    ("total_variation", {"temperature": TEMPERATURE}),
]
"""Every loss with every option: name and options of `make_loss`."""

assert {name for name, _ in CONFIGURATIONS} == set(LOSSES)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes ``name`` and ``options`` runs for every loss, but those it is marked to be ``without``."""
    if {"name", "options"} <= set(metafunc.fixturenames):
        left_out = {name for mark in metafunc.definition.iter_markers("without") for name in mark.args}
        taken = [(name, options) for name, options in CONFIGURATIONS if name not in left_out]
        ids = ["-".join([name, *(str(value) for value in options.values())]) for name, options in taken]
        metafunc.parametrize(("name", "options"), taken, ids=ids)


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    pass


@pytest.fixture(scope="session")
def teacher_rows() -> Callable[..., TeacherRows]:
    return make_teacher_rows


def make_teacher_rows(
    generator: np.random.Generator,
    R: int,
    V: int,
    K: int,
    *,
    values: torch.dtype = torch.float16,
    ties: bool = False,
    ragged: bool = False,
    holes: bool = False,
) -> TeacherRows:
    """Rows of the K most probable of V ids.

    Ties round the logits; ragged rows use 1 to K slots, which need not be the first ones; holes are rows without
    entries, without a label, or masked.
    """
    logits = generator.standard_normal((R, V)) * 3
    logits = np.round(logits) if ties else logits
    log_sum = [np.log(np.exp(logits / T).sum(1)) for T in (1.0, TEMPERATURE)]
    ids = np.argsort(-logits, axis=1, kind="stable")[:, :K]
    used = generator.random((R, K)) < 0.7 if ragged else np.ones((R, K), bool)
    used[:, 0] |= ~used.any(1)
    labels = generator.integers(0, V, R)
    counts = generator.integers(0, 4, (R, K))
    counts[:, 0] += 1
    mask = np.ones(R, bool)
    if holes:
        used[generator.random(R) < 0.2] = False
        labels[generator.random(R) < 0.2] = -100
        mask = generator.random(R) < 0.8
    logprobs = np.take_along_axis(logits, ids, 1) - log_sum[0][:, None]
    at_label = np.take_along_axis(logits, labels.clip(0)[:, None], 1)[:, 0] - log_sum[0]
    float32 = torch.float32 if values != torch.float64 else torch.float64
    return TeacherRows(
        ids=torch.tensor(np.where(used, ids, -1), dtype=torch.int32),
        logprobs=torch.tensor(np.where(used, logprobs, -np.inf), dtype=values),
        lse=torch.tensor(log_sum[0], dtype=float32),
        lse_T=torch.tensor(log_sum[1], dtype=float32),
        label_logprob=torch.tensor(np.where(labels < 0, np.nan, at_label), dtype=float32),
        labels=torch.tensor(labels),
        mask=torch.tensor(mask),
        counts=torch.tensor(np.where(used, counts, 0), dtype=torch.uint8),
        full_logits=torch.tensor(logits, dtype=float32),
    )


def both(loss, logits, rows, **settings):
    """Value per row, and gradient of their sum."""
    leaf = logits.clone().requires_grad_()
    # In place, kernels refuse a leaf.
    values = loss(leaf * 1, rows, reduction="none", **settings)
    values.sum().backward()
    return values.detach(), leaf.grad
