"""Training of a codebook of ids, on the first rows of a data set.

Rows are sorted into classes by hard expectation maximisation, the code length being the cost. Three of four rows
shape the classes, the fourth gives the tables, so that these expect what unseen rows are like. How many classes there
are, and how long their lists get, follows from how many rows will be coded: a codebook has to earn its bytes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from logitstore import layout
from logitstore.codec.compact.arranging import arrange, take
from logitstore.codec.compact.classes import UNITS, ClassScores, escape_bits
from logitstore.codec.compact.codebook import (
    GAP_CONTEXTS,
    IdBook,
)  # fmt: skip
from logitstore.codec.compact.codec import IdCodec
from logitstore.codec.compact.counting import count_ids, count_numbers
from logitstore.codec.compact.sampling import every_nth
from logitstore.codec.compact.tables import adaptive_widths, code_of, doubling_widths, symbols_of
from logitstore.errors import InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

__all__ = ["train_ids"]

ROWS_OF_A_CLASS = 256
_MIN_TRAINING_ROWS_OF_A_CLASS = 48
_ROUNDS = 12
_SMOOTHING = 1.0
_LISTING_BITS = 8.0
_EDGES = np.arange(-8.0, 5.5, 0.5)
"""Base-2 logarithms of odds at which the context of a class's ids changes."""
_SCORED_RANKS = 1 << 14


