"""The encoder of values in Numba: the same bytes as `reference`. Kernels release the GIL."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from logitstore import layout
from logitstore.codec.compact.bank import Bank
from logitstore.codec.compact.codebook import COLUMN_CONTEXTS, column_context
from logitstore.codec.compact.writing import buffers_for, direct_symbols, put_number, write_group
from logitstore.codec.intrinsics import address_of
from logitstore.codec.kernels import kernel
from logitstore.codec.transform import BITS_DTYPE, keys_from_bits

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from logitstore.codec.compact.codebook import ValueBook

__all__ = ["ValueEncoder"]


@kernel
def _encode(
    bits: Any, levels: Any, counts: Any, kept: Any, group_log2: Any, tables: Any, bounds: Any, raw_bits: Any,
    key_of: Any, direct: Any, bins: Any, symbols: Any, packed: Any, lengths: Any, words: Any, parts: Any, raws: Any,
    reverse: Any,
) -> Any:  # fmt: skip
    """As in `fast_encode_ids`. Rows of ``kept``, and those that the tables cannot code, are kept as they are."""
    tables_at = address_of(direct), address_of(bins), address_of(packed), address_of(parts), address_of(raws)
    size = np.int64(1) << group_log2
    width = bits.shape[1]
    at = np.int64(0)
    for group in range(len(lengths)):
        n_parts, n_raws = np.int64(0), np.int64(0)
        for row in range(group * size, min((group + 1) * size, np.int64(len(counts)))):
            if counts[row] == 0:
                continue
            first_part, first_raw = n_parts, n_raws
            if not kept[row]:
                base = np.int64(1 << 30)
                for column in range(counts[row]):
                    base = min(base, np.int64(levels[row, column]))
                part = np.int64(0)
                while part < len(bounds) and np.int64(bounds[part]) <= base:
                    part += 1
                n_parts, n_raws = put_number(base + 1, 0, np.int64(0), symbols[0], tables_at, n_parts, n_raws)
                column = np.int64(0)
                while n_parts >= 0 and column < counts[row]:
                    distance = np.int64(levels[row, column]) - base
                    table = np.int64(tables[part * width + column])
                    n_parts, n_raws = put_number(distance, 1, table, symbols[1], tables_at, n_parts, n_raws)
                    column += 1
            if kept[row] or n_parts < 0:
                kept[row] = True
                n_parts, n_raws = put_number(np.int64(0), 0, np.int64(0), symbols[0], tables_at, first_part, first_raw)
                if n_parts < 0:
                    return -1 - row
                for column in range(counts[row]):
                    raws[n_raws] = np.uint64(key_of[bits[row, column]]) | np.uint64(raw_bits) << np.uint64(32)
                    n_raws += 1
        end = write_group(parts, n_parts, raws, n_raws, words, at, reverse)
        lengths[group] = end - at
        at = end
    return at


class ValueEncoder:
    """Encodes chunks of values of so many slots with one codebook."""

    def __init__(self, book: ValueBook, slots: int) -> None:
        codes = (book.base_code, book.delta_code)
        bank = Bank.of(codes)
        columns = np.array([column_context(column) for column in range(slots)], np.int64)
        contexts = bank.contexts[1].reshape(-1, COLUMN_CONTEXTS)
        self._tables = np.ascontiguousarray(contexts[:, columns]).reshape(-1)
        symbols = np.array([len(code.widths) for code in codes], np.int64)
        self._codes = direct_symbols(codes), bank.bins, symbols, bank.packed
        self._bounds = book.bounds
        patterns = np.arange(1 << 8 * np.dtype(BITS_DTYPE[book.dtype]).itemsize).astype(BITS_DTYPE[book.dtype])
        self._key_of = keys_from_bits(patterns, book.dtype, 0)
        self._bits = 16 if book.dtype == layout.DTYPE_FLOAT16 else 8

    def __call__(
        self,
        bits: NDArray[Any],
        levels: NDArray[np.uint16],
        counts: NDArray[np.int64],
        kept: NDArray[np.bool_],
        group_log2: int,
    ) -> tuple[int, NDArray[np.int64], NDArray[np.uint16]]:
        """Code rows; ``kept`` is set where a row was kept as it is. Returns as `IdEncoder`."""
        lengths, words, *buffers = buffers_for(len(bits), group_log2, bits.shape[1] + 1, bits.shape[1] + 1)
        end = _encode(
            bits, levels, counts, kept, group_log2, self._tables, self._bounds, self._bits, self._key_of, *self._codes,
            lengths, words, *buffers,
        )  # fmt: skip
        return (-1 - end if end < 0 else -1), lengths, words[: max(end, 0)]
