from __future__ import annotations

import pytest
import torch

from logitstore.errors import InvalidArgumentError
from logitstore.loss import LOSSES, Mixture, TeacherRows, loss_options, make_loss


def test_names_are_sorted_and_their_classes_own():
    assert list(LOSSES) == sorted(LOSSES)
    assert all(name == loss.name for name, loss in LOSSES.items())


@pytest.mark.parametrize("name", LOSSES)
def test_defaults_make_the_default(name):
    assert make_loss(name, **loss_options(name)) == make_loss(name) == LOSSES[name]()


@pytest.mark.parametrize(
    ("loss", "options", "message"),
    [
        ("mse", {}, "no loss is called 'mse'; there are cross_entropy, decoupled, forward_kl, full_kl"),
        ("slim", {"beta": 1}, "slim has no option 'beta'; its options: weight, support"),
        ("slim", {"ce_weight": 1}, "slim has no option 'ce_weight'"),
        ("cross_entropy", {"beta": 1}, "cross_entropy has no option 'beta'; its options: none"),
        ("slim", {"weight": "eq5"}, "weight must be one of eq4, text, not 'eq5'"),
        ("slim", {"support": ""}, "support must be one of renorm, submass, zero_logit, not ''"),
        ("forward_kl", {"outside": "zero"}, "outside must be one of renorm, residual, submass, tail, not 'zero'"),
        ("forward_kl", {"outside": "residual", "temperature": 2}, "temperature must be 1 with outside='residual'"),
        ("forward_kl", {"temperature": 0}, "temperature must be positive and finite, not 0"),
        ("forward_kl", {"temperature": "hot"}, "temperature must be a number, not 'hot'"),
        ("decoupled", {"tau": float("inf")}, "tau must be positive and finite, not inf"),
        ("jensen_shannon", {"beta": 1.0}, "beta must lie between 0 and 1, both excluded, not 1.0"),
        ("reverse_kl", {"ce_weight": 1.5}, "ce_weight must lie between 0 and 1, not 1.5"),
    ],
)
def test_what_does_not_exist_is_named(loss, options, message):
    with pytest.raises(InvalidArgumentError) as caught:
        make_loss(loss, **options)
    assert message in str(caught.value)


def test_a_mixture_of_a_mixture_is_refused():
    with pytest.raises(InvalidArgumentError, match="found a mixture inside"):
        Mixture(make_loss("forward_kl", ce_weight=0.5), 0.5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "at least one tensor"),
        ({"ids": torch.zeros(2, 3).int(), "labels": torch.zeros(3).int()}, "must have the same rows"),
        ({"ids": torch.zeros(2, 3).int(), "logprobs": torch.zeros(2, 4)}, "must have the same slots"),
        ({"ids": torch.zeros(2, 3, dtype=torch.uint8)}, "ids must be int32 or int64"),
        ({"labels": torch.zeros(2)}, "labels must be int32 or int64"),
    ],
)
def test_rows_that_do_not_belong_together(fields, message):
    with pytest.raises(InvalidArgumentError, match=message):
        TeacherRows(**fields)


def test_rows_move_and_fold():
    rows = TeacherRows(ids=torch.zeros(2, 3, 4).int(), labels=torch.zeros(2, 3).long())
    assert rows.shape == (2, 3)
    assert rows.flat().shape == (6,)
    assert rows.flat().select(slice(1, 3)).shape == (2,)
    assert rows.to("meta").need("ids").device.type == "meta"
    with pytest.raises(InvalidArgumentError, match="needs lse; the rows hold ids, labels"):
        rows.need("lse")
