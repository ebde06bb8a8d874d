from __future__ import annotations

import json

import pytest

from logitstore.errors import InvalidArgumentError
from logitstore.select import Selection

EVERY_KIND = [
    Selection(top_k=64),
    Selection(top_fraction=0.05),
    Selection(top_p=0.9, max_k=100),
    Selection(samples=50, seed=-7),
    Selection(top_k=8, samples=50),
]


@pytest.mark.parametrize(
    ("selection", "vocab_size", "slots"),
    [
        (Selection(top_k=64), 512, 64),
        (Selection(top_k=512), 512, 512),
        (Selection(top_fraction=0.05), 50_257, 2_513),
        (Selection(top_fraction=0.05), 512, 26),
        (Selection(top_fraction=1.0), 512, 512),
        (Selection(top_fraction=1e-9), 512, 1),
        (Selection(top_p=0.9, max_k=100), 512, 100),
        (Selection(top_p=0.9, max_k=1000), 512, 512),
        (Selection(samples=50), 512, 50),
        (Selection(samples=50), 7, 7),
        (Selection(top_k=8, samples=50), 512, 58),
        (Selection(top_k=8, samples=50), 50, 50),
    ],
)
def test_slots(selection: Selection, vocab_size: int, slots: int) -> None:
    assert selection.slots(vocab_size) == slots


def test_top_k_above_the_vocabulary_names_both_sizes() -> None:
    with pytest.raises(InvalidArgumentError, match=r"513.*512"):
        Selection(top_k=513).slots(512)


@pytest.mark.parametrize("selection", EVERY_KIND)
def test_json_round_trip(selection: Selection) -> None:
    assert Selection.from_json(json.loads(json.dumps(selection.to_json()))) == selection


def test_json_of_a_selection_without_draws_has_no_seed() -> None:
    assert Selection(top_k=64).to_json() == {"top_k": 64}


def test_unknown_json_field_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="top_q"):
        Selection.from_json({"top_k": 3, "top_q": 1})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "none of them"),
        ({"top_k": 0}, "top_k must be at least 1, not 0"),
        ({"top_k": 2.0}, "top_k must be an integer"),
        ({"top_k": True}, "top_k must be an integer"),
        ({"top_k": 2, "top_fraction": 0.1}, "top_fraction, top_k"),
        ({"top_k": 2, "top_p": 0.1, "max_k": 3}, "top_k, top_p"),
        ({"top_fraction": 0.0}, "top_fraction must be above 0"),
        ({"top_fraction": 1.01}, "top_fraction must be above 0"),
        ({"top_fraction": float("nan")}, "top_fraction must be above 0"),
        ({"top_p": 0.5}, "belong together"),
        ({"top_p": -0.5, "max_k": 3}, "top_p must be above 0"),
        ({"max_k": 3}, "belong together"),
        ({"top_k": 3, "max_k": 3}, "belong together"),
        ({"samples": 0}, "samples must be 1 to 255, not 0"),
        ({"samples": 256}, "samples must be 1 to 255, not 256"),
        ({"samples": 3, "top_fraction": 0.5}, "samples, top_fraction"),
        ({"samples": 3, "seed": 2**63}, "seed must be"),
    ],
)
def test_invalid_selections(fields: dict[str, float], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        Selection(**fields)
