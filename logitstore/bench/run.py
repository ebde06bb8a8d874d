"""The benchmark of a device: all cases, one after the other."""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from logitstore.bench.capture import capture_cases
from logitstore.bench.codec_cases import compact_cases, decode_cases, encode_cases
from logitstore.bench.kernel_cases import fused_cases, loss_cases, select_cases
from logitstore.bench.measure import Clock, DeviceBench, Setting, copy_speed, measure
from logitstore.bench.sizes import FULL, Sizes
from logitstore.bench.student_step import step_cases
from logitstore.bench.switch import kernels_set_to
from logitstore.errors import InvalidArgumentError
from logitstore.kernels.choice import VARIABLE

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from logitstore.bench.measure import Case

__all__ = ["GROUPS", "device_bench", "find_device"]

GROUPS: dict[str, Callable[[Setting], Iterator[Case]]] = {
    "select": select_cases,
    "encode": encode_cases,
    "decode": decode_cases,
    "decode-compact": compact_cases,
    "loss": loss_cases,
    "fused-loss": fused_cases,
    "capture": capture_cases,
    "step": step_cases,
}
"""What is measured, by name. Each makes the tensors of a case when its turn comes."""


def find_device(name: str, *, cpu: bool = False) -> torch.device:
    """Return the device.

    Parameters
    ----------
    name
        "cuda", "cuda:1", …
    cpu
        Whether "cpu" will do.

    Raises
    ------
    InvalidArgumentError
        If it is no CUDA device, or there is none.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InvalidArgumentError(f"there is no such device: {name!r}; say cuda, or cuda:1, …") from None
    if device.type == "cpu" and cpu:
        return device
    if device.type != "cuda":
        raise InvalidArgumentError(
            f"the kernels need a CUDA device, not {name!r}; for a store say its path, and to see on a CPU that "
            "everything runs, --scale tiny"
        )
    if not torch.cuda.is_available():
        raise InvalidArgumentError(
            f"--device {name} needs a CUDA device, and torch {torch.__version__} sees none here; nothing was measured"
        )
    return device


def device_bench(
    device: torch.device,
    sizes: Sizes = FULL,
    *,
    only: Collection[str] = (),
    scratch: Path | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> DeviceBench:
    """Measure what is in `GROUPS`.

    Parameters
    ----------
    device
        Where. On a CPU the figures say nothing about the kernels, which then run in Triton's interpreter or not at all.
    sizes
        How much.
    only
        Names of `GROUPS`; none takes all.
    scratch
        An existing folder for stores, of several GB at full size, that are deleted again; by default that for temporary
        files. What is captured goes to this disk.
    progress
        Called with what is measured next.

    Raises
    ------
    InvalidArgumentError
        There is no group of such a name.
    """
    if unknown := sorted({*only} - {*GROUPS}):
        raise InvalidArgumentError(f"what is measured is {', '.join(GROUPS)}; not {', '.join(unknown)}")
    clock = Clock(device)
    progress("copying")
    speed = copy_speed(sizes, device, clock)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    result = DeviceBench(name, speed, sizes.to_json())
    with kernels_set_to(os.environ.get(VARIABLE, "auto")):
        for group, cases in GROUPS.items():
            if only and group not in only:
                continue
            progress(group)
            with tempfile.TemporaryDirectory(prefix="logitstore-bench-", dir=scratch) as folder:
                for case in cases(Setting(sizes, device, Path(folder))):
                    progress(case.name)
                    figures, verdicts = measure(case, clock, sizes.rounds, speed)
                    result.figures.extend(figures)
                    # What is asked for is asked of GPUs.
                    result.verdicts.extend(
                        verdict if device.type == "cuda" else replace(verdict, found=None, reached=None)
                        for verdict in verdicts
                    )
                    del case  # before the next one makes its tensors
    return result
