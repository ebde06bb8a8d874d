"""`RowReader`: rows by number."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import numpy as np

from logitstore.errors import InvalidArgumentError
from logitstore.reader.rows import Rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from logitstore.reader.store import Store

__all__ = ["RowReader", "position_of"]


class RowReader:
    """Rows of a store, whatever document they belong to.

    ``rows[i]`` is one row (arrays without the first axis), ``rows[a:b]`` and ``rows[[5, 2, 9]]`` are several, in the
    order asked for.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def __len__(self) -> int:
        return self._store.manifest.rows

    def __getitem__(self, index: int | slice | Sequence[int] | NDArray[np.integer[Any]]) -> Rows:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step == 1:
                return self._store.read(start, max(start, stop))
            return self[np.arange(start, stop, step)]
        if isinstance(index, (list, tuple, np.ndarray)):
            return self._gather(np.asarray(index))
        position = position_of(index, len(self), "row")
        return self._store.read(position, position + 1).select(0)

    def _gather(self, index: NDArray[Any]) -> Rows:
        if index.ndim != 1 or not (np.issubdtype(index.dtype, np.integer) or not index.size):
            raise InvalidArgumentError(f"row numbers are a one-dimensional array of integers, found {index!r}")
        if not index.size:
            return self._store.read(0, 0)
        positions = np.array([position_of(number, len(self), "row") for number in index])
        # One read per run of consecutive rows, each row once.
        unique, inverse = np.unique(positions, return_inverse=True)
        breaks = np.flatnonzero(np.diff(unique) != 1) + 1
        runs = [self._store.read(int(run[0]), int(run[-1]) + 1) for run in np.split(unique, breaks)]
        return _concatenate(runs).select(inverse)


def _concatenate(runs: list[Rows]) -> Rows:
    if len(runs) == 1:
        return runs[0]
    names = [name for name, value in runs[0].__dict__.items() if isinstance(value, np.ndarray)]
    arrays = {name: np.concatenate([getattr(run, name) for run in runs]) for name in names}
    return Rows(**{**runs[0].__dict__, **arrays})


def position_of(index: Any, length: int, what: str) -> int:
    """Return which of so many things an index names, from 0 on.

    Raises
    ------
    InvalidArgumentError
        It is no integer.
    IndexError
        There are not so many.
    """
    try:
        position = operator.index(index)
    except TypeError:
        raise InvalidArgumentError(f"a {what} is named by an integer or a slice, found {index!r}") from None
    if not -length <= position < length:
        raise IndexError(f"{what} {position} of {length}")
    return position % length
