from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest

# Read when a kernel is decorated, so before any module of kernels is imported.
os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of a few entries take several turns of the loops."""
    monkeypatch.setattr("logitstore.device.decode.tile_of", lambda slots: (128, 1))


@pytest.fixture(autouse=True)
def _scans_by_numpy(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter does a scan that is not a sum lane by lane, 0.2 ms for each; here all others are maxima."""
    if "plain_interpreter" in request.keywords:
        return
    from triton.runtime.interpreter import ScanOps

    def running_maximum(scan: ScanOps, inputs: list[object]) -> list[object]:
        (lanes,) = inputs
        return [scan.to_tensor(np.maximum.accumulate(lanes.handle.data, axis=scan.axis), dtype=lanes.dtype)]

    monkeypatch.setattr(ScanOps, "generic_scan", running_maximum)


@pytest.fixture
def quick_interpreter(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """For kernels of groups, which take many turns; others keep the interpreter's check of overflows."""
    if "plain_interpreter" in request.keywords:
        return
    from triton.runtime.interpreter import InterpretedFunction

    def call(self: InterpretedFunction, *args: Any, **kwargs: Any) -> Any:
        return self.rewrite()(*args, **kwargs)

    request.getfixturevalue("quick_groups")
    # Else Triton's language is made the interpreter's anew in each function that a kernel calls.
    monkeypatch.setattr(InterpretedFunction, "__call__", call)
