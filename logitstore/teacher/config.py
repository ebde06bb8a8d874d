from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from logitstore.errors import InvalidArgumentError

__all__ = ["DTYPES", "TeacherConfig"]

DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class TeacherConfig:
    """Which teacher to load and how to run it.

    Attributes
    ----------
    model
        Path of a folder, or id on the Hugging Face hub.
    revision
        Branch, tag or commit on the hub.
    dtype
        "auto" (as the checkpoint says), "float32", "bfloat16" or "float16".
    device
        "auto" (CUDA where there is one, else the CPU) or a torch device.
    device_map
        Spread the model over devices, as transformers understands it ("auto", "balanced", …). Needs `accelerate`;
        excludes ``device``.
    attn_implementation
        "sdpa", "eager", "flash_attention_2", …; None leaves it to transformers.
    trust_remote_code
        Run Python code that comes with the checkpoint.

    Raises
    ------
    InvalidArgumentError
        If a value is out of its range.
    """

    model: str
    revision: str | None = None
    dtype: str = "auto"
    device: str = "auto"
    device_map: str | dict[str, Any] | None = None
    attn_implementation: str | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if not self.model:
            raise InvalidArgumentError("a teacher needs a model: a folder or an id on the Hugging Face hub")
        if self.dtype not in DTYPES:
            raise InvalidArgumentError(f"dtype must be one of {', '.join(DTYPES)}, not {self.dtype!r}")
        if self.device_map is not None and self.device != "auto":
            raise InvalidArgumentError(
                f"device {self.device!r} and device_map {self.device_map!r} exclude each other; give one of them"
            )
