from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["on_device_of_first"]

P = ParamSpec("P")
R = TypeVar("R")


def on_device_of_first(
    launch: Callable[Concatenate[torch.Tensor, P], R],
) -> Callable[Concatenate[torch.Tensor, P], R]:
    """Make the device of the first tensor the current one: Triton launches there, whatever the tensors say."""

    @wraps(launch)
    def launch_there(tensor: torch.Tensor, /, *arguments: P.args, **options: P.kwargs) -> R:
        with torch.cuda.device_of(tensor):
            return launch(tensor, *arguments, **options)

    return launch_there
