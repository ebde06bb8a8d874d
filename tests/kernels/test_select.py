"""Selection by the kernels against selection by torch, which tests/select holds to plain NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from logitstore.errors import CorruptDataError
from logitstore.kernels import use_kernels
from logitstore.kernels.choice import VARIABLE
from logitstore.kernels.select import row_log_sum_exp, select_top
from logitstore.select import Selection, select_hidden, select_rows
from logitstore.select.lse import log_sum_exp
from logitstore.select.top import top_k_ids

# The interpreter computes with NumPy, which warns of what a GPU does as well, and silently: infinities and NaN.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
relaxed = settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def random_logits(n, V, seed=0, dtype=torch.float32, scale=3.0):
    return (torch.randn(n, V, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


def assert_top(logits, k, **settings):
    wide = logits.float()
    lse = log_sum_exp(wide)
    ids = top_k_ids(wide, k, lse - 65_536)
    logprobs = (wide.gather(1, ids.clamp(min=0)) - lse[:, None]).masked_fill(ids < 0, -torch.inf)
    beyond = logprobs.half().isinf()
    expected = [row[~gone].tolist() for row, gone in zip(ids, beyond, strict=True)]
    found = select_top(logits, k, **settings)
    np.testing.assert_allclose(found.lse, lse, rtol=3e-7, atol=2e-6)
    assert found.ids.dtype == torch.int32
    assert found.ids.tolist() == [row + [-1] * (k - len(row)) for row in expected]
    for row, i in enumerate(expected):
        want = wide[row, i] if settings.get("raw") else wide[row, i] - found.lse[row]
        assert torch.equal(found.values[row, : len(i)], want.half())
        assert (found.values[row, len(i) :] == -torch.inf).all()


# Few distinct values make ties at nearly every cut; -inf and -1e9 are how models mask tokens out.
values = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, 1.5, -2.0, 7.25, -np.inf, -1e9, -70_000.0, -65_000.0, 5.0]),
    st.floats(-30, 30, width=16),
)


@relaxed
@given(
    pool=st.lists(values, min_size=1, max_size=12),
    seed=st.integers(0, 2**32),
    n=st.integers(0, 3),
    V=st.integers(1, 700),
    share=st.floats(0, 1),
    dtype=st.sampled_from(DTYPES),
    sample=st.sampled_from([None, 0, 16, 64]),
    raw=st.booleans(),
)
def test_rows_full_of_ties(pool, seed, n, V, share, dtype, sample, raw):
    generator = np.random.default_rng(seed)
    logits = torch.from_numpy(generator.choice(np.array(pool, np.float32), size=(n, V)))
    logits[:, generator.integers(V)] = max(*pool, -60.0)
    assert_top(logits.to(dtype), max(1, round(share * V)), sample=sample, raw=raw)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("V", "k"), [(1, 1), (512, 512), (4096, 64), (5000, 250), (10_007, 1), (10_007, 3000), (32_768, 1638)]
)
def test_widths_of_rows_and_of_what_is_kept(V, k, dtype):
    assert_top(random_logits(2, V, dtype=dtype), k)


def test_a_vocabulary_of_a_quarter_million():
    assert_top(random_logits(1, 262_144, dtype=torch.bfloat16), 13_107)


def test_rows_apart_in_memory():
    padded = random_logits(3, 640)
    padded[:, 600:] = 99.0
    assert_top(padded[:, :600], 30)
    assert_top(random_logits(600, 3).T, 30)


def test_a_sample_that_misleads_costs_time_alone():
    # Where the sample looks there is only what is small (the guess finds too much) or only what is large (too little).
    for inside, outside in ((0.0, 9.0), (9.0, 0.0)):
        logits = random_logits(2, 4096, scale=0.1) + outside
        logits.view(2, -1, 512)[:, :, :8] += inside - outside
        assert_top(logits, 100, sample=64)


def test_a_row_does_not_depend_on_the_others():
    logits = random_logits(5, 9000, dtype=torch.bfloat16)
    together, alone = select_top(logits, 450), select_top(logits[3:4], 450)
    assert all(torch.equal(a[3:4], b) for a, b in zip(together, alone, strict=True))


@pytest.mark.parametrize("temperature", [0.5, 3.0])
def test_log_sum_exp_at_temperatures(temperature):
    logits = torch.cat([random_logits(2, 5000), random_logits(1, 5000) * 1e4, torch.full((1, 5000), -torch.inf)])
    logits[3, 7] = -1e38
    expected = torch.logsumexp(logits.double() / temperature, 1)
    np.testing.assert_allclose(row_log_sum_exp(logits, temperature), expected, rtol=3e-7, atol=2e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_rows_that_are_refused(bad):
    logits = random_logits(4, 300)
    logits[2, 5 if bad != -np.inf else slice(None)] = bad
    with pytest.raises(CorruptDataError, match="finite maximum") as caught:
        select_rows(logits, Selection(top_k=7), torch.full((4,), -1))
    assert caught.value.row == 2


@pytest.mark.parametrize("stored", ["logprob", "logit"])
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
@pytest.mark.parametrize(
    "selection",
    [Selection(top_k=64), Selection(top_fraction=0.05), Selection(top_p=0.9, max_k=200), Selection(top_k=5, samples=9)],
    ids=repr,
)
def test_select_rows_gives_what_it_gives_without_kernels(selection, dtype, stored, monkeypatch):
    logits = random_logits(3, 5000, dtype=dtype)
    logits[1, ::2] = -torch.inf
    labels, keys = torch.tensor([0, 4999, -1]), torch.arange(3)
    ours = select_rows(logits, selection, labels, keys, values=stored, temperatures=(2.0,))
    monkeypatch.setenv(VARIABLE, "off")
    assert not use_kernels(logits)
    plain = select_rows(logits, selection, labels, keys, values=stored, temperatures=(2.0,))
    assert torch.equal(ours.ids, plain.ids)
    # A log-sum-exp that is summed in another order may move a float16 value to its neighbour.
    for name in ("values", "lse", "label_logprob", "lse_T"):
        a, b = getattr(ours, name), getattr(plain, name)
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=1e-3 if name == "values" else 1e-6, atol=2e-6, equal_nan=True)


def test_a_logit_beyond_float16_is_refused():
    logits = random_logits(2, 300)
    logits[1, 5] = 70_000.0
    with pytest.raises(CorruptDataError, match="does not fit float16"):
        select_rows(logits, Selection(top_k=7), torch.full((2,), -1), values="logit")


class _Launched:
    def __getitem__(self, grid):
        return lambda *arguments, **options: None


@pytest.mark.parametrize("stored", ["logprob", "logit"])
@pytest.mark.parametrize("selection", [Selection(top_k=64), Selection(top_p=0.9, max_k=200)], ids=repr)
def test_kernels_select_without_asking_the_device(selection, stored, monkeypatch):
    # On the meta device, whatever asks for a value fails.
    for name in ("scan_rows", "cut_and_pack"):
        monkeypatch.setattr(f"logitstore.kernels.select.{name}", _Launched())
    logits = torch.empty(3, 5000, dtype=torch.bfloat16, device="meta")
    labels = torch.empty(3, dtype=torch.int64, device="meta")
    rows = select_rows(logits, selection, labels, values=stored, temperatures=(2.0,), check=False)
    assert rows.ids.shape == (3, selection.slots(5000))
    with pytest.raises(RuntimeError, match="meta"):
        select_rows(logits, selection, labels)


def test_from_hidden_states():
    generator = torch.Generator().manual_seed(0)
    hidden, weight, bias = (torch.randn(*shape, generator=generator) for shape in ((11, 8), (500, 8), (500,)))
    labels = torch.arange(11) - 1
    chunked = select_hidden(hidden, weight, Selection(top_k=20), labels, bias=bias, chunk_rows=4)
    whole = select_rows(hidden @ weight.T + bias, Selection(top_k=20), labels)
    for name in ("ids", "values", "lse", "label_logprob"):
        torch.testing.assert_close(getattr(chunked, name), getattr(whole, name), equal_nan=True, rtol=1e-3, atol=1e-5)
