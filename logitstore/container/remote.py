"""Remote files through fsspec: fetched by range, in blocks, a little ahead, with patience, and never without bound."""

from __future__ import annotations

import hashlib
import os
import random
import threading
import time
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from logitstore.container.files import SHARD_BLOCK_BYTES
from logitstore.errors import InvalidArgumentError, LogitStoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from logitstore.container.files import RandomFile

__all__ = ["RemoteFiles", "with_retries"]

T = TypeVar("T")

ATTEMPTS = 6
FIRST_PAUSE = 0.2
LONGEST_PAUSE = 10.0
_FETCHERS = 8
_BLOCKS_AHEAD = 3
_FINAL = (PermissionError, IsADirectoryError, NotADirectoryError)


def with_retries(call: Callable[[], T], what: str) -> T:
    """Return ``call()``; after a failure that may pass, wait (each time about twice as long) and try again.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    LogitStoreError
        The server refused, or it failed `ATTEMPTS` times.
    """
    for attempt in range(ATTEMPTS):
        try:
            return call()
        except (FileNotFoundError, LogitStoreError):
            raise
        except Exception as error:
            if not _may_pass(error) or attempt == ATTEMPTS - 1:
                tried = f"after {attempt + 1} attempts" if attempt else "at the first attempt"
                message = f"reading failed {tried}: {type(error).__name__}: {error}"
                raise LogitStoreError(message, path=what) from error
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2**attempt)
        # Spread, so that a thousand readers do not come back at the same moment.
        time.sleep(pause * (0.5 + random.random() / 2))
    raise AssertionError


def _may_pass(error: Exception) -> bool:
    if isinstance(error, _FINAL):
        return False
    status = getattr(error, "status", None)  # aiohttp's answer
    if isinstance(status, int) and status:
        return status >= 500 or status in (408, 425, 429)
    return isinstance(error, OSError | TimeoutError | EOFError) or type(error).__module__.startswith("aiohttp")


