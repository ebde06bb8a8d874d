"""Codecs: pure functions from arrays to bytes and back. They know nothing of files, zarr or torch."""

from logitstore.codec.bit_rows import BitRows, CutRows, RowFormat
from logitstore.codec.exact import ChunkDecoder, Kind, decode, decode_slice, encode

__all__ = ["BitRows", "ChunkDecoder", "CutRows", "Kind", "RowFormat", "decode", "decode_slice", "encode"]
