"""Codecs: pure functions from arrays to bytes and back. They know nothing of files, zarr or torch."""

from logitstore.codec.bit_rows import BitRows, RowFormat
from logitstore.codec.cut_rows import CodedRows, CutRows
from logitstore.codec.exact import ChunkDecoder, Kind, decode, decode_slice, encode
from logitstore.codec.group_rows import GroupRows

__all__ = [
    "BitRows",
    "ChunkDecoder",
    "CodedRows",
    "CutRows",
    "GroupRows",
    "Kind",
    "RowFormat",
    "decode",
    "decode_slice",
    "encode",
]
