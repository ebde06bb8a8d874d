"""Our codecs for Zarr v3. Found through their entry points, so that plain ``zarr.open`` decodes our arrays."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

import numpy as np
from zarr.abc.codec import ArrayBytesCodec
from zarr.core.common import JSON, parse_named_configuration

from logitstore import layout
from logitstore.codec import Kind, decode, encode
from logitstore.codec.compact import codebook_of
from logitstore.container.codebooks import registered_codec
from logitstore.errors import CorruptDataError

if TYPE_CHECKING:
    from collections.abc import Callable

    from zarr.core.array_spec import ArraySpec
    from zarr.core.buffer import Buffer, NDBuffer

__all__ = ["CompactCodec", "ExactCodec"]


@dataclass(frozen=True)
class ExactCodec(ArrayBytesCodec):
    """Array-to-bytes codec over `logitstore.codec`.

    Attributes
    ----------
    kind
        ``"ids"``, ``"values"`` or ``"flat"``.
    vocab_size
        Bound of the ids; 0 for the other kinds.
    version
        Version of the codec.
    """

    is_fixed_size = False
    name: ClassVar[str] = "logitstore.exact"
    kinds: ClassVar[tuple[str, ...]] = ("ids", "values", "flat")

    kind: Kind = "flat"
    vocab_size: int = 0
    version: int = 1

    @classmethod
    def from_dict(cls, data: dict[str, JSON]) -> Self:
        """Read the codec's metadata; refuse what is not known."""
        _, parsed = parse_named_configuration(data, cls.name, require_configuration=True)
        configuration = dict(cast("dict[str, Any]", parsed))
        version = configuration.pop("version", 1)
        if version != layout.CODEC_VERSION[cls.name.removeprefix("logitstore.")]:
            raise ValueError(f"{cls.name} version {version} is not known to this logitstore; upgrade it")
        kind = configuration.pop("kind", None)
        if kind not in cls.kinds:
            raise ValueError(f"{cls.name} has kind {' or '.join(map(repr, cls.kinds))}, found {kind!r}")
        vocab_size = configuration.pop("vocab_size", 0)
        if configuration:
            raise ValueError(f"{cls.name} has unknown configuration keys {sorted(configuration)}")
        return cls(kind=kind, vocab_size=vocab_size, version=version)

    def to_dict(self) -> dict[str, JSON]:
        """Return the codec's metadata."""
        configuration: dict[str, JSON] = {"kind": self.kind, "version": self.version}
        if self.kind == "ids":
            configuration["vocab_size"] = self.vocab_size
        return {"name": self.name, "configuration": configuration}

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ArraySpec) -> int:
        """Not known before encoding."""
        raise NotImplementedError

    def _decode_sync(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        array = decode(
            np.ascontiguousarray(chunk_bytes.as_numpy_array()).data,
            self.kind,
            shape=chunk_spec.shape,
            dtype=chunk_spec.dtype.to_native_dtype(),
            vocab_size=self.vocab_size,
        )
        return chunk_spec.prototype.nd_buffer.from_ndarray_like(cast("Any", array))

    def _encode_sync(self, chunk_array: NDBuffer, chunk_spec: ArraySpec) -> Buffer:
        encoded = encode(chunk_array.as_numpy_array(), self.kind, vocab_size=self.vocab_size)
        return chunk_spec.prototype.buffer.from_bytes(encoded)

    async def _decode_single(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        work: Callable[..., NDBuffer] = self._decode_sync
        return await asyncio.to_thread(work, chunk_data, chunk_spec)

    async def _encode_single(self, chunk_data: NDBuffer, chunk_spec: ArraySpec) -> Buffer:
        work: Callable[..., Buffer] = self._encode_sync
        return await asyncio.to_thread(work, chunk_data, chunk_spec)


@dataclass(frozen=True)
class CompactCodec(ExactCodec):
    """Array-to-bytes codec for arrays of a store of the ``compact`` codec; decodes only.

    A chunk's codebook has to be known to this process: `logitstore.zarr.open` sees to that, and so does
    `logitstore.codec.compact.register`. Chunks may be of the exact codec, too.
    """

    name: ClassVar[str] = "logitstore.compact"
    kinds: ClassVar[tuple[str, ...]] = ("ids", "values")

    version: int = layout.CODEC_VERSION["compact"]

    def _decode_sync(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        data = np.ascontiguousarray(chunk_bytes.as_numpy_array()).data
        if data[:3] != layout.COMPACT_MAGIC[:3]:
            return super()._decode_sync(chunk_bytes, chunk_spec)
        rows, slots = chunk_spec.shape
        codec = registered_codec(codebook_of(data).digest, slots)
        array = codec.decode(data.tobytes(), rows)
        if array.dtype != chunk_spec.dtype.to_native_dtype():
            raise CorruptDataError(f"the chunk holds {array.dtype}, which is not what {self.kind} of this array are")
        return chunk_spec.prototype.nd_buffer.from_ndarray_like(cast("Any", array))

    def _encode_sync(self, chunk_array: NDBuffer, chunk_spec: ArraySpec) -> Buffer:
        raise NotImplementedError("arrays of the compact codec are written by logitstore alone: their order is shared")
