from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from logitstore.errors import InvalidArgumentError
from logitstore.teacher.fingerprint import file_digest, weights_digest
from logitstore.teacher.head import detach_head, probe_logits, require_causal
from logitstore.teacher.loading import context_length, explained, quiet, require_all_weights
from logitstore.teacher.teacher import Teacher

if TYPE_CHECKING:
    from logitstore.teacher.config import TeacherConfig

__all__ = ["load_teacher"]

_PROBE_TOKENS = 8


@torch.inference_mode()
def load_teacher(config: TeacherConfig) -> Teacher:
    """Load a causal language model and its tokenizer with transformers, and check that they fit.

    Raises
    ------
    InvalidArgumentError
        If the model or its tokenizer cannot be loaded, weights are missing from the checkpoint, the tokenizer has ids
        that the model has no logits for, or the model is not causal.

    Examples
    --------
    >>> teacher = load_teacher(TeacherConfig("path/to/teacher", dtype="float32"))  # doctest: +SKIP
    >>> teacher.vocab_size, teacher.head_path  # doctest: +SKIP
    (50257, 'chunked')
    """
    import transformers

    device = _device(config)
    with quiet(), explained("teacher", config.model):
        folder = _folder(config)
        arguments = {"revision": config.revision, "trust_remote_code": config.trust_remote_code}
        tokenizer = transformers.AutoTokenizer.from_pretrained(config.model, **arguments)
        model, loading = transformers.AutoModelForCausalLM.from_pretrained(
            config.model,
            dtype=config.dtype if config.dtype == "auto" else getattr(torch, config.dtype),
            output_loading_info=True,
            **({} if config.device_map is None else {"device_map": config.device_map}),
            **({} if config.attn_implementation is None else {"attn_implementation": config.attn_implementation}),
            **arguments,
        )
        if config.device_map is None:
            model = model.to(device)
    require_all_weights(config.model, loading)
    model.eval()

    vocab_size = max(tokenizer.get_vocab().values()) + 1
    embeddings = model.get_input_embeddings().weight.shape[0]
    max_length = context_length(model.config)
    count = min(_PROBE_TOKENS, max_length or _PROBE_TOKENS)
    ids = torch.arange(count, device=model.device)[None] * max(1, embeddings // count) % embeddings
    logits = probe_logits(model, ids)
    padded_vocab_size = logits.shape[-1]
    if vocab_size > min(padded_vocab_size, embeddings):
        raise InvalidArgumentError(
            f"the tokenizer has {vocab_size} ids, but the model has logits for {padded_vocab_size} and embeddings for"
            f" {embeddings}; the tokenizer does not belong to the model",
            path=config.model,
        )
    require_causal(model, ids, logits)

    identity = {
        "architecture": type(model).__name__,
        "dtype": str(model.dtype).removeprefix("torch."),
        "vocab_size": vocab_size,
        "padded_vocab_size": padded_vocab_size,
        "config_digest": file_digest(folder / "config.json"),
        "weights_digest": weights_digest(folder),
    }
    return Teacher(
        model,
        tokenizer,
        head=detach_head(model, ids, logits),
        device=model.device,
        vocab_size=vocab_size,
        padded_vocab_size=padded_vocab_size,
        max_length=max_length,
        description={
            "id": config.model,
            "revision": getattr(model.config, "_commit_hash", None) or config.revision,
            "identity": identity,
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        },
    )


def _device(config: TeacherConfig) -> torch.device:
    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(config.device)
    except RuntimeError as error:
        raise InvalidArgumentError(f"{config.device!r} is no torch device: {error}") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InvalidArgumentError("device 'cuda' was asked for, but torch finds no CUDA device")
    return device


def _folder(config: TeacherConfig) -> Path:
    """Return the local folder of the checkpoint; for a hub id, the snapshot in the cache, with config.json fetched."""
    from transformers.utils import cached_file

    looks_like_path = config.model.startswith((".", "~", os.sep)) or config.model.count("/") > 1
    if looks_like_path and not Path(config.model).is_dir():
        raise InvalidArgumentError("the teacher's folder does not exist", path=config.model)
    if Path(config.model).is_dir():
        folder = Path(config.model)
    else:
        folder = Path(str(cached_file(config.model, "config.json", revision=config.revision))).parent
    if not (folder / "config.json").is_file():
        raise InvalidArgumentError("a teacher's folder must hold config.json, weights and tokenizer", path=config.model)
    return folder
