"""Names of documents: unique, the same on every run, and safe as file and tar member names."""

from __future__ import annotations

import re
from hashlib import blake2b
from typing import TYPE_CHECKING

from logitstore.errors import CorruptDataError, InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "MAX_KEY_CHARACTERS",
    "KeyRegistry",
    "record_key",
    "sample_key",
    "sanitize_key",
    "unique_names",
    "window_key",
]

# A file name may have 255 bytes; this leaves room for the window's number and an extension.
MAX_KEY_CHARACTERS = 200

# Keys that record_key, window_key and sample_key may derive from the name in the first group.
_DERIVED_KEY = re.compile(r"(.+)-(?:\d{8,}|[ws]\d{4,})")
_WINDOW_KEY = re.compile(r"(.+)-[ws]\d{4,}")


def sanitize_key(text: str) -> str:
    """Replace every character that is not in ``[A-Za-z0-9_-]`` by ``_``."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", text)


def record_key(name: str, index: int) -> str:
    """Key of record ``index`` of the input called ``name``."""
    return f"{name}-{index:08d}"


def window_key(key: str, window: int, windows: int) -> str:
    """Key of a window of the document ``key``; wide enough that the windows of one document sort by number."""
    return f"{key}-w{window:0{max(4, len(str(windows - 1)))}d}"


def sample_key(key: str, sample: int, samples: int) -> str:
    """Key of one of several texts that a teacher wrote for the prompt ``key``."""
    return f"{key}-s{sample:0{max(4, len(str(samples - 1)))}d}" if samples > 1 else key


def unique_names(stems: Sequence[str], paths: Sequence[str], *, whole_files: Sequence[bool]) -> list[str]:
    """Give each input a short name of its own from which its documents' keys are derived.

    A name is the file's stem. Files that share a stem are named by their path below the deepest folder that holds all
    of them, extension included.

    Parameters
    ----------
    stems, paths
        File name without extension and full path of each input.
    whole_files
        Whether the input is one document, whose key is the bare name.

    Raises
    ------
    InvalidArgumentError
        If two paths become equal once unsafe characters are replaced.
    """
    short = [sanitize_key(stem) for stem in stems]
    sharing: dict[str, list[str]] = {}
    for name, path in zip(short, paths, strict=True):
        sharing.setdefault(name, []).append(path)
    names = []
    for name, path, whole in zip(short, paths, whole_files, strict=True):
        derived = _DERIVED_KEY.fullmatch(name) if whole else None
        clashes = len(sharing[name]) > 1 or (derived is not None and derived[1] in sharing)
        names.append(sanitize_key(_below_common_folder(path, sharing[name])) if clashes else name)
    seen: dict[str, str] = {}
    for name, path in zip(names, paths, strict=True):
        if name in seen:
            raise InvalidArgumentError(
                f"inputs must have names that differ in [A-Za-z0-9_-]: {seen[name]} and {path} both become {name!r}; "
                "rename one of them"
            )
        seen[name] = path
    return names


def _below_common_folder(path: str, rivals: Sequence[str]) -> str:
    folders = [rival.split("/")[:-1] for rival in rivals]
    depth = 0
    while all(len(parts) > depth for parts in folders) and len({parts[depth] for parts in folders}) == 1:
        depth += 1
    return "/".join(path.split("/")[depth:])


class KeyRegistry:
    """Refuses a key that an earlier record had, or that could be the key of an earlier record's window."""

    def __init__(self) -> None:
        # Digests instead of the keys: the same few bytes per document however long the keys are.
        self._seen: set[bytes] = set()
        self._window_parents: set[bytes] = set()

    def add(self, key: str, original: str) -> None:
        """Register ``key``, which was made from ``original``.

        Raises
        ------
        CorruptDataError
            If the key has been given before.
        """
        digest = _digest(key)
        if digest in self._seen:
            raise CorruptDataError(
                f"keys must be unique once characters outside [A-Za-z0-9_-] are replaced, an earlier record has "
                f"{key!r} as well (from {original!r})"
            )
        window = _WINDOW_KEY.fullmatch(key)
        if digest in self._window_parents or (window is not None and _digest(window[1]) in self._seen):
            raise CorruptDataError(
                f"key {key!r} (from {original!r}) could be mixed up with a window or a sample of another record"
            )
        self._seen.add(digest)
        if window is not None:
            self._window_parents.add(_digest(window[1]))


def _digest(key: str) -> bytes:
    return blake2b(key.encode(), digest_size=16).digest()
