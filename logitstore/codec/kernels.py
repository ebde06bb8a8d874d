"""How this package compiles its loops with Numba: without the GIL, without checks, and cached between runs.

Numba would put its cache beside the source. It goes to the user's cache directory instead: files that an installer does
not know of keep an uninstalled package's folder alive, and Python takes such a folder for a package.

Numba compiles a function again when its file has changed, but not when what it calls, or a constant, has changed in
another file. So the cache has a folder for each state of these sources.
"""

from __future__ import annotations

import hashlib
import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numba import config, njit

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["inlined", "kernel"]

_OPTIONS: dict[str, Any] = {"nogil": True, "cache": True, "boundscheck": False, "error_model": "numpy"}


def kernel(function: Callable[..., Any]) -> Any:
    """Compile a function when it is first called, and keep the result in the cache."""
    return _compiled(function, _OPTIONS)


def inlined(function: Callable[..., Any]) -> Any:
    """Compile a function into each kernel that calls it."""
    return _compiled(function, {**_OPTIONS, "inline": "always"})


def _compiled(function: Callable[..., Any], options: dict[str, Any]) -> Any:
    # Numba decides where a function is cached when it is decorated; the setting is put back for everybody else.
    before = config.CACHE_DIR
    config.CACHE_DIR = before or str(_cache_directory())
    try:
        return njit(**options)(function)
    finally:
        config.CACHE_DIR = before


@cache
def _cache_directory() -> Path:
    # expanduser, not Path.home: a process without a home must still import; Numba then looks for another place.
    base = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "logitstore" / "numba"
    codec = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted([*codec.rglob("*.py"), codec.parent / "layout.py"]):
        digest.update(path.read_bytes())
    return base / digest.hexdigest()[:16]