def train_ids(
    ids: NDArray[np.uint32],
    *,
    vocab_size: int,
    expected_rows: int | None = None,
    max_classes: int = 2048,
    seed: int = 0,
    progress: Callable[[float], None] | None = None,
) -> IdBook:
    """Train a codebook for ids.

    Parameters
    ----------
    ids
        ``(R, K)`` uint32, in any order, unused slots last and ``0xFFFFFFFF``. Of more than 131,072 rows or 2^25
        entries every n-th row is taken.
    expected_rows
        Rows that will be coded with it; as many as are given, if None.
    max_classes
        Classes at most.
    seed
        Of the rows that classes begin with. The same rows and seed give the same codebook.
    progress
        Called with the part that is done, 0 to 1.

    Raises
    ------
    InvalidArgumentError
        There are no rows, or an id is not below ``vocab_size``.
    """
    if not len(ids) or not 1 <= vocab_size <= layout.CODEBOOK_MAX_LISTED:
        raise InvalidArgumentError(
            f"a codebook needs rows of a vocabulary of 1 to 2^26, found {len(ids)}, {vocab_size}"
        )
    rows = np.ascontiguousarray(ids[:: every_nth(ids)])
    counts = (rows != layout.UNUSED_ID).sum(axis=1, dtype=np.int64)
    used = rows[np.arange(rows.shape[1]) < counts[:, None]]
    if len(used) and int(used.max()) >= vocab_size:
        raise InvalidArgumentError(f"ids are below {vocab_size}, found {used.max()}")
    expected = len(ids) if expected_rows is None else max(1, expected_rows)
    order, sizes, frequency = _order(used, vocab_size, len(rows))
    ranks = np.full(vocab_size + 1, 0xFFFFFFFF, np.uint32)
    ranks[order] = np.arange(vocab_size, dtype=np.uint32)
    ranked = np.sort(ranks[np.minimum(rows, np.uint32(vocab_size))], axis=1)

    held = np.zeros(len(rows), np.bool_)
    if len(rows) >= 4096:
        held[len(rows) * 3 // 4 :] = True
    shaping, judging = ~held, held if held.any() else ~held
    scored = frequency[: min(vocab_size, _SCORED_RANKS)]
    most = max(1, min(max_classes, expected // ROWS_OF_A_CLASS, int(shaping.sum()) // _MIN_TRAINING_ROWS_OF_A_CLASS))
    candidates = sorted({most, max(1, most // 4)}, reverse=True)
    best, least = None, math.inf
    for number, classes in enumerate(candidates):
        members, sizes_of_classes = _expectation_maximisation(
            ranked[shaping], counts[shaping], scored, classes, np.random.default_rng(seed),
            _part_of(progress, 0.8 * number, 0.2 if number else 0.8),
        )  # fmt: skip
        nibbles, listed = _lists(members, sizes_of_classes, scored, expected / max(1, int(shaping.sum())))
        draft = _draft(vocab_size, order, sizes, nibbles, listed)
        book = _with_tables(draft, ranked[judging], counts[judging], expected / int(judging.sum()))
        cost = _bytes_of(book, rows[judging], expected)
        if cost < least:
            best, least = book, cost
    assert best is not None
    if progress:
        progress(1.0)
    return best


def _part_of(progress: Callable[[float], None] | None, begin: float, share: float) -> Callable[[float], None]:
    """Report a part of the work as part of the whole."""
    return lambda part: progress(begin + share * part) if progress else None


def _bytes_of(book: IdBook, rows: NDArray[np.uint32], expected: int) -> float:
    """Bytes of the codebook and of so many rows like these."""
    sample = np.ascontiguousarray(rows[:: max(1, len(rows) // 4096)])
    codec = IdCodec(book, rows.shape[1])
    return len(book.blob) + len(codec.encode(codec.arrange(sample))) * expected / len(sample)


def _order(
    used: NDArray[np.uint32], vocab_size: int, rows: int
) -> tuple[NDArray[np.uint32], NDArray[np.uint32], NDArray[np.float64]]:
    """All ids by falling frequency, in runs of about equal frequency; the runs' sizes; each rank's frequency."""
    found = np.bincount(used, minlength=vocab_size)
    run = np.where(found > 0, np.floor(-2 * np.log2(np.maximum(found, 1))).astype(np.int64), 1)
    order = np.lexsort((np.arange(vocab_size), run))
    _, sizes = np.unique(run[found > 0], return_counts=True)
    # Half doublings of up to 2^25 entries: at most 51 runs, the format allows 64.
    return order.astype(np.uint32), sizes.astype(np.uint32), (found[order] + 0.5) / (rows + 1)


def _expectation_maximisation(
    ranked: NDArray[np.uint32], counts: NDArray[np.int64], frequency: NDArray[np.float64], classes: int,
    generator: np.random.Generator, progress: Callable[[float], None],
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:  # fmt: skip
    """Sort rows into classes; return how often each rank is in rows of each class ``(F, C)``, and their rows."""
    first = np.sort(generator.choice(len(ranked), classes, replace=False))
    members = count_ids(ranked[first], counts[first], np.arange(classes), len(frequency), classes)
    rows = np.ones(classes, np.int64)
    for turn in range(_ROUNDS if classes > 1 else 1):
        step = 4 if turn < _ROUNDS - 3 and len(ranked) > 64 * classes else 1
        part = slice(turn % step, None, step)
        scores = _scores_of(members, rows, frequency)
        chosen = scores.choose(ranked[part], counts[part])
        members = count_ids(ranked[part], counts[part], chosen, len(frequency), classes)
        rows = np.bincount(chosen, minlength=classes)
        empty = np.flatnonzero(rows < 3)
        if len(empty) and turn < _ROUNDS - 2:
            again = np.sort(generator.choice(len(ranked), len(empty), replace=False))
            seeds = count_ids(ranked[again], counts[again], np.arange(len(empty)), len(frequency), len(empty))
            members[:, empty], rows[empty] = seeds, 1
        progress(0.9 * (turn + 1) / _ROUNDS)
    alive = rows >= min(8, len(ranked))
    if not alive.any():
        alive[rows.argmax()] = True
    return members[:, alive], rows[alive]


def _densities(
    members: NDArray[np.int32], rows: NDArray[np.int64], frequency: NDArray[np.float64]
) -> NDArray[np.float64]:
    smoothed = (members + _SMOOTHING * frequency[:, None]) / (rows + _SMOOTHING)
    return np.asarray(np.clip(smoothed, 1e-7, 1 - 1e-3))


def _scores_of(members: NDArray[np.int32], rows: NDArray[np.int64], frequency: NDArray[np.float64]) -> ClassScores:
    """Bits that each class saves against the frequencies of all rows."""
    limit, classes = members.shape
    weights, constants = np.empty((limit, classes), np.int8), np.zeros(classes)
    general = np.clip(frequency, 1e-7, 1 - 1e-3)[:, None]
    for first in range(0, limit, 1024):
        part = slice(first, first + 1024)
        density = _densities(members[part], rows, frequency[part])
        odds = np.log2(density / (1 - density)) - np.log2(general[part] / (1 - general[part]))
        weights[part] = np.clip(np.rint(odds * UNITS), -127, 127)
        constants += np.log2((1 - density) / (1 - general[part])).sum(axis=0)
    return ClassScores(weights, np.rint(constants * UNITS).astype(np.int32))


def _lists(
    members: NDArray[np.int32], rows: NDArray[np.int64], frequency: NDArray[np.float64], scale: float
) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Which ranks each class lists, and how many nibbles it has in each context.

    An id is listed if that saves more bits in the rows to come than it takes in the codebook.
    """
    escape = escape_bits(np.arange(len(members)))
    nibbles = np.zeros((len(rows), len(_EDGES) + 1), np.uint32)
    listed = []
    for number in range(len(rows)):
        density = _densities(members[:, number : number + 1], rows[number : number + 1], frequency)[:, 0]
        entropy = -density * np.log2(density) - (1 - density) * np.log2(1 - density)
        saved = (density * escape - entropy) * rows[number] * scale
        chosen = np.flatnonzero((saved > _LISTING_BITS) & (members[:, number] > 0))
        odds = np.log2(density[chosen] / (1 - density[chosen]))
        whole = len(chosen) // layout.NIBBLE * layout.NIBBLE
        likely = np.argsort(-odds, kind="stable")[:whole]
        contexts = len(_EDGES) - np.searchsorted(_EDGES, odds[likely].reshape(-1, layout.NIBBLE).mean(axis=1))
        ranks = chosen[likely]
        listed.append(ranks[np.lexsort((ranks, np.repeat(contexts, layout.NIBBLE)))])
        nibbles[number] = np.bincount(contexts, minlength=len(_EDGES) + 1)
    return nibbles, np.concatenate(listed).astype(np.uint32)


def _draft(
    vocab_size: int, order: NDArray[np.uint32], sizes: NDArray[np.uint32], nibbles: NDArray[np.uint32],
    listed: NDArray[np.uint32],
) -> IdBook:  # fmt: skip
    """Return a codebook whose tables only know the densities that contexts stand for."""
    odds = np.exp2(np.concatenate([_EDGES[::-1], [_EDGES[0] - 1]]) + 0.25)[:, None]
    density = odds / (1 + odds)
    ones = np.array([symbol.bit_count() for symbol in range(16)])
    counts = 1e4 * density**ones * (1 - density) ** (layout.NIBBLE - ones)
    nibble_code = code_of(
        np.zeros(1 << layout.NIBBLE, np.uint32), counts, scale=1e6, most=layout.TABLES_MAX, required=True
    )
    flat = code_of(doubling_widths(1), np.ones((1, 4)), scale=1, most=1, required=True)
    return IdBook(vocab_size, order, sizes, nibbles, listed, flat, flat, flat, nibble_code)


def _with_tables(draft: IdBook, ranked: NDArray[np.uint32], counts: NDArray[np.int64], scale: float) -> IdBook:
    """Return the codebook with classes by falling frequency, and with tables for these rows."""
    chosen = ClassScores.of(draft).choose(ranked, counts)
    found = np.bincount(chosen, minlength=draft.classes)
    new = np.argsort(-found, kind="stable")
    ends = draft.first_nibble * layout.NIBBLE
    listed = np.concatenate([draft.listed[ends[old] : ends[old + 1]] for old in new])
    place = np.empty(len(new), np.int64)
    place[new] = np.arange(len(new))
    book = _replace(draft, nibbles=draft.nibbles[new], listed=listed)
    chosen, found = place[chosen], found[new]
    _, hits, _, sources = arrange(book, ranked, counts, chosen)
    contexts = np.repeat(np.tile(np.arange(book.nibbles.shape[1]), book.classes), book.nibbles.reshape(-1))
    many = doubling_widths(book.vocab_size)
    nibbles, gaps = count_numbers(
        take(ranked, sources), counts, hits, chosen, book.first_nibble, contexts, book.listed, GAP_CONTEXTS,
        len(many), book.nibbles.shape[1],
    )  # fmt: skip
    misses = np.bincount(symbols_of(many, ranked.shape[1])[counts - hits], minlength=len(many))[None]
    widths = adaptive_widths(found + 1, 1 / 64)
    classes = np.bincount(symbols_of(widths, len(found))[chosen], minlength=len(widths))[None]
    return _replace(
        book,
        class_code=code_of(widths, classes, scale=scale, most=1, required=True),
        miss_code=code_of(many, misses, scale=scale, most=1, required=True),
        gap_code=code_of(many, gaps, scale=scale, most=24, required=True),
        nibble_code=code_of(book.nibble_code.widths, nibbles, scale=scale, most=40, required=True),
    )


def _replace(book: IdBook, **fields: Any) -> IdBook:
    names = (
        "vocab_size", "order", "order_sizes", "nibbles", "listed", "class_code", "miss_code", "gap_code", "nibble_code",
    )  # fmt: skip
    return IdBook(**{name: fields.get(name, getattr(book, name)) for name in names})
