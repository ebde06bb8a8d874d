from __future__ import annotations

import importlib.util
import os
from functools import cache

import torch

from logitstore.errors import InvalidArgumentError

__all__ = ["VARIABLE", "kernels_are_on", "use_kernels"]

VARIABLE = "LOGITSTORE_KERNELS"
_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_MAX_WIDTH = 2**30
"""Positions within a row are int32 in the kernels; those of rows are int64."""


def use_kernels(logits: torch.Tensor) -> bool:
    """Return whether rows of these logits go through the kernels.

    Parameters
    ----------
    logits
        ``(n, V)``, or anything of its device, type and width.

    Raises
    ------
    InvalidArgumentError
        If ``LOGITSTORE_KERNELS`` is none of auto, on, off, or "on" without Triton.

    Examples
    --------
    >>> use_kernels(torch.zeros(2, 8))
    False
    """
    mode = _mode()
    if mode == "off" or logits.dtype not in _DTYPES or not 0 < logits.shape[-1] < _MAX_WIDTH:
        return False
    if not (logits.is_cuda or (mode == "on" and os.environ.get("TRITON_INTERPRET") == "1")):
        return False
    if not _has_triton() and mode == "on":
        raise InvalidArgumentError(f"{VARIABLE}=on needs Triton: pip install logitstore[gpu]")
    return _has_triton()


def kernels_are_on() -> bool:
    """Return whether ``LOGITSTORE_KERNELS`` lets kernels run where they can.

    Raises
    ------
    InvalidArgumentError
        If it is none of auto, on, off.
    """
    return _mode() != "off"


def _mode() -> str:
    mode = os.environ.get(VARIABLE, "off")
    if mode not in ("auto", "off", "on"):
        raise InvalidArgumentError(f"{VARIABLE} must be auto, on or off, not {mode!r}")
    return mode


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None
