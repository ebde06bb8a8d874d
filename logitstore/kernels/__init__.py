"""Triton kernels over rows of logits. Each does what a plain torch function elsewhere does, and falls back to it.

The environment variable ``LOGITSTORE_KERNELS`` decides: ``off``, the default as long as no GPU has run them, never uses
them; ``auto`` does where the tensors are on a CUDA device and Triton is installed (``pip install logitstore[gpu]``);
``on`` raises where Triton is missing, and under Triton's interpreter (``TRITON_INTERPRET=1``) uses them for CPU tensors
too.
"""

from __future__ import annotations

from logitstore.kernels.choice import use_kernels

__all__ = ["use_kernels"]
