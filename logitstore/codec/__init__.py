"""Codecs: pure functions from arrays to bytes and back. They know nothing of files, zarr or torch."""

from logitstore.codec.exact import Kind, decode, decode_slice, encode

__all__ = ["Kind", "decode", "decode_slice", "encode"]
