"""Batches of an epoch, and who gets them: everything once, whatever the number of ranks and workers."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logitstore.stream.order import DocumentOrder
from logitstore.stream.plan import Place, Plan
from logitstore.stream.share import Share

MODES = [(None, False), (7, False), (7, True)]


class Offsets:
    """All of a store that a plan looks at, and how often it does."""

    def __init__(self, lengths: list[int]) -> None:
        self._offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        self.reads: list[tuple[int, int]] = []

    def offsets(self, start: int, stop: int) -> np.ndarray:
        self.reads.append((start, stop))
        return self._offsets[start : stop + 1]


def make_plan(lengths: list[int], batch_size: int, mode: Any, *, window: int = 5, shuffle: bool = True) -> Plan:
    order = DocumentOrder(len(lengths), window, block=3, seed=1, epoch=0, shuffle=shuffle)
    return Plan(Offsets(lengths), order, batch_size, *mode)


def all_places(plan: Plan) -> list[Place]:
    places = [Place()]
    while plan.advance(places[-1], 1)[1]:
        places.append(plan.advance(places[-1], 1)[0])
    return places


def rows_of(layout: Any) -> list[tuple[int, int]]:
    """Document and row of each row that is laid out."""
    spans = zip(layout.documents.tolist(), layout.first_rows.tolist(), layout.rows.tolist(), strict=True)
    return [(document, row) for document, first, rows in spans for row in range(first, first + rows)]


LENGTHS = st.lists(st.integers(1, 20), max_size=25)


@given(LENGTHS, st.integers(1, 6), st.sampled_from(MODES), st.integers(1, 9), st.booleans())
@settings(deadline=None)
def test_every_row_comes_once(lengths: list[int], batch_size: int, mode: Any, window: int, shuffle: bool) -> None:
    plan = make_plan(lengths, batch_size, mode, window=window, shuffle=shuffle)
    places = all_places(plan)
    layouts = [plan.layout(place) for place in places]
    assert layouts[-1].sequences == 0
    assert len(places) - 1 == plan.batches
    assert [layout.sequences for layout in layouts[:-2]] == [batch_size] * (len(places) - 2)
    assert sum(layout.sequences for layout in layouts) == plan.sequences
    numbers = np.repeat(np.arange(len(lengths)), lengths).tolist()
    assert Counter(row for layout in layouts for row in rows_of(layout)) == Counter(
        zip(numbers, range(len(numbers)), strict=True)
    )
    ends = np.cumsum(lengths)
    for layout in layouts:
        assert layout.longest <= (mode[0] or 20)
        assert ((layout.first_rows + layout.rows < ends[layout.documents]) == layout.follows).all()
        for number in range(layout.sequences):
            inside = layout.sequence == number
            assert layout.columns[inside].tolist() == [0, *np.cumsum(layout.rows[inside])[:-1]]


@given(LENGTHS, st.integers(1, 4), st.sampled_from(MODES), st.integers(0, 30), st.integers(0, 30))
@settings(deadline=None)
def test_places_add_up(lengths: list[int], batch_size: int, mode: Any, first: int, second: int) -> None:
    plan = make_plan(lengths, batch_size, mode)
    middle, sequences = plan.advance(Place(), first)
    end, more = plan.advance(middle, second)
    assert (end, sequences + more) == plan.advance(Place(), first + second)
    assert end.batches == min(first + second, plan.batches)
    assert all(plan.has(place) for place in (Place(), middle, end))
    assert not plan.has(Place(end.batches, end.window + len(lengths) + 1, 0))
    assert not plan.has(Place(-1, 0, 0))


@given(
    LENGTHS, st.integers(1, 4), st.sampled_from(MODES), st.integers(1, 6), st.integers(1, 4), st.integers(0, 9),
    st.booleans(),
)  # fmt: skip
@settings(deadline=None, max_examples=200)
def test_shares_are_the_epoch(
    lengths: list[int], batch_size: int, mode: Any, replicas: int, workers: int, begin: int, drop_last: bool
) -> None:
    plan = make_plan(lengths, batch_size, mode)
    places = all_places(plan)
    start, _ = plan.advance(Place(), begin)
    steps: dict[tuple[int, int], Any] = {}
    for rank in range(replicas):
        counts = []
        for worker in range(workers):
            share = Share(replicas, rank, workers, worker)
            own = list(share.steps(plan, start, drop_last=drop_last))
            counts.append(len(own))
            steps |= {(worker + workers * turn, rank): step for turn, step in enumerate(own)}
        # Round robin: no worker is ahead of one before it, nor more than one behind.
        assert counts == sorted(counts, reverse=True)
        assert counts[0] - counts[-1] <= 1
    taken = [steps[key] for key in sorted(steps)]
    assert len(taken) % replicas == 0
    found = [step.place for step in taken if step.place is not None]
    left = places[start.batches : -1]
    if drop_last:
        full = (plan.full_batches - start.batches) // replicas * replicas
        assert found == left[: max(0, full)]
        assert len(found) == len(taken)
    else:
        assert found == left
        assert len(taken) - len(found) < replicas
        assert taken[-1].after == places[-1] if taken else not left
    if not begin:
        share = Share(replicas, 0, workers, 0)
        assert len(taken) // replicas == share.batches(plan, drop_last=drop_last)
    # Each step tells where all ranks are after it, and a worker goes on from there.
    for (turn, rank), step in steps.items():
        again = Share(replicas, rank, workers, turn % workers).steps(plan, step.after, taken=1, drop_last=drop_last)
        assert next(again, None) == steps.get((turn + workers, rank))
        assert step.after in places


@pytest.mark.parametrize("mode", MODES)
def test_going_on_looks_at_few_windows(mode: Any) -> None:
    lengths = [5] * 1000
    plan = make_plan(lengths, 4, mode, window=10)
    place, _ = plan.advance(Place(), 150)
    resumed = make_plan(lengths, 4, mode, window=10)
    steps = Share(2, 1, 2, 1).steps(resumed, place)
    resumed.layout(next(steps).place)
    looked_at = {document // 10 for start, stop in resumed._store.reads for document in range(start, stop)}
    assert 0 < len(looked_at) < 30


def test_a_plan_of_whole_documents_is_arithmetic() -> None:
    plan = make_plan([5] * 1000, 4, (None, False))
    assert plan.batches == 250
    assert plan.advance(Place(), 200)[0] == Place(200, 160, 0)
    assert plan._store.reads == []


def test_packing_fills_sequences() -> None:
    generator = np.random.default_rng(0)
    lengths = np.minimum(64, generator.lognormal(2.5, 1, 2000).astype(int) + 1).tolist()
    packed = make_plan(lengths, 1, (64, True), window=500).sequences
    assert packed < 1.05 * sum(lengths) / 64


def test_packed_sequences_are_shuffled_and_their_documents_in_order() -> None:
    lengths = [3, 4] * 50
    for shuffle in (True, False):
        order = DocumentOrder(100, 100, block=3, seed=1, epoch=0, shuffle=shuffle)
        layout = Plan(Offsets(lengths), order, 1000, 7, True).layout(Place())
        position = np.argsort(order.window(0))[layout.documents]
        firsts = position[layout.columns == 0]
        for number in range(layout.sequences):
            inside = position[layout.sequence == number]
            assert (np.diff(inside) > 0).all()
        assert (np.diff(firsts) > 0).all() == (not shuffle)


def test_cut_documents_stay_together() -> None:
    plan = make_plan([15, 2], 10, (7, False), shuffle=False)
    layout = plan.layout(Place())
    found = SimpleNamespace(**{name: getattr(layout, name).tolist() for name in ("first_rows", "rows", "follows")})
    assert (found.first_rows, found.rows) == ([0, 7, 14, 15], [7, 7, 1, 2])
    assert found.follows == [True, True, False, False]
