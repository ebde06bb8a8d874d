"""How much of what it is given training looks at."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["MAX_ENTRIES", "MAX_ROWS", "every_nth"]

MAX_ROWS = 1 << 17
MAX_ENTRIES = 1 << 25
"""Training takes no more rows and entries than these, and so bounded memory: about 1 GB."""


def every_nth(array: NDArray[Any]) -> int:
    """Return how many rows to go on for the next one that is looked at."""
    return max(1, -(-len(array) // MAX_ROWS), -(-array.size // MAX_ENTRIES))
