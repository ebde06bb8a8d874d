from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from logitstore import layout
from logitstore.errors import CorruptDataError, InvalidArgumentError
from logitstore.select import SelectedRows, Selection, select_rows
from logitstore.select.reference import select_row_reference

relaxed = settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def random_logits(
    n: int, V: int, seed: int = 0, dtype: torch.dtype = torch.float32, scale: float = 3.0
) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(n, V, generator=generator) * scale).to(dtype)


def no_labels(n: int) -> torch.Tensor:
    return torch.full((n,), -1)


def assert_equals_reference(
    rows: SelectedRows,
    logits: torch.Tensor,
    selection: Selection,
    labels: torch.Tensor,
    row_keys: torch.Tensor,
    values: str = "logprob",
    temperatures: tuple[float, ...] = (),
) -> None:
    V = logits.shape[1]
    assert rows.ids.shape == rows.values.shape == (len(logits), selection.slots(V))
    assert rows.ids.dtype == torch.int32
    assert rows.values.dtype == torch.float16
    assert rows.lse.dtype == rows.label_logprob.dtype == torch.float32
    assert (rows.counts is None) == (selection.samples is None)
    for i, row in enumerate(logits.float().numpy()):
        expected = select_row_reference(row, selection, int(labels[i]), int(row_keys[i]), values, temperatures)
        m = len(expected.ids)
        np.testing.assert_array_equal(rows.ids[i, :m].numpy(), expected.ids)
        assert (rows.ids[i, m:] == -1).all()
        assert (rows.values[i, m:] == -torch.inf).all()
        # One unit in the last place of float16, plus what float32 leaves of a difference of large numbers.
        got, want = rows.values[i, :m].numpy().astype(np.float64), expected.values.astype(np.float64)
        float32_noise = 4 * np.spacing(np.float32(max(abs(expected.lse), 1.0)))
        assert (np.abs(got - want) <= np.abs(np.spacing(expected.values)).astype(np.float64) + float32_noise).all()
        np.testing.assert_allclose(rows.lse[i], expected.lse, rtol=3e-7, atol=2e-6)
        np.testing.assert_allclose(rows.label_logprob[i], expected.label_logprob, rtol=1e-6, atol=2 * float32_noise)
        if rows.counts is not None:
            np.testing.assert_array_equal(rows.counts[i, :m].numpy(), expected.counts)
            assert (rows.counts[i, m:] == 0).all()
        if temperatures:
            assert rows.lse_T is not None
            np.testing.assert_allclose(rows.lse_T[i], expected.lse_T, rtol=1e-6, atol=2e-6)


# Few distinct values make ties at almost every cut; -inf and -1e9 are how models mask tokens out.
row_values = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, 1.5, -2.0, 7.25]),
    st.sampled_from([-np.inf, -1e9, -70_000.0, -65_000.0, 5.0]),
    st.floats(-30, 30, width=16),
)


@st.composite
def logit_rows(draw: st.DrawFn) -> torch.Tensor:
    V = draw(st.integers(1, 300))
    n = draw(st.integers(1, 4))
    pool = draw(st.lists(row_values, min_size=1, max_size=12))
    assume(max(pool) > -60)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    logits = rng.choice(np.array(pool, dtype=np.float32), size=(n, V))
    logits[:, rng.integers(V)] = max(pool)
    return torch.from_numpy(logits)


@st.composite
def selections(draw: st.DrawFn, V: int) -> Selection:
    kind = draw(st.sampled_from(["top_k", "top_fraction", "top_p", "samples", "both"]))
    k = draw(st.sampled_from([1, V]) | st.integers(1, V))
    samples = draw(st.integers(1, 60))
    seed = draw(st.integers(-(2**63), 2**63 - 1))
    return {
        "top_k": Selection(top_k=k),
        "top_fraction": Selection(top_fraction=k / V),
        # No probability of few tied entries adds up to such a share, so rounding does not decide.
        "top_p": Selection(top_p=draw(st.sampled_from([0.0123457, 0.3141593, 0.7182818, 0.9001234])), max_k=k),
        "samples": Selection(samples=samples, seed=seed),
        "both": Selection(top_k=k, samples=samples, seed=seed),
    }[kind]


@relaxed
@given(data=st.data(), logits=logit_rows())
def test_equals_the_reference_on_rows_full_of_ties(data: st.DataObject, logits: torch.Tensor) -> None:
    n, V = logits.shape
    selection = data.draw(selections(V))
    labels = torch.tensor(data.draw(st.lists(st.integers(-1, V - 1), min_size=n, max_size=n)))
    keys = torch.tensor(data.draw(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=n, max_size=n)))
    rows = select_rows(logits, selection, labels, keys, temperatures=(0.5, 4.0))
    assert_equals_reference(rows, logits, selection, labels, keys, temperatures=(0.5, 4.0))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "selection",
    [
        Selection(top_k=1),
        Selection(top_k=128),
        Selection(top_k=3000),
        Selection(top_fraction=0.05),
        Selection(top_p=0.9, max_k=500),
        Selection(samples=50, seed=3),
        Selection(top_k=20, samples=50),
    ],
    ids=repr,
)
def test_equals_the_reference_in_every_dtype(selection: Selection, dtype: torch.dtype) -> None:
    logits = random_logits(5, 3000, dtype=dtype)
    labels = torch.tensor([0, -1, 2999, 7, 7])
    keys = torch.arange(5) + 2**40
    for values in ("logprob", "logit"):
        rows = select_rows(logits, selection, labels, keys, values=values)
        assert_equals_reference(rows, logits, selection, labels, keys, values)


