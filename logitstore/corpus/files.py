"""Records of text, JSON-lines and Parquet files, streamed in file order."""

from __future__ import annotations

import codecs
import gzip
import json
import zlib
from typing import IO, TYPE_CHECKING, Any

from logitstore.corpus.content import columns_to_read
from logitstore.corpus.inputs import CorpusFile, InputRecord
from logitstore.corpus.keys import record_key
from logitstore.errors import CorruptDataError, TruncatedDataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from logitstore.corpus.config import CorpusConfig

__all__ = ["read_file"]

_CHUNK_BYTES = 1 << 20
_PARQUET_BATCH_ROWS = 1024


def read_file(file: CorpusFile, config: CorpusConfig) -> Iterator[tuple[InputRecord, int]]:
    """Yield every record of a file, blank lines and empty documents included, each with the bytes read so far.

    Raises
    ------
    CorruptDataError
        If the file breaks the rules of its kind: bad UTF-8, malformed JSON, a damaged archive.
    """
    with file.filesystem.open(file.path, "rb") as stream:
        for record in _records(file, stream, config):
            yield record, stream.tell()


def _records(file: CorpusFile, stream: IO[bytes], config: CorpusConfig) -> Iterator[InputRecord]:
    if file.extension == ".txt":
        yield from _read_text(file, stream, config.doc_separator)
    elif file.extension == ".parquet":
        yield from _read_parquet(file, stream, config)
    elif file.extension == ".jsonl.gz":
        with gzip.open(stream) as lines:
            yield from _read_json_lines(file, lines)
    else:
        yield from _read_json_lines(file, stream)


def _read_text(file: CorpusFile, stream: IO[bytes], separator: str | None) -> Iterator[InputRecord]:
    pieces = iter([stream.read()]) if separator is None else _split(stream, separator.encode())
    line = 1
    for index, piece in enumerate(pieces):
        text = _decode(piece if index else piece.removeprefix(codecs.BOM_UTF8), file.url, line)
        key = file.name if separator is None else record_key(file.name, index)
        yield InputRecord(text, key, file.url, f"line {line}")
        line += piece.count(b"\n") + (separator or "").count("\n")


def _split(stream: IO[bytes], separator: bytes) -> Iterator[bytes]:
    """Yield what lies between separators; a separator at the very end starts no further document.

    Splitting bytes is splitting text: in UTF-8 a character's bytes never occur inside another character's.
    """
    pending = bytearray()
    searched = 0
    pieces = 0
    while chunk := stream.read(_CHUNK_BYTES):
        pending += chunk
        while (at := pending.find(separator, searched)) >= 0:
            yield bytes(pending[:at])
            pieces += 1
            del pending[: at + len(separator)]
            searched = 0
        searched = max(0, len(pending) - len(separator) + 1)
    if pending or not pieces:
        yield bytes(pending)


def _read_json_lines(file: CorpusFile, lines: Iterable[bytes]) -> Iterator[InputRecord]:
    number = 0
    stream = iter(lines)
    while True:
        number += 1
        try:
            line = next(stream, None)
        except EOFError as error:
            raise TruncatedDataError(f"line {number}: the compressed data ends too early", path=file.url) from error
        except (gzip.BadGzipFile, zlib.error) as error:
            raise CorruptDataError(f"line {number}: damaged gzip data: {error}", path=file.url) from error
        if line is None:
            return
        text = _decode(line.removeprefix(codecs.BOM_UTF8) if number == 1 else line, file.url, number)
        fields = _parse_object(text, file.url, number) if text.strip() else ""
        yield InputRecord(fields, record_key(file.name, number - 1), file.url, f"line {number}")


def _parse_object(text: str, path: str, line: int) -> dict[str, Any]:
    try:
        fields = json.loads(text)
    except json.JSONDecodeError as error:
        raise CorruptDataError(
            f"line {line}: malformed JSON, {error.msg} at column {error.colno}", path=path
        ) from error
    except (ValueError, RecursionError) as error:
        raise CorruptDataError(f"line {line}: unreadable JSON, {error}", path=path) from error
    if not isinstance(fields, dict):
        raise CorruptDataError(f"line {line}: a line must be a JSON object, found {type(fields).__name__}", path=path)
    return fields


def _decode(data: bytes, path: str, first_line: int) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = first_line + data.count(b"\n", 0, error.start)
        raise CorruptDataError(
            f"line {line}: text must be UTF-8, found byte 0x{data[error.start]:02x} ({error.reason})", path=path
        ) from error


def _read_parquet(file: CorpusFile, stream: IO[bytes], config: CorpusConfig) -> Iterator[InputRecord]:
    import pyarrow
    import pyarrow.parquet

    index = 0
    try:
        parquet = pyarrow.parquet.ParquetFile(stream)
        columns = columns_to_read(parquet.schema_arrow.names, config)
        batches = parquet.iter_batches(batch_size=_PARQUET_BATCH_ROWS, columns=columns)
        while (batch := next(batches, None)) is not None:
            for fields in batch.to_pylist():
                yield InputRecord(fields, record_key(file.name, index), file.url, f"row {index}")
                index += 1
    except (pyarrow.ArrowException, OSError) as error:
        raise CorruptDataError(f"row {index}: unreadable Parquet: {error}", path=file.url) from error
