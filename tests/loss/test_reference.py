"""The reference itself: its gradients are those of its values, and k = V is full distillation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from logitstore.loss import ForwardKL
from logitstore.loss.reference import reference_loss


def test_gradients_are_finite_differences(name, options, teacher_rows):
    generator = np.random.default_rng(0)
    R, V, h = 12, 7, 1e-6
    rows = teacher_rows(generator, R, V, 4, values=torch.float64, ragged=True, holes=True)
    logits = generator.standard_normal((R, V)) * 2
    # The weight of SLIM is a number: it must stay what it was.
    frozen = slim_weights(rows, logits, options) if name == "slim" else None
    _, gradients = reference_loss(name, logits, rows, **options)
    assert np.abs(gradients).max() > 0.01
    for v in range(V):
        moved = []
        for step in (h, -h):
            there = logits.copy()
            there[:, v] += step
            if frozen is None:
                moved.append(reference_loss(name, there, rows, **options)[0])
            else:
                moved.append(slim_with(frozen, rows, there, options))
        np.testing.assert_allclose(gradients[:, v], (moved[0] - moved[1]) / (2 * h), atol=1e-7)


def slim_weights(rows, logits, options):
    """The weight, from its value: L = CE + w K, with the kept set's K known from where p(y) is certain (w = 1)."""
    q = torch.tensor(logits).log_softmax(1).gather(1, rows.labels.clamp(min=0)[:, None])[:, 0].numpy()
    ratio = np.exp(rows.label_logprob.numpy() - q)
    return 1 - np.exp(-(ratio if options["weight"] == "text" else 1 / ratio))


def slim_with(weights, rows, logits, options):
    cross_entropy = reference_loss("cross_entropy", logits, rows)[0]
    values = reference_loss("slim", logits, rows, **options)[0]
    now = slim_weights(rows, logits, options)
    counted = values != 0
    kept = np.divide(values - cross_entropy, now, out=np.zeros_like(values), where=counted)
    return np.where(counted, cross_entropy + weights * kept, 0)


@pytest.mark.parametrize("name", ["decoupled", "forward_kl"])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_all_ids_kept_is_full_distillation(name, temperature, teacher_rows):
    generator = np.random.default_rng(1)
    rows = teacher_rows(generator, 5, 9, 9, values=torch.float64)
    logits = generator.standard_normal((5, 9))
    full = reference_loss("full_kl", logits, rows, temperature=temperature)
    if name == "decoupled":
        # Its temperature is of the conditional term, and with k = V there is no other.
        same = [reference_loss(name, logits, rows, tau=temperature)]
    else:
        outside = ["renorm", "submass", "tail"] + (["residual"] if temperature == 1 else [])
        same = [reference_loss(name, logits, rows, outside=o, temperature=temperature) for o in outside]
    for value, gradient in same:
        np.testing.assert_allclose(value, full[0], rtol=1e-12)
        np.testing.assert_allclose(gradient, full[1], atol=1e-14)


def test_cross_entropy_is_torchs(teacher_rows):
    generator = np.random.default_rng(2)
    rows = teacher_rows(generator, 6, 11, 3)
    logits = torch.tensor(generator.standard_normal((6, 11)), requires_grad=True)
    values = torch.nn.functional.cross_entropy(logits, rows.labels, reduction="none")
    values.sum().backward()
    ours = reference_loss("cross_entropy", logits.detach().numpy(), rows)
    np.testing.assert_allclose(ours[0], values.detach().numpy(), rtol=1e-12)
    np.testing.assert_allclose(ours[1], logits.grad.numpy(), atol=1e-14)


@pytest.mark.parametrize("outside", ["renorm", "submass", "tail"])
def test_where_the_optimum_lies(outside, teacher_rows):
    # As the docstring of ForwardKL says: p/a, p/a, p.
    rows = teacher_rows(np.random.default_rng(3), 1, 8, 3, values=torch.float64)
    logits = torch.zeros(1, 8, dtype=torch.float64, requires_grad=True)
    for _ in range(4000):
        (gradient,) = torch.autograd.grad(ForwardKL(outside)(logits, rows), logits)
        logits.data -= gradient
    q = logits.softmax(1)[0, rows.ids[0].long()]
    p = rows.logprobs.exp()[0]
    torch.testing.assert_close(q, p if outside == "tail" else p / p.sum(), atol=1e-2, rtol=0)


def test_the_gradient_of_draws_is_unbiased(teacher_rows):
    generator = np.random.default_rng(4)
    base = teacher_rows(generator, 1, 6, 6, values=torch.float64)
    logits = generator.standard_normal((1, 6))
    p = np.exp(base.logprobs[0].numpy())
    n = 4000
    counts = torch.tensor(generator.multinomial(20, p / p.sum(), n), dtype=torch.uint8)
    rows = type(base)(ids=base.ids.expand(n, -1), counts=counts)
    drawn = reference_loss("sampled_kl", np.broadcast_to(logits, (n, 6)), rows)
    full = reference_loss("full_kl", logits, base)
    assert np.abs(drawn[1].mean(0) - full[1][0]).max() < 5 * drawn[1].std(0).max() / np.sqrt(n)
    # The value is not.
    assert drawn[0].mean() > full[0][0]
