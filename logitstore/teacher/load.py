from __future__ import annotations

import os
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from logitstore.errors import InvalidArgumentError
from logitstore.teacher.fingerprint import file_digest, weights_digest
from logitstore.teacher.head import detach_head, probe_logits, require_causal
from logitstore.teacher.teacher import Teacher

if TYPE_CHECKING:
    from collections.abc import Iterator

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
    with _quiet(), _explained(config):
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
    _require_all_weights(config, loading)
    model.eval()

    vocab_size = max(tokenizer.get_vocab().values()) + 1
    embeddings = model.get_input_embeddings().weight.shape[0]
    max_length = _context(model.config)
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


def _require_all_weights(config: TeacherConfig, loading: dict[str, Any]) -> None:
    """Refuse an incomplete checkpoint: transformers fills what is missing with random numbers and only logs it."""
    missing = sorted(map(str, loading["missing_keys"]))
    if missing:
        raise InvalidArgumentError(
            f"the checkpoint lacks {len(missing)} of the model's weights, such as {missing[0]}; it is incomplete or not"
            " a causal language model",
            path=config.model,
        )


def _context(config: Any) -> int | None:
    """Return the longest input that the model's positions allow, stretched rotary embeddings included."""
    text = config.get_text_config()
    longest = getattr(text, "max_position_embeddings", None)
    if longest is None:
        return None
    rope = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    for parameters in (rope, *rope.values()):
        if isinstance(parameters, dict) and "factor" in parameters and "original_max_position_embeddings" in parameters:
            stretched = int(parameters["factor"] * parameters["original_max_position_embeddings"])
            longest = max(longest, stretched)
    return int(longest)


@contextmanager
def _explained(config: TeacherConfig) -> Iterator[None]:
    """Turn what transformers raises for a model that cannot be had into one error with a hint."""
    try:
        yield
    except InvalidArgumentError:
        raise
    except Exception as error:
        # The kinds differ between releases (OSError, ValueError, ImportError, safetensors' and the hub's own); memory
        # running out is torch's own kind and says what it is.
        if isinstance(error, torch.OutOfMemoryError):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        hint = (
            " (a teacher is a folder with config.json, weights and tokenizer, or an id on the Hugging Face hub, which"
            " needs a network or a filled cache, and a login where it is gated)"
        )
        raise InvalidArgumentError(
            f"the teacher cannot be loaded: {reason}{hint if isinstance(error, OSError) else ''}", path=config.model
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' log and its bar for reading weights off the terminal; downloads may show theirs."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from transformers.utils import logging

    verbosity, bar, downloads = logging.get_verbosity(), logging.is_progress_bar_enabled(), are_progress_bars_disabled()
    with warnings.catch_warnings():
        # transformers switches the hub's bars along with its own, and the hub warns if its environment variable has the
        # last word.
        warnings.simplefilter("ignore")
        logging.set_verbosity(logging.CRITICAL)
        logging.disable_progress_bar()
        (disable_progress_bars if downloads else enable_progress_bars)()
        try:
            yield
        finally:
            logging.set_verbosity(verbosity)
            if bar:
                logging.enable_progress_bar()
            (disable_progress_bars if downloads else enable_progress_bars)()