@pytest.mark.parametrize("V", [1, 127, 128, 129, 640])
@pytest.mark.parametrize("k", [1, 2, 64, 640])
def test_all_equal_rows_keep_the_smallest_ids(V: int, k: int) -> None:
    k = min(k, V)
    rows = select_rows(torch.full((3, V), 2.5), Selection(top_k=k), no_labels(3))
    assert rows.ids.tolist() == [list(range(k))] * 3
    np.testing.assert_allclose(rows.lse, 2.5 + np.log(V), rtol=1e-6)


def test_a_tie_at_the_cut_of_one_row_leaves_the_others_alone() -> None:
    logits = torch.tensor([[1.0, 9.0, 1.0, 4.0], [4.0, 3.0, 2.0, 1.0], [1.0, 1.0, 9.0, 1.0], [0.0, 5.0, 5.0, 5.0]])
    rows = select_rows(logits, Selection(top_k=2), no_labels(4))
    assert rows.ids.tolist() == [[1, 3], [0, 1], [0, 2], [1, 2]]


def test_logits_of_bfloat16_come_back_exactly() -> None:
    logits = random_logits(4, 1000, dtype=torch.bfloat16)
    rows = select_rows(logits, Selection(top_k=300), no_labels(4), values="logit")
    assert torch.equal(rows.values.float(), logits.float().gather(1, rows.ids.long()))


def test_masked_out_tokens_shorten_the_row() -> None:
    logits = torch.tensor([[0.0, -torch.inf, 1.0, -1e9, -torch.inf], [0.0, 1.0, 2.0, 3.0, 4.0]])
    for values in ("logprob", "logit"):
        rows = select_rows(logits, Selection(top_k=4), torch.tensor([1, 1]), values=values)
        assert rows.ids.tolist() == [[0, 2, -1, -1], [1, 2, 3, 4]]
        assert rows.values[0, 2:].tolist() == [-np.inf, -np.inf]
        assert rows.label_logprob[0] == -np.inf


def test_log_probabilities_are_kept_to_the_edge_of_float16() -> None:
    logits = torch.tensor([[0.0, -65_504.0, -65_519.0, -65_520.0, -65_536.0]])
    rows = select_rows(logits, Selection(top_k=5), no_labels(1))
    assert rows.ids.tolist() == [[0, 1, 2, -1, -1]]
    assert rows.values[0, :3].tolist() == [0.0, -65_504.0, -65_504.0]


def test_no_log_probability_is_above_zero() -> None:
    logits = random_logits(64, 500, scale=0.01)
    logits[torch.arange(64), torch.arange(64)] += torch.linspace(0, 40, 64)
    rows = select_rows(logits, Selection(top_k=500), torch.arange(64))
    assert (rows.values <= 0).all()
    assert (rows.label_logprob <= 0).all()


def test_top_p_edges() -> None:
    probabilities = torch.tensor([[0.1, 0.5, 0.15, 0.25]])
    logits = probabilities.log()

    def kept(top_p: float, max_k: int) -> list[int]:
        rows = select_rows(logits, Selection(top_p=top_p, max_k=max_k), no_labels(1))
        return [token for token in rows.ids[0].tolist() if token != -1]

    assert kept(1e-9, 4) == [1]
    assert kept(0.49, 4) == [1]
    assert kept(0.51, 4) == [1, 3]
    assert kept(0.76, 4) == [1, 2, 3]
    assert kept(0.76, 2) == [1, 3]
    assert kept(0.999, 4) == [0, 1, 2, 3]
    assert kept(0.999, 100) == [0, 1, 2, 3]
    assert kept(0.9, 1) == [1]


def test_top_p_stops_where_the_share_is_reached_exactly() -> None:
    rows = select_rows(torch.tensor([[0.0, -200.0]]), Selection(top_p=1.0, max_k=2), no_labels(1))
    assert rows.ids.tolist() == [[0, -1]]


def test_top_p_breaks_ties_towards_the_smaller_id() -> None:
    logits = torch.zeros(1, 100)
    logits[0, 50] = 10.0
    probability_of_others = float(torch.softmax(logits, 1)[0, 0])
    rows = select_rows(logits, Selection(top_p=1 - 97.5 * probability_of_others, max_k=50), no_labels(1))
    assert rows.ids[0, :4].tolist() == [0, 1, 50, -1]


