from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from logitstore.select import Selection, select_rows
from logitstore.select.draws import _GAMMA, _mix, draw_ids, uniforms

if TYPE_CHECKING:
    import pytest


def test_uniforms_are_the_splitmix64_sequence() -> None:
    # The published first numbers of seed 1234567.
    first = _mix(torch.tensor(1234567) + _GAMMA)
    second = _mix(torch.tensor(1234567) + torch.tensor(2) * _GAMMA)
    assert int(first) % 2**64 == 6457827717110365317
    assert int(second) % 2**64 == 3203168211198807973


def test_uniforms_are_uniform_and_uncorrelated_across_rows() -> None:
    u = uniforms(seed=0, row_keys=torch.arange(2000), count=50).numpy()
    assert u.min() >= 0
    assert u.max() < 1
    assert abs(u.mean() - 0.5) < 5 / np.sqrt(12 * u.size)
    assert np.histogram(u, 20, (0, 1))[0].min() > 0.94 * u.size / 20
    assert abs(np.corrcoef(u[:-1].ravel(), u[1:].ravel())[0, 1]) < 5 / np.sqrt(u.size)
    assert len(np.unique(u)) == u.size


def test_seed_row_key_and_draw_number_each_matter() -> None:
    logits, keys = torch.zeros(1, 10_000), torch.tensor([5])
    base = draw_ids(logits, 0, keys, 20)
    assert torch.equal(draw_ids(logits, 0, keys, 10), base[:, :10])
    assert not torch.equal(draw_ids(logits, 1, keys, 20), base)
    assert not torch.equal(draw_ids(logits, 0, keys + 1, 20), base)
    assert len(base.unique()) > 15


def test_draws_are_an_unbiased_estimate_of_the_distribution() -> None:
    n, V, N = 4000, 12, 50
    row = torch.linspace(-3, 2, V)
    rows = select_rows(
        row.expand(n, V), Selection(samples=N, seed=11), torch.full((n,), -1), torch.arange(n, dtype=torch.int64)
    )
    assert rows.counts is not None
    total = torch.zeros(V, dtype=torch.int64)
    used = rows.ids >= 0
    total.scatter_add_(0, rows.ids[used].long(), rows.counts[used].long())
    assert int(total.sum()) == n * N
    p = row.softmax(0).numpy()
    deviation = (total.numpy() / (n * N) - p) / np.sqrt(p * (1 - p) / (n * N))
    assert np.abs(deviation).max() < 4


def test_every_row_counts_all_its_draws_on_distinct_ascending_ids() -> None:
    logits = torch.randn(40, 30, generator=torch.Generator().manual_seed(0)) * 4
    keys = torch.arange(40)
    rows = select_rows(logits, Selection(samples=255, seed=2), torch.full((40,), -1), keys)
    assert rows.ids.shape == (40, 30)
    assert rows.counts is not None
    assert (rows.counts.long().sum(1) == 255).all()
    for ids in rows.ids.tolist():
        used = [token for token in ids if token != -1]
        assert used == sorted(set(used))


def test_255_draws_of_a_certain_token_fit_the_count() -> None:
    logits = torch.full((1, 9), -torch.inf)
    logits[0, 8] = 0.0
    rows = select_rows(logits, Selection(samples=255), torch.tensor([-1]), torch.tensor([0]))
    assert rows.counts is not None
    assert rows.ids[0].tolist() == [8] + [-1] * 8
    assert rows.counts[0].tolist() == [255] + [0] * 8


def test_an_impossible_token_is_never_drawn() -> None:
    logits = torch.full((500, 64), -torch.inf)
    logits[:, 20:40] = 0.0
    drawn = draw_ids(logits, 0, torch.arange(500), 100)
    assert int(drawn.min()) == 20
    assert int(drawn.max()) == 39


def test_numbers_at_the_edges_of_the_distribution_hit_possible_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    edges = torch.tensor([[0.0, 0.5, 1 - 2.0**-53]], dtype=torch.float64)
    monkeypatch.setattr("logitstore.select.draws.uniforms", lambda *_: edges)
    drawn = draw_ids(torch.tensor([[-torch.inf, 1.0, 1.0, -torch.inf]]), 0, torch.tensor([0]), 3)
    assert drawn.tolist() == [[1, 2, 2]]


def test_top_k_plus_draws_is_the_union_with_zero_counts_for_what_was_not_drawn() -> None:
    logits = torch.randn(30, 200, generator=torch.Generator().manual_seed(1)) * 2
    keys = torch.arange(30)
    labels = torch.full((30,), -1)
    top = select_rows(logits, Selection(top_k=8), labels)
    drawn = select_rows(logits, Selection(samples=20, seed=4), labels, keys)
    both = select_rows(logits, Selection(top_k=8, samples=20, seed=4), labels, keys)
    assert drawn.counts is not None
    assert both.counts is not None
    for i in range(30):
        counts = dict(zip(drawn.ids[i].tolist(), drawn.counts[i].tolist(), strict=True))
        expected = sorted({*top.ids[i].tolist(), *counts} - {-1})
        used = both.ids[i] >= 0
        assert both.ids[i][used].tolist() == expected
        assert both.counts[i][used].tolist() == [counts.get(token, 0) for token in expected]
