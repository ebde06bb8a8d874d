"""The losses of kept ids by the kernels: tests/loss once more, and what only the kernels can get wrong."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from logitstore.kernels.choice import VARIABLE
from logitstore.loss import ForwardKL, Slim, TeacherRows, make_loss
from logitstore.loss.reference import reference_loss

from ..loss.conftest import both, make_teacher_rows

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")

LOSSES = [
    ("cross_entropy", {}),
    ("decoupled", {"tau": 2.0, "ce_weight": 0.25}),
    ("forward_kl", {"outside": "tail"}),
    ("forward_kl", {"outside": "tail", "temperature": 2.0}),
    ("forward_kl", {"outside": "residual", "ce_weight": 0.3}),
    ("jensen_shannon", {"beta": 0.1, "temperature": 2.0}),
    ("reverse_kl", {}),
    ("sampled_kl", {}),
    ("slim", {"support": "zero_logit"}),
]
TOLERANCE = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
named = pytest.mark.parametrize(("name", "options"), LOSSES, ids=str)


def random_rows(seed, R, V, share, dtype, flags):
    """A teacher's rows that keep a share of the vocabulary, and a student's logits; flags are ties, ragged, holes."""
    ties, ragged, holes = flags
    generator = np.random.default_rng(seed)
    rows = make_teacher_rows(generator, R, V, max(1, round(share * V)), ties=ties, ragged=ragged, holes=holes)
    logits = generator.standard_normal((R, V)) * 3
    return rows, torch.tensor(np.round(logits) if ties else logits).to(dtype)


@named
@given(
    seed=st.integers(0, 2**32 - 1),
    R=st.integers(0, 4),
    V=st.integers(2, 70),
    share=st.floats(0, 1),
    dtype=st.sampled_from(list(TOLERANCE)),
    flags=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    inplace=st.booleans(),
)
@settings(max_examples=8, deadline=None)
def test_equals_the_reference(name, options, seed, R, V, share, dtype, flags, inplace):
    rows, logits = random_rows(seed, R, V, share, dtype, flags)
    value, gradient = reference_loss(name, logits.double().numpy(), rows, **options)
    ours = both(make_loss(name, **options), logits, rows, inplace=inplace)
    assert (ours[0].dtype, ours[1].dtype) == (torch.float32, dtype)
    np.testing.assert_allclose(ours[0].numpy(), value, rtol=3e-5, atol=3e-5)
    np.testing.assert_allclose(ours[1].double().numpy(), gradient, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@named
def test_huge_logits_neither_overflow_nor_blur(name, options):
    generator = np.random.default_rng(5)
    rows = make_teacher_rows(generator, 4, 16, 5, values=torch.float32, ragged=True)
    for scale, offset in ((1e4, 0), (0.25, 1e4), (0.25, -1e4)):
        logits = torch.tensor((generator.standard_normal((4, 16)) * scale + offset).astype(np.float32))
        value, gradient = reference_loss(name, logits.double().numpy(), rows, **options)
        ours = both(make_loss(name, **options), logits, rows)
        np.testing.assert_allclose(ours[0].numpy(), value, rtol=1e-5, atol=3e-5)
        np.testing.assert_allclose(ours[1].numpy(), gradient, rtol=1e-4, atol=3e-5)


def test_a_tail_of_nearly_nothing_is_exact():
    tail = 1e-9
    logits = torch.tensor([[0.0, np.log(tail) - np.log(2), np.log(tail) - np.log(2)]], dtype=torch.float32)
    rows = TeacherRows(ids=torch.tensor([[0]]), logprobs=torch.tensor([[np.log(0.5)]], dtype=torch.float32))
    value, gradient = both(ForwardKL("tail"), logits, rows)
    assert value.item() == pytest.approx(0.5 * np.log(0.5) + 0.5 * (np.log(0.5) - np.log(tail)), rel=1e-6)
    torch.testing.assert_close(gradient, torch.tensor([[0.5, -0.25, -0.25]]))


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("V", [4097, 10_000])
def test_rows_of_several_tiles_and_some_that_do_not_count(V, dtype, monkeypatch):
    generator = np.random.default_rng(3)
    rows = make_teacher_rows(generator, 5, V, 300, ragged=True, holes=True)
    padded = torch.tensor(generator.standard_normal((5, V + 24)) * 3).to(dtype)
    padded[0, 17] = -torch.inf
    # Rows that lie apart, as where the vocabulary's padding was cut off.
    ours = both_of_a_part(Slim(), padded, V, rows)
    monkeypatch.setenv(VARIABLE, "off")
    plain = both_of_a_part(Slim(), padded, V, rows)
    torch.testing.assert_close(ours, plain, rtol=TOLERANCE[dtype], atol=1e-6)


def both_of_a_part(loss, padded, V, rows):
    leaf = padded.clone().requires_grad_()
    value = loss(leaf[:, :V], rows)
    value.backward()
    return value.detach(), leaf.grad


def test_nan_stays():
    rows = make_teacher_rows(np.random.default_rng(1), 3, 40, 4)
    logits = torch.zeros(3, 40)
    logits[1, 39 if 39 not in rows.ids[1] else 38] = torch.nan
    value, gradient = both(ForwardKL("tail"), logits, rows)
    assert value.isnan().tolist() == [False, True, False]
    assert gradient.isnan().any(1).tolist() == [False, True, False]


@named
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fused_with_the_head(name, options, reduction, dtype, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    rows = make_teacher_rows(np.random.default_rng(9), 9, 50, 5, ragged=True, holes=True)
    shapes = [(9, 6), (50, 6), (50,)]

    def run():
        leaves = [
            torch.randn(*shape, generator=generator.manual_seed(7)).to(dtype).requires_grad_() for shape in shapes
        ]
        hidden, weight, bias = leaves
        parts = {}
        loss = make_loss(name, **options)
        value = loss.fused(hidden, weight, rows, bias=bias, reduction=reduction, chunk_rows=4, parts=parts)
        value.sum().backward()
        return [value.detach(), *(leaf.grad for leaf in leaves)], parts

    ours = run()
    monkeypatch.setenv(VARIABLE, "off")
    torch.testing.assert_close(ours, run(), rtol=5 * TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_in_place_the_gradient_lies_where_the_logits_were():
    rows = make_teacher_rows(np.random.default_rng(2), 3, 40, 4)
    leaf = torch.randn(3, 40, requires_grad=True)
    logits = leaf * 1
    value = Slim()(logits, rows, inplace=True)
    value.backward(retain_graph=True)
    assert torch.equal(leaf.grad, logits)
    with pytest.raises(RuntimeError, match="used up by an earlier backward pass"):
        value.backward()
    needed = torch.zeros(3, 40, requires_grad=True).tanh()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        Slim()(needed, rows, inplace=True).backward()


def test_not_in_place_backward_runs_again():
    rows = make_teacher_rows(np.random.default_rng(2), 3, 40, 4)
    leaf = torch.randn(3, 40, requires_grad=True)
    value = Slim()(leaf, rows)
    value.backward(retain_graph=True)
    once = leaf.grad.clone()
    value.backward()
    torch.testing.assert_close(leaf.grad, 2 * once)