class RemoteFiles:
    """A folder behind a URL.

    Parameters
    ----------
    url
        Of the folder.
    storage_options
        For fsspec.
    cache_bytes
        Bytes of blocks kept at most.
    """

    def __init__(self, url: str, storage_options: dict[str, Any], cache_bytes: int) -> None:
        self._url = url.rstrip("/")
        self._options = storage_options
        self._cache_bytes = cache_bytes
        self._start()

    def _start(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._system: tuple[Any, str] | None = None
        self._sizes: dict[str, int] = {}
        self._blocks = _Blocks(self._fetch, self._cache_bytes)

    def __getstate__(self) -> dict[str, Any]:
        return {"_url": self._url, "_options": self._options, "_cache_bytes": self._cache_bytes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    def _open_system(self) -> tuple[Any, str]:
        """Return the file system and the folder's path in it; a forked child makes its own."""
        if self._process != os.getpid():
            self._start()
        with self._lock:
            if self._system is None:
                import fsspec

                try:
                    self._system = fsspec.core.url_to_fs(self._url, **self._options)
                except (ImportError, ValueError, TypeError) as error:
                    raise InvalidArgumentError(f"fsspec cannot open this: {error}", path=self._url) from error
            return self._system

    def _fetch(self, name: str, start: int, stop: int) -> bytes:
        system, folder = self._open_system()

        def fetch() -> bytes:
            data = bytes(system.cat_file(f"{folder}/{name}", start=start, end=stop))
            if len(data) != stop - start:
                more = "the server does not honour byte ranges" if len(data) > stop - start else "the answer is short"
                raise OSError(f"asked for bytes {start} to {stop}, got {len(data)} bytes: {more}")
            return data

        return with_retries(fetch, self.place(name))

    def place(self, name: str = "") -> str:
        """See `StoreFiles`."""
        return f"{self._url}/{name}" if name else self._url

    def exists(self) -> bool:
        """See `StoreFiles`."""
        system, folder = self._open_system()
        return with_retries(lambda: bool(system.exists(folder)), self._url)

    def read(self, name: str, limit: int | None = None) -> bytes:
        """See `StoreFiles`."""
        system, folder = self._open_system()
        # Not every server minds a range beyond the end of a file; the limit is for hostile files only.
        size = self.size(name)
        if limit is not None and size > limit:
            return self._fetch(name, 0, limit)
        return with_retries(lambda: bytes(system.cat_file(f"{folder}/{name}")), self.place(name))

    def read_many(self, names: Sequence[str]) -> list[bytes | None]:
        """See `StoreFiles`."""
        self._open_system()

        def read(name: str) -> bytes | None:
            try:
                return self.read(name)
            except FileNotFoundError:
                return None

        with ThreadPoolExecutor(_FETCHERS, thread_name_prefix="logitstore-fetch") as pool:
            return list(pool.map(read, names))

    def size(self, name: str) -> int:
        """Return the size of a file, asked for once; FileNotFoundError if it is missing."""
        system, folder = self._open_system()
        if name not in self._sizes:
            size = with_retries(lambda: system.info(f"{folder}/{name}").get("size"), self.place(name))
            if size is None:
                raise LogitStoreError("the server does not say how large the file is", path=self.place(name))
            self._sizes[name] = int(size)
        return self._sizes[name]

    def open(self, name: str, block_bytes: int = SHARD_BLOCK_BYTES) -> RandomFile:
        """See `StoreFiles`."""
        return _BlockFile(self, name, self.size(name), block_bytes)

    def block(self, name: str, size: int, block_bytes: int, number: int) -> bytes:
        """Return one block of a file."""
        self._open_system()
        return self._blocks.get(name, size, block_bytes, number)


class _BlockFile:
    """A remote file, read through its folder's blocks."""

    def __init__(self, files: RemoteFiles, name: str, size: int, block_bytes: int) -> None:
        self._files = files
        self._name = name
        self.size = size
        self._block_bytes = block_bytes

    def read(self, start: int, stop: int) -> memoryview:
        """See `RandomFile`."""
        size = self._block_bytes
        numbers = range(start // size, -(-stop // size))
        blocks = [self._files.block(self._name, self.size, size, number) for number in numbers]
        data = blocks[0] if len(blocks) == 1 else b"".join(blocks)
        base = numbers.start * size
        return memoryview(data)[start - base : stop - base]

    def sha256(self) -> str:
        """See `RandomFile`."""
        digest = hashlib.sha256()
        for start in range(0, self.size, self._block_bytes):
            digest.update(self.read(start, min(start + self._block_bytes, self.size)))
        return digest.hexdigest()

    def close(self) -> None:
        """See `RandomFile`. Blocks stay until others push them out."""


_Key = tuple[str, int, int]


class _Blocks:
    """Blocks by file and number: each fetched once however many threads ask, the least recently used dropped."""

    def __init__(self, fetch: Callable[[str, int, int], bytes], capacity: int) -> None:
        self._fetch = fetch
        self._capacity = capacity
        self._held: OrderedDict[_Key, tuple[Future[bytes], int]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None

    def get(self, name: str, size: int, block_bytes: int, number: int) -> bytes:
        """Return a block. Whoever asks for one behind another that is held is likely to want the next ones, too."""
        with self._lock:
            ahead = _BLOCKS_AHEAD if (name, block_bytes, number - 1) in self._held else 0
            future = self._ask(name, size, block_bytes, number)
            for later in range(number + 1, number + 1 + ahead):
                if later * block_bytes < size and (ahead + 1) * block_bytes <= self._capacity:
                    self._ask(name, size, block_bytes, later)
            self._drop()
        try:
            return future.result()
        except Exception:
            with self._lock:
                self._forget((name, block_bytes, number), future)
            raise

    def _ask(self, name: str, size: int, block_bytes: int, number: int) -> Future[bytes]:
        key = (name, block_bytes, number)
        if key in self._held:
            self._held.move_to_end(key)
            return self._held[key][0]
        if self._pool is None:
            self._pool = ThreadPoolExecutor(_FETCHERS, thread_name_prefix="logitstore-fetch")
        start = number * block_bytes
        stop = min(start + block_bytes, size)
        future = self._pool.submit(self._fetch, name, start, stop)
        self._held[key] = future, stop - start
        self._bytes += stop - start
        return future

    def _drop(self) -> None:
        while self._bytes > self._capacity and len(self._held) > 1:
            _, (_, size) = self._held.popitem(last=False)
            self._bytes -= size

    def _forget(self, key: _Key, future: Future[bytes]) -> None:
        """Drop a block that could not be fetched, so that the next one who asks tries again."""
        if key in self._held and self._held[key][0] is future:
            self._bytes -= self._held.pop(key)[1]
