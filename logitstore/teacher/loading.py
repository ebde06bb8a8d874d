"""What loading teachers and students with transformers has in common: a quiet terminal, and errors that explain."""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from logitstore.errors import InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["explained", "quiet", "require_all_weights"]


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


def require_all_weights(model: str, loading: dict[str, Any]) -> None:
    """Refuse an incomplete checkpoint: transformers fills what is missing with random numbers and only logs it."""
    missing = sorted(map(str, loading["missing_keys"]))
    if missing:
        raise InvalidArgumentError(
            f"the checkpoint lacks {len(missing)} of the model's weights, such as {missing[0]}; it is incomplete or not"
            " a causal language model",
            path=model,
        )
