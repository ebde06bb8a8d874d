"""Numbers as people write them: ``256MB`` and ``1GiB``, ``10e9`` and ``300M``."""

from __future__ import annotations

import re

import click

__all__ = ["COUNT", "SIZE"]

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


class _Count(click.ParamType[int]):
    name = "count"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        text = str(value).strip().upper().replace(",", "").replace("_", "")
        match = re.fullmatch(r"(\d+(?:\.\d+)?(?:E\+?\d{1,2})?)([KMBT]?)", text)
        count = int(float(match[1]) * 1000 ** " KMBT".index(match[2] or " ")) if match else 0
        if not 1 <= count < 1 << 63:
            self.fail(f"{value!r} is not a number like 128256, 10e9 or 300M", param, ctx)
        return count


COUNT = _Count()
"""Parameter type: a number of things, written out, with an exponent, or with K, M, B or T for a thousand and so on."""
