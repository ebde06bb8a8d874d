"""The kernels under Triton's interpreter, which runs them on CPU tensors.

Triton reads the variable where it decorates a kernel, and keeps what it read; so it is set before any of these modules
is imported, and nothing but this folder imports them: elsewhere tensors are on the CPU and LOGITSTORE_KERNELS is auto.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

os.environ["TRITON_INTERPRET"] = "1"

import pytest
import torch

from logitstore.kernels.choice import VARIABLE

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def _interpreted_kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv(VARIABLE, "on")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
