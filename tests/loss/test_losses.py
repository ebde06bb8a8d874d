"""Torch against the reference, in value and gradient, in every form."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from logitstore.loss import ForwardKL, TeacherRows, TotalVariation, make_loss
from logitstore.loss.reference import reference_loss
from tests.loss.conftest import both

TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
"""Of the gradient, which is rounded to the type of the logits; inside, all but float64 is computed in float32."""


@given(
    seed=st.integers(0, 2**32 - 1),
    R=st.integers(0, 6),
    V=st.integers(2, 24),
    share=st.floats(0, 1),
    dtype=st.sampled_from(list(TOLERANCE)),
    values=st.sampled_from([torch.float16, torch.float32]),
    flags=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    inplace=st.booleans(),
    chunk_rows=st.integers(1, 4),
)
@settings(max_examples=25, deadline=None)
def test_equals_the_reference(
    name, options, teacher_rows, seed, R, V, share, dtype, values, flags, inplace, chunk_rows
):
    ties, ragged, holes = flags
    generator = np.random.default_rng(seed)
    K = max(1, round(share * V))
    rows = teacher_rows(generator, R, V, K, values=values, ties=ties, ragged=ragged, holes=holes)
    logits = generator.standard_normal((R, V)) * 3
    logits = torch.tensor(np.round(logits) if ties else logits).to(dtype)
    if name == "total_variation":
        assume(not near_a_kink(logits, rows, options))
    value, gradient = reference_loss(name, logits.double().numpy(), rows, **options)
    ours = both(make_loss(name, **options), logits, rows, inplace=inplace, chunk_rows=chunk_rows)
    assert ours[0].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert ours[1].dtype == dtype
    value_tolerance = 1e-9 if dtype == torch.float64 else 3e-5
    np.testing.assert_allclose(ours[0].numpy(), value, rtol=value_tolerance, atol=value_tolerance)
    np.testing.assert_allclose(ours[1].double().numpy(), gradient, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def near_a_kink(logits, rows, options):
    """The total variation has no gradient where p = q, and rounding decides on which side a row is."""
    T = options.get("temperature", 1.0)
    q = (logits.double() / T).softmax(1)
    p = (
        rows.logprobs.double().exp()
        if T == 1
        else ((rows.logprobs.double() + rows.lse[:, None].double()) / T - rows.lse_T[:, None].double()).exp()
    )
    used = rows.ids >= 0
    q = q.gather(1, rows.ids.long().clamp(min=0)).masked_fill(~used, 0)
    p = p.masked_fill(~used, 0)
    gaps = torch.cat([(p - q).abs()[used], ((1 - p.sum(1)).clamp(min=0) - (1 - q.sum(1))).abs()])
    return bool((gaps < 1e-5).any())


def test_huge_logits_neither_overflow_nor_blur(name, options, teacher_rows):
    generator = np.random.default_rng(5)
    rows = teacher_rows(generator, 8, 16, 5, values=torch.float32, ragged=True)
    for scale, offset in ((1e4, 0), (0.25, 1e4), (0.25, -1e4)):
        logits = torch.tensor((generator.standard_normal((8, 16)) * scale + offset).astype(np.float32))
        value, gradient = reference_loss(name, logits.double().numpy(), rows, **options)
        ours = both(make_loss(name, **options), logits, rows)
        assert all(tensor.isfinite().all() for tensor in ours)
        np.testing.assert_allclose(ours[0].numpy(), value, rtol=1e-5, atol=3e-5)
        np.testing.assert_allclose(ours[1].numpy(), gradient, rtol=1e-4, atol=3e-5)


@pytest.mark.parametrize("values", [torch.float16, torch.float32])
@pytest.mark.parametrize("outside", ["renorm", "submass", "tail", "residual"])
def test_all_ids_kept_is_full_distillation(outside, values, teacher_rows):
    generator = np.random.default_rng(6)
    rows = teacher_rows(generator, 32, 40, 40, values=values)
    if values == torch.float16:
        # What a store holds: the teacher is then the one of the rounded numbers.
        dense = torch.zeros(32, 40).scatter_(1, rows.ids.long(), rows.logprobs.float())
        rows = TeacherRows(**(rows.given() | {"full_logits": dense}))
    logits = torch.tensor(generator.standard_normal((32, 40)), dtype=torch.float32)
    full = both(make_loss("full_kl"), logits, rows)
    kept = both(ForwardKL(outside), logits, rows)
    # Rounded log-probabilities do not sum to 1, and only "renorm" makes them.
    exact = values == torch.float32 or outside == "renorm"
    torch.testing.assert_close(kept[0], full[0], rtol=1e-5, atol=1e-5 if exact else 2e-3)
    torch.testing.assert_close(kept[1], full[1], rtol=1e-5, atol=1e-6 if exact else 1e-3)


def test_a_tail_of_nearly_nothing_is_exact():
    # 1 - b in float32 would be 0 or 6e-8 here, and the gradient a quotient of two such.
    tail = 1e-9
    logits = torch.tensor(
        [[0.0, np.log(tail) - np.log(2), np.log(tail) - np.log(2)]], dtype=torch.float32, requires_grad=True
    )
    rows = TeacherRows(ids=torch.tensor([[0]]), logprobs=torch.tensor([[np.log(0.5)]], dtype=torch.float32))
    loss = ForwardKL("tail")(logits, rows)
    loss.backward()
    assert loss.item() == pytest.approx(0.5 * np.log(0.5) + 0.5 * (np.log(0.5) - np.log(tail)), rel=1e-6)
    torch.testing.assert_close(logits.grad, torch.tensor([[0.5, -0.25, -0.25]]))


def test_equal_distributions_are_at_rest(teacher_rows):
    rows = teacher_rows(np.random.default_rng(7), 16, 20, 6, values=torch.float32)
    for name in ("decoupled", "forward_kl", "jensen_shannon", "reverse_kl"):
        value, gradient = both(make_loss(name), rows.full_logits, rows)
        assert value.abs().max() < 1e-6
        assert gradient.abs().max() < 1e-6
    assert TotalVariation()(rows.full_logits, rows) < 1e-6


@pytest.mark.without("full_kl")  # its teacher would need the padding as well
def test_padding_of_the_vocabulary_at_minus_infinity_gets_nothing(name, options, teacher_rows):
    generator = np.random.default_rng(8)
    rows = teacher_rows(generator, 6, 10, 4, values=torch.float32)
    logits = torch.tensor(generator.standard_normal((6, 10)), dtype=torch.float32)
    padded = torch.cat([logits, torch.full((6, 3), -torch.inf)], 1)
    loss = make_loss(name, **options)
    value, gradient = both(loss, padded, rows)
    assert (gradient[:, 10:] == 0).all()
    if options.get("support") != "zero_logit":
        torch.testing.assert_close((value, gradient[:, :10]), both(loss, logits, rows))
