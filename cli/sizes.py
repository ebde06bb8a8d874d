"""Numbers as people write them: sizes like ``256MB`` or ``1GiB``, counts like ``10e9``."""

from __future__ import annotations

import re

import click

__all__ = ["ROWS", "SIZE"]

_UNITS = {
    "": 1,
    "K": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
    "KI": 1 << 10,
    "MI": 1 << 20,
    "GI": 1 << 30,
    "TI": 1 << 40,
}


class _Size(click.ParamType[int]):
    name = "size"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?I?)B?", str(value).strip().upper())
        size = int(float(match[1]) * _UNITS[match[2]]) if match and match[2] in _UNITS else 0
        if size < 1:
            self.fail(f"{value!r} is not a size like 256MB, 1GiB or 1000000", param, ctx)
        return size


SIZE = _Size()
"""Parameter type: a number of bytes, with a decimal or binary unit."""


class _Rows(click.ParamType[int]):
    name = "rows"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            number = float(str(value).replace(",", "").replace("_", ""))
        except ValueError:
            number = 0.5
        if not 1 <= number <= 1 << 62 or number != int(number):
            self.fail(f"{value!r} is not a number of rows like 131072 or 10e9", param, ctx)
        return int(number)


ROWS = _Rows()
"""Parameter type: a number of rows or tokens, also as ``10e9``."""
