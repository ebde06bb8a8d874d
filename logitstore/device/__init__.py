"""The codecs on a GPU, in Triton (the extra ``gpu``), beside what `logitstore.codec` does on the CPU.

Both are decoded there, ``exact`` is encoded as well.

Functions here take tensors of any device. Where they lie on a CPU, or Triton is not installed, the CPU's code runs.
"""

from logitstore.device.coded_rows import decode_coded
from logitstore.device.decode import Decoded, decode_rows
from logitstore.device.encode import encode_chunk, encode_chunks

__all__ = ["Decoded", "decode_coded", "decode_rows", "encode_chunk", "encode_chunks"]
