"""Streaming a store into PyTorch training: the same batches whatever the number of workers, exact resuming.

>>> from logitstore.stream import BatchStream, Collate
>>> from torch.utils.data import DataLoader
>>> stream = BatchStream("teacher.zarr", 8, collate=Collate(seq_len=2048, pack=True))    # doctest: +SKIP
>>> loader = DataLoader(stream, batch_size=None, num_workers=2)                          # doctest: +SKIP
"""

from logitstore.stream.batches import BatchStream
from logitstore.stream.collate import Collate
from logitstore.stream.documents import DocumentDataset

__all__ = ["BatchStream", "Collate", "DocumentDataset"]
