from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from logitstore.errors import InvalidArgumentError

__all__ = ["TrainConfig"]

_AT_LEAST = {
    "batch_size": 1, "seq_len": 1, "steps": 1, "warmup_steps": 0, "gradient_accumulation": 1, "workers": 0, "seed": 0,
    "save_every": 1, "eval_every": 1, "log_every": 1, "keep_checkpoints": 2,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A run of training; ``dataclasses.asdict`` gives JSON.

    Attributes
    ----------
    store
        The teacher's rows: where the store is, a path or an fsspec URL.
    out
        Folder for checkpoints and, in the end, the model. It is new, empty, or that of the run to resume.
    student
        Pretrained student: a folder, or an id on the Hugging Face hub.
    student_config
        Instead: a configuration, as a file, a folder with config.json or an id, of a student with random weights.
    tokenizer
        Folder or id. None: the student's; for a student from a configuration, that of the teacher the store names.
    ignore_tokenizer_mismatch
        Take a tokenizer that differs from the teacher's in anything but its vocabulary, such as an instruct model's
        with other special tokens.
    loss, loss_options
        As for `logitstore.loss.make_loss`.
    batch_size
        Sequences of a micro-batch, in each process.
    seq_len, pack
        As for `logitstore.stream.Collate`.
    steps, epochs
        Steps of the optimizer, or passes over the store, rounded up to whole steps. One of them.
    lr, lr_scheduler, warmup_steps, weight_decay, max_grad_norm
        AdamW's peak learning rate; a schedule of transformers ("linear", "cosine", "constant_with_warmup", …); steps
        up to the peak; decoupled weight decay; norm that gradients are clipped to, 0 for no clipping.
    gradient_accumulation
        Micro-batches of a step.
    bf16
        Weights in float32, products in bfloat16.
    gradient_checkpointing
        Compute activations a second time instead of keeping them.
    fused
        Compute the loss together with the LM head, so that logits never exist at once. None: where the head allows it.
    attn_implementation
        "sdpa", "eager", "flash_attention_2", "flex_attention", …; None leaves it to transformers.
    workers
        DataLoader workers; 0 reads in a thread of the training process.
    decode
        Where kept entries are decoded: "host", where batches are read; "device", where the student is, which they reach
        compressed; "auto": on a CUDA device with Triton, if kernels are switched on (``LOGITSTORE_KERNELS``), else on
        the host. The weights are the same. A step's micro-batches lie decoded on the device all at once if it decodes;
        with "host" they wait in host memory.
    seed
        Of a random student, dropout and the order of documents.
    log_every, save_every, eval_every
        Steps from one line of the log, checkpoint, evaluation to the next. None saves and evaluates at the end only.
    keep_checkpoints
        Older ones are deleted. At least 2: while the last is being written, the one before must be whole.
    eval_store, eval_text
        What the student is evaluated on, or None: a store of the same teacher's tokenizer; a corpus that
        `logitstore.corpus` can read.
    report_to
        Where `Trainer` reports to: "tensorboard", "wandb", …
    device
        "auto" (CUDA where there is one, else the CPU) or "cpu".
    trust_remote_code
        Run Python code that comes with student or tokenizer.

    Raises
    ------
    InvalidArgumentError
        If a value is out of its range, or two do not go together.

    Examples
    --------
    >>> TrainConfig(store="teacher.zarr", student="gpt2", out="run", steps=1000).loss
    'slim'
    """

    store: str
    out: str
    student: str | None = None
    student_config: str | None = None
    tokenizer: str | None = None
    ignore_tokenizer_mismatch: bool = False
    loss: str = "slim"
    loss_options: dict[str, Any] = field(default_factory=dict)
    batch_size: int = 8
    seq_len: int = 512
    pack: bool = True
    steps: int | None = None
    epochs: float | None = None
    lr: float = 5e-4
    lr_scheduler: str = "cosine"
    warmup_steps: int = 0
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    gradient_accumulation: int = 1
    bf16: bool = False
    gradient_checkpointing: bool = False
    fused: bool | None = None
    attn_implementation: str | None = None
    workers: int = 0
    decode: Literal["auto", "host", "device"] = "auto"
    seed: int = 0
    log_every: int = 10
    save_every: int | None = None
    eval_every: int | None = None
    keep_checkpoints: int = 2
    eval_store: str | None = None
    eval_text: str | None = None
    report_to: tuple[str, ...] = ()
    device: str = "auto"
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "report_to", tuple(self.report_to))
        if (self.student is None) == (self.student_config is None):
            raise InvalidArgumentError("a run needs either a student or a student_config, found both or neither")
        if (self.steps is None) == (self.epochs is None):
            raise InvalidArgumentError("a run needs either steps or epochs, found both or neither")
        for name, least in _AT_LEAST.items():
            value = getattr(self, name)
            if value is not None and not (type(value) is int and value >= least):
                raise InvalidArgumentError(f"{name} is a whole number from {least} on, found {value!r}")
        for name in ("lr", "weight_decay", "max_grad_norm"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InvalidArgumentError(f"{name} is a finite number from 0 on, found {getattr(self, name)!r}")
        if self.epochs is not None and not 0 < self.epochs < math.inf:
            raise InvalidArgumentError(f"epochs is positive and finite, found {self.epochs!r}")
        if self.device not in ("auto", "cpu"):
            raise InvalidArgumentError(f"device is 'auto' or 'cpu', found {self.device!r}")
        if self.decode not in ("auto", "host", "device"):
            raise InvalidArgumentError(f"decode is 'auto', 'host' or 'device', found {self.decode!r}")
