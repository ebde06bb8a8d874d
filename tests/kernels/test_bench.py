"""The benchmark of a GPU, at a tiny size in the interpreter: its code, not its figures."""

from __future__ import annotations

import json

import pytest
import torch

from logitstore.bench import GROUPS, TINY, device_bench, find_device
from logitstore.bench.measure import Case, Clock, Contender, Goal, measure
from logitstore.errors import InvalidArgumentError
from logitstore.kernels.choice import VARIABLE
from logitstore.loss import by_kernel

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")


@pytest.mark.usefixtures("quick_groups")
def test_everything_is_measured(tmp_path, monkeypatch):
    calls = []
    read = by_kernel.loss_by_kernel
    monkeypatch.setattr("logitstore.loss.plain.loss_by_kernel", lambda *given: calls.append(1) or read(*given))
    result = device_bench(torch.device("cpu"), TINY, scratch=tmp_path, only=[*GROUPS][:-2])
    assert calls
    # What takes long in the interpreter has tests of its own.
    monkeypatch.setenv(VARIABLE, "off")
    whole = device_bench(torch.device("cpu"), TINY, scratch=tmp_path, only=["step", "capture"])
    result.figures.extend(whole.figures)
    result.verdicts.extend(whole.verdicts)
    found = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert found["sizes"]["dtype"] == "float32"
    by_case = {}
    for figure in found["figures"]:
        by_case.setdefault(figure["case"], []).append(figure["contender"])
        assert figure["times_bound"] == figure["seconds"] / figure["bound_seconds"] > 0
        assert (figure["entries_per_second"] is None) == (figure["case"][:6] not in ("encode", "decode"))
    both = ("k = 4", "5 %")
    assert list(by_case) == [
        *(f"select, {kept}" for kept in both),
        *(f"encode, {kept}" for kept in both),
        *(f"decode, {kept}" for kept in both),
        *(f"decode compact, {kept}" for kept in both),
        *(f"loss and gradient from logits, {kept}" for kept in both),
        "loss and gradient from hidden states",
        *(f"capture, tiny, {kept}" for kept in both),
        *(f"a student's step, {kept}" for kept in both),
    ]
    assert all(names[0].startswith("logitstore") and len(names) > 1 for names in by_case.values())
    # Bounds of bytes are those bytes at the speed of the copy.
    read = 2 * 96 * 4 / result.copy_bytes_per_second
    assert [figure.bound_seconds for figure in result.figures[:2]] == pytest.approx([read, read])
    # Most cases have a goal; on a CPU none is answered.
    without = {"select, k = 4", *(f"decode compact, {kept}" for kept in both)}
    assert {verdict.case for verdict in result.verdicts} == set(by_case) - without
    assert all(verdict.found is verdict.reached is None for verdict in result.verdicts)
    assert not list(tmp_path.iterdir())


def test_some_are_measured():
    result = device_bench(torch.device("cpu"), TINY, only=["fused-loss"])
    assert {figure.case for figure in result.figures} == {"loss and gradient from hidden states"}
    with pytest.raises(InvalidArgumentError, match=", ".join(GROUPS)):
        device_bench(torch.device("cpu"), TINY, only=["everything"])


class _SetClock(Clock):
    """Every contender takes as many seconds, and bytes, as its name says."""

    def measure(self, contender, *, by_wall=False):
        return float(contender.name), int(contender.name)


def test_goals():
    case = Case(
        "work", "a copy and the least work", [Contender(name, lambda: None) for name in ("6", "4")], bytes=30,
        goals=(Goal(2), Goal(1.4), Goal(1.5, "4"), Goal(1.5, "4", "peak_bytes"), Goal(1, "absent"),
               Goal(3, of="entries_per_second"), Goal(1, of="entries_per_second")),
        least=Contender("1", lambda: None), entries=12,
    )  # fmt: skip
    figures, verdicts = measure(case, _SetClock(torch.device("cpu")), rounds=1, speed=10)
    assert [(figure.seconds, figure.bound_seconds, figure.entries_per_second) for figure in figures] == [
        (6, 4, 2),
        (4, 4, 3),
    ]
    assert [(verdict.found, verdict.reached) for verdict in verdicts] == [
        (1.5, True), (1.5, False), (1.5, True), (1.5, True), (None, None), (2, False), (2, True),
    ]  # fmt: skip


@pytest.mark.parametrize(("name", "said"), [("cpu", "not 'cpu'"), ("gpu9", "no such device")])
def test_devices_that_are_none(name, said):
    with pytest.raises(InvalidArgumentError, match=said):
        find_device(name)
    assert find_device("cpu", cpu=True) == torch.device("cpu")
