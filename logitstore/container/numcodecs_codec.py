"""``logitstore.exact`` for numcodecs: Zarr v2 metadata, kerchunk, or direct use. The same bytes as for Zarr v3."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
from numcodecs.abc import Codec
from numcodecs.compat import ensure_contiguous_ndarray_like, ndarray_copy

from logitstore.codec import Kind, decode, encode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import DTypeLike, NDArray

__all__ = ["ExactNumcodec"]


class ExactNumcodec(Codec):  # type: ignore[misc]  # numcodecs has no types
    """Encode chunks of one shape and type.

    Parameters
    ----------
    kind
        ``"ids"``, ``"values"`` or ``"flat"``.
    shape
        Shape of every chunk. numcodecs hands a decoder only bytes, so the codec has to know.
    dtype
        Type of every chunk.
    vocab_size
        Bound of the ids; 0 for the other kinds.

    Examples
    --------
    >>> import numpy as np
    >>> codec = ExactNumcodec("flat", [3], "<f4")
    >>> np.frombuffer(codec.decode(codec.encode(np.array([1.5, 2, 2], "f4"))), "f4").tolist()
    [1.5, 2.0, 2.0]
    """

    codec_id: ClassVar[str] = "logitstore.exact"

    def __init__(self, kind: Kind, shape: Sequence[int], dtype: DTypeLike, vocab_size: int = 0) -> None:
        self.kind = kind
        self.shape = list(shape)
        self.dtype = np.dtype(dtype).str
        self.vocab_size = vocab_size

    def encode(self, buf: Any) -> bytes:
        """Encode one chunk."""
        array = np.asarray(buf)
        if array.dtype != np.dtype(self.dtype):
            array = ensure_contiguous_ndarray_like(buf).view(self.dtype)
        return encode(array.reshape(self.shape), self.kind, vocab_size=self.vocab_size)

    def decode(self, buf: Any, out: Any = None) -> NDArray[Any]:
        """Decode one chunk, into ``out`` if given."""
        data = np.ascontiguousarray(ensure_contiguous_ndarray_like(buf)).view("u1")
        array = decode(data.data, self.kind, shape=tuple(self.shape), dtype=self.dtype, vocab_size=self.vocab_size)
        return cast("NDArray[Any]", ndarray_copy(array, out) if out is not None else array)
