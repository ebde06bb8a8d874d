"""The benchmark of a GPU, at a tiny size in the interpreter: its code, not its figures."""

from __future__ import annotations

import json

import pytest
import torch

from logitstore.audit.gpu_bench import Sizes, device_bench, find_device
from logitstore.errors import InvalidArgumentError

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")


def test_every_contender_has_a_figure():
    sizes = Sizes(rows=3, vocab_size=96, hidden=8, top_k=4, dtype=torch.float32)
    result = device_bench(torch.device("cpu"), sizes, rounds=1)
    found = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert found["sizes"]["dtype"] == "float32"
    by_case = {}
    for figure in found["figures"]:
        by_case.setdefault(figure["case"], []).append(figure["contender"])
        assert figure["times_bound"] == figure["seconds"] / figure["bound_seconds"] > 0
    assert list(by_case) == [
        "select, k = 4",
        "select, 5 %",
        "loss and gradient from logits, k = 4",
        "loss and gradient from hidden states",
    ]
    assert all(any("torch" in name for name in names) for names in by_case.values())
    assert all(names[0].startswith("logitstore") for names in by_case.values())
    # Bounds of bytes are those bytes at the speed of the copy.
    read = 3 * 96 * 4 / result.copy_bytes_per_second
    assert [figure.bound_seconds for figure in result.figures[:2]] == pytest.approx([read, read])


@pytest.mark.parametrize(("name", "said"), [("cpu", "not 'cpu'"), ("gpu9", "no such device")])
def test_devices_that_are_none(name, said):
    with pytest.raises(InvalidArgumentError, match=said):
        find_device(name)
