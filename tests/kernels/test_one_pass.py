"""Value and gradient of a mean in one pass over the rows, against the reference and against the plain way."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from logitstore.kernels import one_pass
from logitstore.kernels.choice import VARIABLE
from logitstore.loss import ForwardKL, Slim, make_loss
from logitstore.loss.reference import reference_loss

from ..loss.conftest import make_teacher_rows
from .test_learn import TOLERANCE, random_rows

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")

LOSSES = [
    ("cross_entropy", {}),
    *[("forward_kl", {"outside": outside}) for outside in ("renorm", "submass", "tail")],
    *[("slim", {"weight": w, "support": s}) for w in ("text", "eq4") for s in ("renorm", "submass")],
]
named = pytest.mark.parametrize(("name", "options"), LOSSES, ids=str)


def of_mean(loss, logits, rows, *, by=1.0, **settings):
    """Value of the mean, gradient of as many times that, and parts."""
    leaf = logits.clone().requires_grad_()
    parts = {}
    value = loss(leaf * 1, rows, parts=parts, **settings)
    (value * by).backward()
    return value.detach(), leaf.grad, parts


@pytest.fixture(autouse=True)
def passes(monkeypatch):
    """Count passes over all rows: these tests are about nothing else."""
    found = []
    learn = one_pass.learn_in_one_pass
    monkeypatch.setattr(one_pass, "learn_in_one_pass", lambda *a, **k: found.append(1) or learn(*a, **k))
    return found


@named
@given(
    seed=st.integers(0, 2**32 - 1),
    R=st.integers(1, 5),
    V=st.integers(2, 70),
    share=st.floats(0, 1),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    flags=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    inplace=st.booleans(),
)
@settings(max_examples=8, deadline=None)
def test_equals_the_reference(name, options, seed, R, V, share, dtype, flags, inplace):
    rows, logits = random_rows(seed, R, V, share, dtype, flags)
    loss = make_loss(name, **options)
    count = max(1, int(loss.counted(rows).sum()))
    value, gradient = reference_loss(name, logits.double().numpy(), rows, **options)
    ours = of_mean(loss, logits, rows, by=count / 2, inplace=inplace)
    assert (ours[0].dtype, ours[1].dtype) == (torch.float32, dtype)
    np.testing.assert_allclose(ours[0].numpy(), value.sum() / count, rtol=3e-5, atol=3e-5)
    np.testing.assert_allclose(2 * ours[1].double().numpy(), gradient, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@named
def test_rows_of_several_tiles_like_the_plain_way(name, options, monkeypatch, passes):
    monkeypatch.setattr(one_pass, "_TILE", 256)
    monkeypatch.setattr(one_pass, "_SLOT_TILE", 64)
    generator = np.random.default_rng(3)
    rows = make_teacher_rows(generator, 7, 1000, 150, ragged=True, holes=True)
    padded = torch.tensor(generator.standard_normal((7, 1024)) * 3, dtype=torch.float32)
    padded[0, 17] = -torch.inf
    loss = make_loss(name, **options)

    def run():
        leaf = padded.clone().requires_grad_()
        parts = {}
        value = loss(leaf[:, :1000], rows, parts=parts)  # rows lie apart
        value.backward()
        return value.detach(), leaf.grad, parts

    ours = run()
    assert passes == [1]
    monkeypatch.setenv(VARIABLE, "off")
    torch.testing.assert_close(ours, run(), rtol=2e-5, atol=1e-6)


@named
def test_huge_logits_neither_overflow_nor_blur(name, options):
    generator = np.random.default_rng(5)
    rows = make_teacher_rows(generator, 4, 16, 5, values=torch.float32, ragged=True)
    for scale, offset in ((1e4, 0), (0.25, 1e4), (0.25, -1e4)):
        logits = torch.tensor((generator.standard_normal((4, 16)) * scale + offset).astype(np.float32))
        value, gradient = reference_loss(name, logits.double().numpy(), rows, **options)
        ours = of_mean(make_loss(name, **options), logits, rows)
        np.testing.assert_allclose(ours[0].numpy(), value.mean(), rtol=1e-5, atol=3e-5)
        np.testing.assert_allclose(4 * ours[1].numpy(), gradient, rtol=1e-4, atol=3e-5)


def test_nan_stays_in_its_row():
    rows = make_teacher_rows(np.random.default_rng(1), 3, 40, 4)
    logits = torch.zeros(3, 40)
    logits[1, 39 if 39 not in rows.ids[1] else 38] = torch.nan
    value, gradient, _ = of_mean(ForwardKL("tail"), logits, rows)
    assert value.isnan()
    assert gradient.isnan().any(1).tolist() == [False, True, False]


def test_in_place_the_gradient_lies_where_the_logits_were(passes):
    rows = make_teacher_rows(np.random.default_rng(2), 3, 40, 4)
    leaf = torch.randn(3, 40, requires_grad=True)
    logits = leaf * 1
    (3 * Slim()(logits, rows, inplace=True)).backward(retain_graph=True)
    assert torch.equal(leaf.grad, logits)
    assert passes == [1]


@pytest.mark.parametrize(
    ("loss", "settings", "dtype"),
    [
        (ForwardKL("residual"), {}, torch.float32),
        (Slim(support="zero_logit"), {}, torch.float32),
        (Slim(), {"reduction": "sum"}, torch.float32),
        (Slim(), {}, torch.float16),
    ],
)
def test_others_wait_for_the_backward_pass(loss, settings, dtype, passes):
    rows = make_teacher_rows(np.random.default_rng(2), 3, 40, 4)
    of_mean(loss, torch.randn(3, 40).to(dtype), rows, **settings)
    assert passes == []
