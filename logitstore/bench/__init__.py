"""What a device reaches: selection, codec, losses, the capture of a teacher's logits and a student's step from them.

>>> from logitstore.bench import TINY, device_bench
>>> device_bench(torch.device("cpu"), TINY, only=("select",)).device   # doctest: +SKIP
'cpu'
"""

from logitstore.bench.measure import DeviceBench, Figure, Verdict
from logitstore.bench.run import GROUPS, device_bench, find_device
from logitstore.bench.sizes import FULL, TINY, LlamaShape, Sizes

__all__ = [
    "FULL",
    "GROUPS",
    "TINY",
    "DeviceBench",
    "Figure",
    "LlamaShape",
    "Sizes",
    "Verdict",
    "device_bench",
    "find_device",
]
