"""Training of a codebook of values, on the first rows of a data set."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from logitstore import layout
from logitstore.codec.compact.codebook import (
    COLUMN_CONTEXTS,
    ValueBook,
    column_context,
)  # fmt: skip
from logitstore.codec.compact.quantise import CAP, Quantiser, generalised_kl, levels_for
from logitstore.codec.compact.sampling import every_nth
from logitstore.codec.compact.tables import adaptive_widths, code_of, symbols_of
from logitstore.codec.transform import BITS_DTYPE, UNUSED, bits_from_keys
from logitstore.errors import InvalidArgumentError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["train_values"]


def train_values(
    values: NDArray[Any],
    *,
    expected_rows: int | None = None,
    max_error: float | None = None,
    max_kl: float | None = None,
) -> ValueBook:
    """Train a codebook for values, which is lossless unless a bound is given.

    Parameters
    ----------
    values
        ``(R, K)`` float16 or uint8 in the order of `IdCodec.arrange`, unused slots last (-inf or 0).
    expected_rows
        Rows that will be coded with it; as many as are given, if None.
    max_error
        Largest error of a value, in nats.
    max_kl
        Largest generalised KL of a row of log-probabilities; without ``max_error``, errors are at most 1 nat too.

    Raises
    ------
    InvalidArgumentError
        There are no rows, or a bound is not positive or does not belong to the type.
    """
    codes = {np.dtype("f2"): layout.DTYPE_FLOAT16, np.dtype("u1"): layout.DTYPE_UINT8}
    if not len(values) or values.ndim != 2 or values.dtype not in codes:
        raise InvalidArgumentError(f"values are rows of float16 or uint8, found {values.dtype} {values.shape}")
    dtype = codes[values.dtype]
    bounds = [bound for bound in (max_error, max_kl) if bound is not None]
    if any(not 0 < bound < math.inf for bound in bounds) or (bounds and dtype != layout.DTYPE_FLOAT16):
        raise InvalidArgumentError(f"bounds are positive and for float16 values, found {max_error} and {max_kl}")
    rows = np.ascontiguousarray(values[:: every_nth(values)])
    bits = rows.view(BITS_DTYPE[dtype])
    counts = _counts(bits, UNUSED[dtype])
    error, kl = (0.0, 0.0) if not bounds else (max_error or CAP, max_kl or math.inf)
    quantiser = Quantiser(dtype, _levels(rows, counts, dtype, error, kl), error, kl)
    levels, _, kept = quantiser(bits, counts)
    # Rows that are kept as they are have no part in the tables.
    sample = ~kept & (counts > 0)
    return _value_book(quantiser, levels[sample], counts[sample], (expected_rows or len(values)) / max(1, len(rows)))


def _levels(
    rows: NDArray[Any], counts: NDArray[np.int64], dtype: int, max_error: float, max_kl: float
) -> NDArray[np.uint32]:
    if max_error == 0:
        return np.arange(1 << (16 if dtype == layout.DTYPE_FLOAT16 else 8), dtype=np.uint32)
    used = rows[np.isfinite(rows)]
    low, high = (float(used.min()), float(used.max())) if len(used) else (-1.0, 0.0)
    low, high = max(-6e4, low - 4), 0.0 if high <= 0.001 else min(6e4, high + 4)
    if max_kl == math.inf:
        return levels_for(low, high, math.inf, max_error)
    sample = slice(None, None, max(1, len(rows) // 4096))
    finest, coarsest = 1e-5, 0.5
    for _ in range(16):
        middle = math.sqrt(finest * coarsest)
        quantiser = Quantiser(dtype, levels_for(low, high, middle, max_error), max_error, math.inf)
        costs = _costs(quantiser, np.ascontiguousarray(rows[sample]), counts[sample])
        # All but a few rows are to hold the bound; these few are kept as they are.
        if np.quantile(costs, 0.999) <= max_kl:
            finest = middle
        else:
            coarsest = middle
    return levels_for(low, high, finest, max_error)


def _costs(quantiser: Quantiser, rows: NDArray[Any], counts: NDArray[np.int64]) -> NDArray[np.float64]:
    levels, _, _ = quantiser(rows.view(BITS_DTYPE[quantiser.dtype]), counts)
    found = quantiser.levels[levels]
    stored = bits_from_keys(found, quantiser.dtype, 0).view(np.float16)
    return generalised_kl(rows, np.where(np.arange(rows.shape[1]) < counts[:, None], stored, -np.inf))


def _value_book(quantiser: Quantiser, levels: NDArray[np.uint16], counts: NDArray[np.int64], scale: float) -> ValueBook:
    slots = levels.shape[1]
    used = np.arange(slots) < counts[:, None]
    bases = np.where(used, levels, np.uint16(0xFFFF)).min(axis=1).astype(np.int64)
    distances = (levels.astype(np.int64) - bases[:, None])[used]
    bounds = (
        np.unique(np.quantile(bases, (0.25, 0.5, 0.75)).astype(np.uint32)) if len(bases) else np.empty(0, np.uint32)
    )
    bounds = bounds[bounds > (bases.min() if len(bases) else 0)]
    parts = np.searchsorted(bounds, bases, side="right") * COLUMN_CONTEXTS
    columns = np.array([column_context(column) for column in range(slots)], np.int64)
    contexts = (parts[:, None] + columns)[used]
    size = len(quantiser.levels)
    base_widths = adaptive_widths(np.concatenate([[len(bases)], np.bincount(bases, minlength=size)]), 1 / 128)
    base_symbols = np.bincount(symbols_of(base_widths, size)[bases + 1], minlength=len(base_widths))
    widths = adaptive_widths(np.bincount(distances, minlength=size))
    keys = contexts * len(widths) + symbols_of(widths, size)[distances]
    table_counts = np.bincount(keys, minlength=(len(bounds) + 1) * COLUMN_CONTEXTS * len(widths))
    base_code = code_of(base_widths, base_symbols[None], scale=scale, most=1, required=True)
    delta_code = code_of(widths, table_counts.reshape(-1, len(widths)), scale=scale, most=32, required=False)
    return ValueBook(
        quantiser.dtype, quantiser.levels, bounds, base_code, delta_code, quantiser.max_error, quantiser.max_kl
    )


def _counts(bits: NDArray[Any], unused: int) -> NDArray[np.int64]:
    used = bits != unused
    return np.where(used.any(axis=1), bits.shape[1] - np.argmax(used[:, ::-1], axis=1), 0).astype(np.int64)
