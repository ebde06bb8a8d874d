"""Sampling of the next token: the distribution, the nucleus, ties, and what a draw depends on."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from logitstore.errors import CorruptDataError, InvalidArgumentError
from logitstore.select import Sampling, Selection, select_rows
from logitstore.select.draws import uniforms

V = 40
N = 20_000


@pytest.fixture(scope="module")
def logits() -> torch.Tensor:
    return torch.randn(V, generator=torch.Generator().manual_seed(3)) * 2


def draw(sampling: Sampling, logits: torch.Tensor, step: int = 0) -> torch.Tensor:
    """Tokens of N documents that all stand before the same row."""
    return torch.cat([sampling.choose(logits.expand(2000, -1), first + torch.arange(2000), step)
                      for first in range(0, N, 2000)])  # fmt: skip


def nucleus(logits: torch.Tensor, temperature: float, top_p: float) -> np.ndarray:
    """Plainly: probabilities over the nucleus, renormalised."""
    p = (logits.double() / temperature).softmax(0).numpy()
    order = np.argsort(-p, kind="stable")
    size = int(np.searchsorted(np.cumsum(p[order]), top_p)) + 1
    kept = np.zeros(len(p))
    kept[order[:size]] = p[order[:size]]
    return kept / kept.sum()


@pytest.mark.parametrize("step", [0, 1, 77])
@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (3.0, 1.0), (1.0, 0.8), (2.0, 0.5)])
def test_draws_follow_the_distribution(logits: torch.Tensor, temperature: float, top_p: float, step: int) -> None:
    drawn = draw(Sampling(temperature=temperature, top_p=top_p, seed=5), logits, step)
    counts = np.bincount(drawn.numpy(), minlength=V)
    expected = N * (nucleus(logits, temperature, top_p) if top_p < 1
                    else (logits.double() / temperature).softmax(0).numpy())  # fmt: skip
    assert not counts[expected == 0].any()
    # Rare ids are taken together, as the test asks for at least a few expected draws in each class.
    rare = expected < 5
    classes = [(counts[i], expected[i]) for i in np.flatnonzero(~rare)] + [(counts[rare].sum(), expected[rare].sum())]
    chi2 = sum((found - wanted) ** 2 / wanted for found, wanted in classes if wanted > 0)
    freedom = len(classes) - 1
    assert chi2 < freedom + 4 * np.sqrt(2 * freedom) + 4


def test_a_nucleus_that_is_wider_than_usual(monkeypatch: pytest.MonkeyPatch, logits: torch.Tensor) -> None:
    sampling = Sampling(temperature=2, top_p=0.9, seed=1)
    rows = torch.stack([logits * scale for scale in (0.1, 1, 4)] * 50)
    whole = sampling.choose(rows, torch.arange(150), 0)
    for usual in (1, 3, 12):
        monkeypatch.setattr("logitstore.select.sampling._USUAL_NUCLEUS", usual)
        assert sampling.choose(rows, torch.arange(150), 0).tolist() == whole.tolist()


def test_no_temperature_takes_the_most_probable_and_of_equals_the_smallest() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0], [3.0, 3.0, 3.0], [-torch.inf, -1.0, -torch.inf], [1.0, 2.0, 2.0]])
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        assert Sampling(temperature=0).choose(logits.to(dtype), torch.arange(4), 9).tolist() == [1, 0, 1, 1]


def test_a_small_temperature_or_nucleus_comes_to_the_same(logits: torch.Tensor) -> None:
    best = int(logits.argmax())
    for sampling in (Sampling(temperature=1e-6), Sampling(temperature=1e-320), Sampling(top_p=1e-9)):
        assert draw(sampling, logits).unique().tolist() == [best]


def test_ties_at_the_edge_of_the_nucleus_go_to_the_smaller_id() -> None:
    assert set(draw(Sampling(top_p=0.5), torch.zeros(8)).tolist()) == {0, 1, 2, 3}


def test_ruled_out_tokens_are_never_drawn(logits: torch.Tensor) -> None:
    ruled = logits.clone()
    ruled[::2] = -torch.inf
    for top_p in (1.0, 0.99999):
        assert not (draw(Sampling(temperature=100, top_p=top_p), ruled) % 2 == 0).any()


def test_a_draw_depends_on_seed_document_and_step_alone(logits: torch.Tensor) -> None:
    rows = torch.randn(64, V, generator=torch.Generator().manual_seed(0))
    documents = torch.arange(64) * 1000
    for sampling in (Sampling(seed=4), Sampling(seed=4, top_p=0.7)):
        together = sampling.choose(rows, documents, 3)
        alone = [int(sampling.choose(rows[i : i + 1], documents[i : i + 1], 3)) for i in range(64)]
        assert together.tolist() == alone
        assert sampling.choose(rows.flip(0), documents.flip(0), 3).flip(0).tolist() == alone
    others = [Sampling(seed=5).choose(rows, documents, 3), Sampling(seed=4).choose(rows, documents, 4),
              Sampling(seed=4).choose(rows, documents + 1, 3)]  # fmt: skip
    for other in others:
        assert (other != Sampling(seed=4).choose(rows, documents, 3)).float().mean() > 0.5


def test_draws_of_a_selection_with_the_same_seed_are_others(logits: torch.Tensor) -> None:
    n = 2000
    written = Sampling(seed=7).choose(logits.expand(n, -1), torch.arange(n), 0)
    kept = select_rows(logits.expand(n, -1), Selection(samples=1, seed=7), torch.full((n,), -1), torch.arange(n)).ids[
        :, 0
    ]
    agree = (logits.double().softmax(0) ** 2).sum()
    assert (written == kept).double().mean() == pytest.approx(float(agree), abs=0.05)


def test_columns_of_uniforms_may_start_anywhere() -> None:
    keys = torch.tensor([-1, 0, 5, 2**62])
    assert torch.equal(uniforms(3, keys, 4, first=6), uniforms(3, keys, 10)[:, 6:])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -0.1}, "temperature of sampling .* not -0.1"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"top_p": 0.0}, "top_p of sampling"),
        ({"top_p": 1.1}, "top_p of sampling"),
        ({"seed": 2**63}, "seed of sampling"),
    ],
)
def test_invalid_settings(settings: dict[str, float], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        Sampling(**settings)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_row_that_is_not_finite_is_an_error(bad: float, temperature: float) -> None:
    logits = torch.zeros(3, 5)
    logits[1, 2] = bad
    with pytest.raises(CorruptDataError, match="finite") as caught:
        Sampling(temperature=temperature).choose(logits, torch.arange(3), 0)
    assert caught.value.row == 1
