"""Kernels, used or not."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from logitstore.kernels.choice import VARIABLE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["kernels_set_to", "without_kernels"]


@contextmanager
def kernels_set_to(mode: str) -> Iterator[None]:
    """Decide whether kernels are used, as the environment variable does."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = mode
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before


def without_kernels(run: Callable[[], object]) -> Callable[[], object]:
    """Return the same with the kernels off."""

    def plain() -> object:
        with kernels_set_to("off"):
            return run()

    return plain
