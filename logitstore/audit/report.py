"""What `verify` found."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from logitstore.errors import LogitStoreError

__all__ = ["Findings", "Problem", "Report"]

_LISTED_PER_SHARD = 20


@dataclass(frozen=True)
class Problem:
    """A broken rule.

    Attributes
    ----------
    file
        Path of the file within the store.
    shard, row
        Number of the shard and of the row in the store, from 0; None where the problem is not of one shard or row.
    rule
        Short name of the rule, stable between versions.
    message
        What the rule says and what was found.
    """

    file: str
    shard: int | None
    row: int | None
    rule: str
    message: str


@dataclass(frozen=True)
class Report:
    """Result of `verify`.

    Attributes
    ----------
    ok
        Whether no rule is broken.
    errors
        What is broken, at most some 20 problems per shard.
    rows_checked
        Rows whose every field was decoded and checked.
    notes
        Observations that break no rule, such as files that are not part of the store.
    """

    ok: bool
    errors: list[Problem]
    rows_checked: int
    notes: list[str]

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON."""
        return dataclasses.asdict(self)


class Findings:
    """Collects problems; many problems of one shard are counted, not listed."""

    def __init__(self) -> None:
        self._problems: list[Problem] = []
        self._per_shard: Counter[int | None] = Counter()
        self.notes: list[str] = []

    def add(self, *problems: Problem) -> None:
        """Take problems."""
        for problem in problems:
            self._per_shard[problem.shard] += 1
            if self._per_shard[problem.shard] <= _LISTED_PER_SHARD:
                self._problems.append(problem)

    def error(self, file: str, rule: str, message: str, *, shard: int | None = None, row: int | None = None) -> None:
        """Take a problem by its parts."""
        self.add(Problem(file, shard, row, rule, message))

    def report(self, rows_checked: int) -> Report:
        """Close the books."""
        more = [
            Problem("", shard, None, "more", f"{count - _LISTED_PER_SHARD} more problems of this shard are not listed")
            for shard, count in self._per_shard.items()
            if count > _LISTED_PER_SHARD
        ]
        return Report(not self._problems, self._problems + more, rows_checked, self.notes)


def problem_of(error: LogitStoreError, file: str, rule: str, *, shard: int | None = None) -> Problem:
    """Turn an error raised on the way into a problem."""
    return Problem(file, error.shard if shard is None else shard, error.row, rule, error.message)
