"""From what the user named to the list of files and datasets to read."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from logitstore.corpus.keys import unique_names
from logitstore.errors import InvalidArgumentError

if TYPE_CHECKING:
    from logitstore.corpus.config import CorpusConfig

__all__ = ["EXTENSIONS", "CorpusDataset", "CorpusFile", "InputRecord", "ResolvedInputs", "resolve_inputs"]

EXTENSIONS = (".jsonl.gz", ".jsonl", ".parquet", ".txt")

_DATASET_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?(:[\w.-]+)?")


@dataclass(frozen=True)
class CorpusFile:
    """A file of a known kind.

    Attributes
    ----------
    filesystem, path
        The fsspec file system and the path in it.
    url
        The path as shown to people.
    relative
        Path below the folder or glob the user named: the same wherever the corpus lies.
    extension
        One of `EXTENSIONS`.
    name
        What the keys of the file's documents start with.
    """

    filesystem: Any
    path: str
    url: str
    relative: str
    extension: str
    name: str = ""


@dataclass(frozen=True)
class CorpusDataset:
    """A Hugging Face dataset: ``source`` is a folder that ``save_to_disk`` wrote, or ``owner/name[:configuration]``."""

    source: str
    saved: bool
    name: str = ""

    @property
    def url(self) -> str:
        """The dataset as shown to people."""
        return self.source


@dataclass(frozen=True)
class InputRecord:
    """A record as it was read, before anybody looked for its content.

    Attributes
    ----------
    fields
        The record's fields, or the bare text of a ``.txt`` document or blank line.
    key
        Key that follows from the record's place.
    path, place
        Where it lies, for messages: the file or dataset, and the line (counted from 1) or row (counted from 0).
    """

    fields: dict[str, Any] | str
    key: str
    path: str
    place: str


@dataclass(frozen=True)
class ResolvedInputs:
    """The inputs in reading order, and how many files in folders and globs were of no known kind."""

    inputs: tuple[CorpusFile | CorpusDataset, ...]
    files_ignored: int


def resolve_inputs(config: CorpusConfig) -> ResolvedInputs:
    """List the files and datasets that ``config.data`` names.

    Raises
    ------
    InvalidArgumentError
        If an entry does not exist, is of no supported kind, holds no supported file, or names a file a second time.
    """
    inputs: list[CorpusFile | CorpusDataset] = []
    named_by: dict[str, str] = {}
    ignored = 0
    for entry in config.data:
        found, skipped = _expand(entry)
        ignored += skipped
        for one in found:
            if one.url in named_by:
                raise InvalidArgumentError(
                    f"an input must be named once, {one.url} is named by {named_by[one.url]!r} and by {entry!r}"
                )
            named_by[one.url] = entry
        inputs += found
    names = unique_names(
        [_stem(one) for one in inputs],
        [one.url for one in inputs],
        whole_files=[
            isinstance(one, CorpusFile) and one.extension == ".txt" and config.doc_separator is None for one in inputs
        ],
    )
    return ResolvedInputs(
        tuple(replace(one, name=name) for one, name in zip(inputs, names, strict=True)), files_ignored=ignored
    )


def _expand(entry: str) -> tuple[list[CorpusFile | CorpusDataset], int]:
    """Return what an entry stands for, and the number of files in it that are of no known kind."""
    filesystem, path = _locate(entry)
    if filesystem.isdir(path):
        if "://" not in entry and _is_saved_dataset(path):
            return [CorpusDataset(source=path, saved=True)], 0
        return _known_files(filesystem, filesystem.find(path), root=path, entry=entry)
    if filesystem.isfile(path):
        extension = _extension(path)
        if extension is None:
            raise InvalidArgumentError(f"a file must be one of {', '.join(sorted(EXTENSIONS))}, found {entry}")
        return [_file(filesystem, path, path.rsplit("/", 1)[-1], extension)], 0
    if re.search(r"[*?\[]", path):
        root = re.split(r"[*?\[]", path, maxsplit=1)[0].rpartition("/")[0]
        matches = [match for match in filesystem.glob(path) if filesystem.isfile(match)]
        return _known_files(filesystem, matches, root=root, entry=entry)
    if "://" in entry or _extension(entry) is not None or not _DATASET_NAME.fullmatch(entry):
        raise InvalidArgumentError(f"no such file or folder: {entry}")
    return [CorpusDataset(source=entry, saved=False)], 0


def _locate(entry: str) -> tuple[Any, str]:
    import fsspec

    if "://" not in entry:
        return fsspec.filesystem("file"), os.path.abspath(os.path.expanduser(entry))
    try:
        filesystem, path = fsspec.core.url_to_fs(entry)
    except (ImportError, ValueError) as error:
        raise InvalidArgumentError(f"cannot open {entry}: {error}") from error
    return filesystem, path.rstrip("/")


def _known_files(
    filesystem: Any, paths: list[str], *, root: str, entry: str
) -> tuple[list[CorpusFile | CorpusDataset], int]:
    known: list[CorpusFile | CorpusDataset] = []
    for path in sorted(paths):
        extension = _extension(path)
        if extension is not None:
            relative = path.removeprefix(root).lstrip("/")
            known.append(_file(filesystem, path, relative, extension))
    if not known:
        raise InvalidArgumentError(
            f"{entry} must hold a file of {', '.join(sorted(EXTENSIONS))}, found {len(paths)} files and none of these"
        )
    return known, len(paths) - len(known)


def _file(filesystem: Any, path: str, relative: str, extension: str) -> CorpusFile:
    protocols = (filesystem.protocol,) if isinstance(filesystem.protocol, str) else filesystem.protocol
    url = path if "file" in protocols else filesystem.unstrip_protocol(path)
    return CorpusFile(filesystem=filesystem, path=path, url=url, relative=relative, extension=extension)


def _extension(path: str) -> str | None:
    return next((extension for extension in EXTENSIONS if path.lower().endswith(extension)), None)


def _stem(one: CorpusFile | CorpusDataset) -> str:
    base = one.url.rstrip("/").rsplit("/", 1)[-1]
    return (base[: -len(one.extension)] or base) if isinstance(one, CorpusFile) else base


def _is_saved_dataset(path: str) -> bool:
    return any(os.path.isfile(os.path.join(path, name)) for name in ("state.json", "dataset_dict.json"))
