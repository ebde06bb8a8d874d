"""Fused against plain, reductions, masks, precision, memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from logitstore.errors import InvalidArgumentError
from logitstore.loss import CrossEntropy, ForwardKL, Slim, TeacherRows, make_loss

R, V, H = 14, 23, 6


class Head:
    """Hidden states and an LM head, as leaves."""

    def __init__(self, seed=0, *, dtype=torch.float64, bias=True):
        generator = torch.Generator().manual_seed(seed)
        shapes = [(R, H), (V, H), (V,)] if bias else [(R, H), (V, H)]
        self.leaves = [torch.randn(*shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]
        self.hidden, self.weight = self.leaves[:2]
        self.bias = self.leaves[2] if bias else None

    def logits(self):
        return torch.nn.functional.linear(self.hidden, self.weight, self.bias)

    def gradients(self):
        found = [leaf.grad for leaf in self.leaves]
        for leaf in self.leaves:
            leaf.grad = None
        return found


def rows_for(teacher_rows, **changes):
    return teacher_rows(np.random.default_rng(9), R, V, 5, **({"values": torch.float64, "holes": True} | changes))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("bias", [True, False])
def test_fused_equals_plain(name, options, reduction, bias, teacher_rows):
    head, rows, loss = Head(bias=bias), rows_for(teacher_rows, ragged=True), make_loss(name, **options)
    above = torch.linspace(0.5, 2, R, dtype=torch.float64) if reduction == "none" else torch.tensor(3.0).double()
    plain = loss(head.logits(), rows, reduction=reduction)
    plain.backward(above)
    expected = head.gradients()
    fused = loss.fused(head.hidden, head.weight, rows, bias=head.bias, reduction=reduction, chunk_rows=4)
    fused.backward(above)
    torch.testing.assert_close(fused, plain)
    torch.testing.assert_close(head.gradients(), expected)


# SLIM's weight is detached and total variation has kinks: what they are is held to the reference.
@pytest.mark.without("slim", "total_variation")
def test_gradcheck(name, options, teacher_rows):
    head, rows, loss = Head(), rows_for(teacher_rows), make_loss(name, **options)
    assert torch.autograd.gradcheck(
        lambda hidden, weight, bias: loss.fused(hidden, weight, rows, bias=bias, reduction="none", chunk_rows=5),
        head.leaves,
    )
    logits = head.logits().detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda logits: loss(logits, rows, chunk_rows=5), [logits])


def test_in_place_equals_plain_and_takes_the_logits(name, options, teacher_rows):
    head, rows, loss = Head(), rows_for(teacher_rows), make_loss(name, **options)
    loss(head.logits(), rows).backward()
    expected = head.gradients()
    logits = head.logits()
    before = logits.data_ptr(), logits.detach().clone()
    value = loss(logits, rows, inplace=True, chunk_rows=4)
    assert not torch.equal(logits, before[1])
    value.backward()
    torch.testing.assert_close(head.gradients(), expected)


def test_in_place_is_refused_where_the_logits_are_still_needed(teacher_rows):
    logits = torch.zeros(R, V, requires_grad=True).tanh()
    loss = Slim()(logits, rows_for(teacher_rows), inplace=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_gradients_computed_ahead_are_used_once(teacher_rows):
    head, rows = Head(), rows_for(teacher_rows)
    for loss in (
        Slim().fused(head.hidden, head.weight, rows),
        Slim()(head.logits(), rows, inplace=True),
    ):
        loss.backward(retain_graph=True)
        with pytest.raises(RuntimeError, match="used up by an earlier backward pass"):
            loss.backward()
    head.gradients()
    again = Slim()(head.logits(), rows)
    again.backward(retain_graph=True)
    once = [gradient.clone() for gradient in (head.gradients())]
    again.backward()
    torch.testing.assert_close(head.gradients(), once)


@pytest.mark.parametrize("fused", [False, True])
def test_only_what_is_wanted_is_computed(fused, teacher_rows):
    head, rows = Head(), rows_for(teacher_rows)
    head.weight.requires_grad_(False)
    loss = Slim()
    (loss.fused(head.hidden, head.weight, rows) if fused else loss(head.logits(), rows)).backward()
    assert head.hidden.grad is not None
    assert head.weight.grad is None
    with torch.no_grad():
        value = loss.fused(head.hidden, head.weight, rows) if fused else loss(head.logits(), rows, inplace=True)
    assert not value.requires_grad


def test_reductions(teacher_rows):
    head, rows, loss = Head(), rows_for(teacher_rows), Slim()
    none, total, mean = (loss(head.logits(), rows, reduction=r) for r in ("none", "sum", "mean"))
    counted = loss.counted(rows)
    assert 0 < counted.sum() < R
    assert (none[~counted] == 0).all()
    torch.testing.assert_close(total, none.sum())
    torch.testing.assert_close(mean, none.sum() / counted.sum())


def test_what_counts():
    rows = TeacherRows(
        ids=torch.tensor([[1, -1], [-1, -1], [2, 1], [1, 2], [-1, 0]]),
        logprobs=torch.full((5, 2), -1.0),
        labels=torch.tensor([3, 3, -100, 1, 1]),
        label_logprob=torch.tensor([-1.0, -1.0, torch.nan, -1.0, -1.0]),
        mask=torch.tensor([1, 1, 1, 0, 1], dtype=torch.uint8),
    )
    assert Slim().counted(rows).tolist() == [True, False, False, False, True]
    assert ForwardKL().counted(rows).tolist() == [True, False, True, False, True]
    assert CrossEntropy().counted(rows).tolist() == [True, True, False, False, True]


@pytest.mark.parametrize("R", [0, 3])
@pytest.mark.parametrize("form", ["plain", "in place", "fused"])
def test_no_row_counts(form, R):
    rows = TeacherRows(ids=torch.ones(R, 2).int(), logprobs=torch.zeros(R, 2), mask=torch.zeros(R).bool())
    hidden, weight = torch.ones(R, H, requires_grad=True), torch.ones(V, H, requires_grad=True)
    loss = ForwardKL()
    if form == "fused":
        value = loss.fused(hidden, weight, rows)
    else:
        value = loss(hidden @ weight.T, rows, inplace=form == "in place")
    value.backward()
    assert value == 0
    assert (hidden.grad == 0).all()
    assert (weight.grad == 0).all()


@pytest.mark.parametrize("form", ["plain", "in place", "fused"])
def test_rows_that_do_not_count_may_be_anything(form, teacher_rows):
    rows = rows_for(teacher_rows, values=torch.float32)
    counted = Slim().counted(rows)
    hidden = Head(dtype=torch.float32).hidden.detach().clone()
    hidden[~counted] = torch.nan
    hidden.requires_grad_()
    weight = Head(dtype=torch.float32).weight
    if form == "fused":
        value = Slim().fused(hidden, weight, rows)
        value.backward()
        assert weight.grad.isfinite().all()
        assert (hidden.grad[~counted] == 0).all()
    else:
        logits = (hidden @ weight.T).detach().requires_grad_()
        value = Slim()(logits, rows, inplace=form == "in place")
        value.backward()
        assert (logits.grad[~counted] == 0).all()
        assert logits.grad.isfinite().all()
    assert value.isfinite()


def test_leading_axes(teacher_rows):
    head, rows = Head(), rows_for(teacher_rows)
    folded = TeacherRows(**{name: tensor.unflatten(0, (2, R // 2)) for name, tensor in rows.given().items()})
    logits, hidden = head.logits().unflatten(0, (2, R // 2)), head.hidden.unflatten(0, (2, R // 2))
    expected = Slim()(head.logits(), rows, reduction="none")
    for found in (
        Slim()(logits, folded, reduction="none"),
        Slim().fused(hidden, head.weight, folded, bias=head.bias, reduction="none"),
    ):
        assert found.shape == (2, R // 2)
        torch.testing.assert_close(found.flatten(), expected)


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_autocast_and_bfloat16_weights(weights, teacher_rows):
    rows = rows_for(teacher_rows, values=torch.float16)
    exact = Head(3)
    Slim().fused(exact.hidden, exact.weight, rows, bias=exact.bias).backward()
    expected = exact.gradients()
    head = Head(3, dtype=weights)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=weights == torch.float32):
        loss = Slim().fused(head.hidden, head.weight, rows, bias=head.bias, chunk_rows=3)
        reference = Slim()(head.logits(), rows)
    loss.backward()
    torch.testing.assert_close(loss, reference)
    for found, right in zip(head.gradients(), expected, strict=True):
        assert found.dtype == weights
        torch.testing.assert_close(found.double(), right, rtol=0.02, atol=0.004)


def test_the_gradient_of_the_weight_is_summed_in_float32():
    # 4,096 equal rows, one a chunk: bfloat16 would stop growing at 256 of them.
    n = 1024
    hidden = torch.ones(n, 1, dtype=torch.bfloat16)
    weight = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    rows = TeacherRows(labels=torch.zeros(n, dtype=torch.int64))
    CrossEntropy().fused(hidden, weight, rows, reduction="sum", chunk_rows=1).backward()
    assert weight.grad.flatten().tolist() == [-n / 2, n / 2]


@pytest.mark.parametrize("inplace", [False, True])
def test_float16_survives_the_mean_of_many_rows_under_loss_scaling(inplace):
    # A probability of 1/500 over 20,000 rows is 1e-7, which float16 cannot hold; times the scale it can.
    n, width, scale = 20_000, 500, 65536.0
    logits = torch.zeros(n, width, dtype=torch.float16, requires_grad=True)
    loss = CrossEntropy()(logits, TeacherRows(labels=torch.zeros(n, dtype=torch.int64)), inplace=inplace)
    (loss * scale).backward()
    assert logits.grad[:, 1:].float().mean().item() == pytest.approx(scale / n / width, rel=1e-3)


def test_parts(teacher_rows):
    head, rows = Head(), rows_for(teacher_rows)
    by_form = []
    for form in ("plain", "fused"):
        parts: dict[str, torch.Tensor] = {}
        if form == "plain":
            loss = Slim()(head.logits(), rows, parts=parts, chunk_rows=3)
        else:
            loss = Slim().fused(head.hidden, head.weight, rows, bias=head.bias, parts=parts, chunk_rows=3)
        loss.backward()
        assert set(parts) == {"cross_entropy", "distillation", "kept_cross_entropy", "weight"}
        torch.testing.assert_close(loss.detach(), parts["cross_entropy"] + parts["distillation"])
        assert not any(part.requires_grad for part in parts.values())
        by_form.append(parts)
    torch.testing.assert_close(*by_form)
    assert 0 < by_form[0]["weight"] < 1
    torch.testing.assert_close(
        by_form[0]["cross_entropy"],
        CrossEntropy()(head.logits(), TeacherRows(labels=rows.labels, mask=Slim().counted(rows))),
    )
    for options in ({}, {"temperature": 2.0}):
        parts = {}
        mixed = make_loss("forward_kl", ce_weight=0.25, **options)(head.logits(), rows, parts=parts)
        torch.testing.assert_close(mixed, 0.75 * parts["forward_kl"] + 0.25 * parts["cross_entropy"])


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensors that come into being."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        given = {id(arg) for arg in args if isinstance(arg, torch.Tensor)}
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor) and id(tensor) not in given and not func.is_view:
                self.sizes.append(tensor.numel())
        return result


def test_no_more_tensors_of_the_size_of_the_logits_than_needed(name, options):
    n, width, K = 64, 101, 3
    rows = TeacherRows(
        ids=torch.arange(K).expand(n, K),
        logprobs=torch.full((n, K), -2.0),
        lse=torch.zeros(n),
        lse_T=torch.zeros(n),
        labels=torch.zeros(n, dtype=torch.int64),
        label_logprob=torch.full((n,), -2.0),
        counts=torch.ones(n, K, dtype=torch.uint8),
        full_logits=torch.zeros(n, width),
    )
    hidden, weight = torch.ones(n, 2, requires_grad=True), torch.ones(width, 2, requires_grad=True)
    loss = make_loss(name, **options)
    with Largest() as seen:
        loss.fused(hidden, weight, rows, chunk_rows=8).backward()
    assert max(seen.sizes) <= 8 * width
    for inplace, full_size in ((False, 1), (True, 0)):
        logits = (hidden @ weight.T).detach().requires_grad_()
        with Largest() as seen:
            value = loss(logits, rows, chunk_rows=8, inplace=inplace)
        assert max(seen.sizes) <= 8 * width
        with Largest() as seen:
            value.backward()
        assert sum(size >= n * width for size in seen.sizes) == full_size


def test_wrong_shapes_are_named(teacher_rows):
    rows, loss = rows_for(teacher_rows), Slim()
    logits = torch.zeros(R, V)
    with pytest.raises(InvalidArgumentError, match=r"student's rows must be the teacher's; found \(13,\) and \(14,\)"):
        loss(logits[1:], rows)
    with pytest.raises(InvalidArgumentError, match=r"must be smaller than the student's vocabulary, 4; found"):
        loss(logits[:, :4], rows)
    with pytest.raises(InvalidArgumentError, match="must share a vocabulary; found 23 logits against 22"):
        make_loss("full_kl")(logits[:, 1:], rows)
    with pytest.raises(InvalidArgumentError, match="slim needs label_logprob; the rows hold ids, logprobs, labels"):
        loss(logits, TeacherRows(ids=rows.ids, logprobs=rows.logprobs, labels=rows.labels))
    with pytest.raises(InvalidArgumentError, match="reduction must be one of mean, none, sum, not 'max'"):
        loss(logits, rows, reduction="max")
    with pytest.raises(InvalidArgumentError, match="chunk_rows must be at least 1, not 0"):
        loss(logits, rows, chunk_rows=0)
    with pytest.raises(InvalidArgumentError, match=r"must fit weight \(V, H\)"):
        loss.fused(torch.zeros(R, 3), torch.zeros(V, 4), rows)
    with pytest.raises(InvalidArgumentError, match="of one type outside autocast"):
        loss.fused(torch.zeros(R, 3), torch.zeros(V, 3).bfloat16(), rows)
