from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logitstore.errors import InvalidArgumentError
from logitstore.teacher import plan_batches


@given(st.lists(st.integers(1, 100), max_size=60), st.integers(1, 300))
def test_every_document_once_and_every_batch_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = plan_batches(lengths, budget)
    assert sorted(document for batch in batches for document in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[document] for document in batch) <= budget
    assert batches == plan_batches(lengths, budget)


def test_batches_hold_documents_of_similar_length() -> None:
    assert plan_batches([5, 1, 9, 2, 30], tokens_per_batch=12) == [[1, 3], [0], [2], [4]]
    assert plan_batches([7, 7, 7], tokens_per_batch=14) == [[0, 1], [2]]


def test_a_document_longer_than_the_budget_is_a_batch_of_its_own() -> None:
    assert plan_batches([3, 50, 3], tokens_per_batch=10) == [[0, 2], [1]]


def test_no_documents_no_batches() -> None:
    assert plan_batches([], 10) == []


def test_budget_must_be_positive() -> None:
    with pytest.raises(InvalidArgumentError, match="tokens_per_batch must be at least 1, not 0"):
        plan_batches([1], 0)
