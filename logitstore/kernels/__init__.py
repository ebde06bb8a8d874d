"""Triton kernels over rows of logits. Each does what a plain torch function elsewhere does, and falls back to it.

They run where the tensors are on a CUDA device and Triton is installed (``pip install logitstore[gpu]``). The
environment variable ``LOGITSTORE_KERNELS`` decides otherwise: ``off`` never uses them, ``on`` raises where Triton is
missing and, under Triton's interpreter (``TRITON_INTERPRET=1``), uses them for CPU tensors as well.
"""

from __future__ import annotations

from logitstore.kernels.choice import use_kernels

__all__ = ["use_kernels"]
