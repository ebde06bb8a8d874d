"""The kernels under Triton's interpreter, which runs them on CPU tensors.

Triton reads the variable where it decorates a kernel, its own ones as it is imported; so it is set before that, while
tests are collected. Other tests do not notice: LOGITSTORE_KERNELS is off.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from typing import TYPE_CHECKING

if "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1":
    raise RuntimeError("triton was imported before TRITON_INTERPRET=1 was set; set it when pytest is started")
os.environ["TRITON_INTERPRET"] = "1"

import pytest
import torch

from logitstore.kernels.choice import VARIABLE

if TYPE_CHECKING:
    from collections.abc import Iterator


if sys.platform != "linux":
    collect_ignore_glob = ["test_*.py"]  # Triton exists for Linux alone


@pytest.fixture(autouse=True)
def _interpreted_kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv(VARIABLE, "on")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def quick_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoding groups takes the interpreter as long for many lanes as for one, and half as long without a check."""
    from triton.runtime.interpreter import interpreter_builder

    monkeypatch.setattr("logitstore.device.coded_rows._LANES", 256)
    monkeypatch.setattr("logitstore.device.coded_rows._TURNS", 1)
    options = dataclasses.replace(interpreter_builder.options, sanitize_overflow=False)
    monkeypatch.setattr(interpreter_builder, "options", options)
