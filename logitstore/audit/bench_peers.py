"""What `bench` compares with: the same rows in Zarr's zstd, the same files through Zarr, and raw memory maps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["RawFiles", "ZarrStore", "ZstdArrays"]

_CHUNK_BYTES = 1 << 20
"""Zarr's speed grows with its chunks up to about this size."""


class ZstdArrays:
    """Arrays in Zarr's memory store, compressed with its own zstd at level 3.

    Parameters
    ----------
    arrays
        Two-dimensional arrays by name.
    """

    def __init__(self, arrays: dict[str, NDArray[Any]]) -> None:
        import zarr
        from zarr.codecs import ZstdCodec

        self._arrays = {}
        for name, array in arrays.items():
            rows = min(len(array), max(1, _CHUNK_BYTES // (array.shape[1] * array.itemsize)))
            self._arrays[name] = zarr.create_array(
                zarr.storage.MemoryStore(), data=array, chunks=(rows, array.shape[1]),
                compressors=ZstdCodec(level=3), filters=None,
            )  # fmt: skip

    def decode(self) -> None:
        """Read everything, one chunk at a time and with one thread."""
        import zarr

        with zarr.config.set({"async.concurrency": 1, "threading.max_workers": 1}):
            for array in self._arrays.values():
                array[:]


class ZarrStore:
    """The store's own files, read as anybody with Zarr would.

    Parameters
    ----------
    path, names
        Directory of the store; the arrays to read.
    """

    def __init__(self, path: Path, names: list[str]) -> None:
        import zarr

        group = zarr.open_group(str(path), mode="r")
        self._arrays: list[Any] = [group[name] for name in names]

    def read(self, start: int, stop: int) -> list[NDArray[Any]]:
        """Return rows ``start:stop`` of each array."""
        return [array[start:stop] for array in self._arrays]


class RawFiles:
    """Arrays as raw bytes in files, mapped into memory.

    Parameters
    ----------
    directory, arrays
        Where to put them; what they are.
    """

    def __init__(self, directory: Path, arrays: dict[str, NDArray[Any]]) -> None:
        self._arrays = []
        for name, array in arrays.items():
            file = directory / f"{name}.bin"
            array.tofile(file)
            self._arrays.append(np.memmap(file, array.dtype, "r", shape=array.shape))

    def read(self, start: int, stop: int) -> list[NDArray[Any]]:
        """Return a copy of rows ``start:stop`` of each array."""
        return [np.array(array[start:stop]) for array in self._arrays]
