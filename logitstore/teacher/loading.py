"""What loading teachers and students with transformers has in common: a quiet terminal, and errors that explain."""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from logitstore.errors import InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["context_length", "explained", "quiet", "require_all_weights", "without_bars"]


@contextmanager
def explained(what: str, model: str) -> Iterator[None]:
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
            f" (a {what} is a folder with config.json, weights and tokenizer, or an id on the Hugging Face hub, which"
            " needs a network or a filled cache, and a login where it is gated)"
        )
        raise InvalidArgumentError(
            f"the {what} cannot be loaded: {reason}{hint if isinstance(error, OSError) else ''}", path=model
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' log, warnings and bars off the terminal; downloads may show their bars."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    with warnings.catch_warnings(), without_bars():
        warnings.simplefilter("ignore")
        logging.set_verbosity(logging.CRITICAL)
        try:
            yield
        finally:
            logging.set_verbosity(verbosity)


@contextmanager
def without_bars() -> Iterator[None]:
    """Keep transformers' bars for reading and writing weights off the terminal; downloads may show theirs."""
    from transformers.utils import logging

    bar = logging.is_progress_bar_enabled()
    _show_bars(False)
    try:
        yield
    finally:
        _show_bars(bar)


def _show_bars(show: bool) -> None:
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from transformers.utils import logging

    downloads = are_progress_bars_disabled()
    with warnings.catch_warnings():
        # transformers switches the hub's bars along with its own, and the hub warns if its environment variable has the
        # last word.
        warnings.simplefilter("ignore")
        (logging.enable_progress_bar if show else logging.disable_progress_bar)()
        (disable_progress_bars if downloads else enable_progress_bars)()


def require_all_weights(model: str, loading: dict[str, Any]) -> None:
    """Refuse an incomplete checkpoint: transformers fills what is missing with random numbers and only logs it."""
    missing = sorted(map(str, loading["missing_keys"]))
    if missing:
        raise InvalidArgumentError(
            f"the checkpoint lacks {len(missing)} of the model's weights, such as {missing[0]}; it is incomplete or not"
            " a causal language model",
            path=model,
        )


def context_length(config: Any) -> int | None:
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