@pytest.mark.parametrize(
    "selection",
    [Selection(top_k=40), Selection(top_p=0.8, max_k=60), Selection(samples=50), Selection(top_k=9, samples=30)],
    ids=repr,
)
@pytest.mark.parametrize("threads", [1, 2])
def test_a_row_does_not_depend_on_the_rows_beside_it(selection: Selection, threads: int) -> None:
    torch.set_num_threads(threads)
    # Wider than a block of rows on the CPU, so the whole batch takes several.
    logits = random_logits(70, 33_001, dtype=torch.bfloat16)
    labels, keys = torch.arange(70), torch.arange(70) * 17
    whole = select_rows(logits, selection, labels, keys, temperatures=(2.0,))
    for rows in (slice(0, 1), slice(1, 2), slice(3, 40), slice(69, 70)):
        part = select_rows(logits[rows], selection, labels[rows], keys[rows], temperatures=(2.0,))
        for name in ("ids", "values", "lse", "label_logprob", "counts", "lse_T"):
            a, b = getattr(part, name), getattr(whole, name)
            assert (a is None and b is None) or torch.equal(a, b[rows]), name


def test_padded_width_may_be_cut_by_a_view() -> None:
    logits = random_logits(6, 1024)
    view, copy = logits[:, :1000], logits[:, :1000].clone()
    a = select_rows(view, Selection(top_k=20), no_labels(6))
    b = select_rows(copy, Selection(top_k=20), no_labels(6))
    assert torch.equal(a.ids, b.ids)
    assert torch.equal(a.lse, b.lse)


def test_label_outside_the_kept_set_has_its_log_probability() -> None:
    logits = random_logits(5, 100)
    labels = torch.tensor([3, -1, 99, 0, 50])
    rows = select_rows(logits, Selection(top_k=1), labels)
    expected = logits.log_softmax(1).gather(1, labels.clamp(min=0)[:, None])[:, 0]
    assert rows.label_logprob[1].isnan()
    present = labels >= 0
    torch.testing.assert_close(rows.label_logprob[present], expected[present])


def test_no_rows() -> None:
    rows = select_rows(torch.zeros(0, 10), Selection(top_k=3), no_labels(0), temperatures=(2.0,))
    assert rows.ids.shape == (0, 3)
    assert rows.lse_T is not None
    assert rows.lse_T.shape == (0, 1)


def test_unused_slots_read_as_the_format_marks_them() -> None:
    kept = select_rows(torch.tensor([[0.0, -torch.inf, 1.0]]), Selection(top_k=3), no_labels(1))
    assert kept.ids.numpy().view(np.uint32).tolist() == [[0, 2, layout.UNUSED_ID]]
    assert kept.values.dtype == torch.float16
    assert kept.counts is None


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_no_logits_name_their_row(bad: float) -> None:
    logits = random_logits(100, 33_000)
    logits[77, 12_345] = bad
    with pytest.raises(CorruptDataError, match="row 77") as caught:
        select_rows(logits, Selection(top_k=3), no_labels(100))
    assert caught.value.row == 77


def test_a_row_without_any_finite_logit_is_corrupt() -> None:
    with pytest.raises(CorruptDataError, match="row 0"):
        select_rows(torch.full((1, 5), -torch.inf), Selection(top_k=3), no_labels(1))


def test_raw_logits_beyond_float16_ask_for_log_probabilities() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0], [70_000.0, 69_999.0, 1.0]])
    with pytest.raises(CorruptDataError, match=r"70000.*values='logprob'.*row 1"):
        select_rows(logits, Selection(top_k=1), no_labels(2), values="logit")
    assert select_rows(logits, Selection(top_k=1), no_labels(2)).ids.tolist() == [[2], [0]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": torch.zeros(2, 5, dtype=torch.int64)}, "floating"),
        ({"logits": torch.zeros(5)}, "rows, vocabulary"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, "labels must be"),
        ({"labels": torch.zeros(2)}, "labels must be"),
        ({"labels": torch.tensor([0, 5])}, r"not 5 \[row 1\]"),
        ({"labels": torch.tensor([-2, 0])}, r"not -2 \[row 0\]"),
        ({"selection": Selection(samples=3)}, "row_keys"),
        ({"selection": Selection(top_k=6)}, "vocabulary has 5"),
        ({"row_keys": torch.zeros(1, dtype=torch.int64)}, "row_keys must be"),
        ({"values": "probability"}, "values must be"),
        ({"temperatures": (1.0, 0.0)}, "temperature"),
    ],
)
def test_invalid_arguments(change: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {
        "logits": torch.zeros(2, 5),
        "selection": Selection(top_k=2),
        "labels": torch.zeros(2, dtype=torch.int64),
    }
    with pytest.raises(InvalidArgumentError, match=message):
        select_rows(**(arguments | change))
