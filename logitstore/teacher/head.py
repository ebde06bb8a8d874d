"""The language-model head on its own, so that logits can be made a chunk of rows at a time."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
from torch import nn

from logitstore.errors import InvalidArgumentError

__all__ = ["call_model", "close", "detach_head", "probe_logits", "require_causal", "run_base", "without_base"]


class _PassThrough(nn.Module):
    """Stands in for the base model: what goes in as embeddings comes out as the last hidden states."""

    def __init__(self, output_type: type[Any]) -> None:
        super().__init__()
        self.output_type = output_type

    def forward(self, *_: object, inputs_embeds: torch.Tensor, **__: object) -> Any:
        return self.output_type(last_hidden_state=inputs_embeds)


def call_model(model: nn.Module, **inputs: Any) -> Any:
    """Call a model with those of the inputs that its forward names (a state-space model has no position ids)."""
    known = inspect.signature(model.forward).parameters
    return model(**{name: value for name, value in inputs.items() if name in known})


def run_base(model: Any, **inputs: Any) -> torch.Tensor:
    """Return the last hidden states ``(B, L, H)`` of the model under the head."""
    hidden: torch.Tensor = call_model(model.base_model, use_cache=False, **inputs).last_hidden_state
    return hidden


def detach_head(model: Any, token_ids: torch.Tensor, logits: torch.Tensor) -> nn.Module | None:
    """Return a model that takes hidden states as ``inputs_embeds`` and gives the logits of the whole model.

    It is the model's own forward, which may scale or cap the logits after the last matrix, over the same parameters,
    with the base model replaced. Returns None if that does not reproduce the logits of the whole model.

    Parameters
    ----------
    model
        A causal language model of transformers.
    token_ids, logits
        ``(1, L)`` token ids and the model's ``(1, L, W)`` logits for them.
    """
    # Whatever goes wrong inside the code of an unknown model only means that its whole forward must be used.
    try:
        base_output = call_model(model.base_model, use_cache=False, input_ids=token_ids)
        hidden = base_output.last_hidden_state
        head = without_base(model, type(base_output))
        backwards = torch.arange(hidden.shape[1] - 1, -1, -1, device=hidden.device)
        chunks = [head(inputs_embeds=hidden[:, rows]).logits for rows in torch.split(backwards, 3)]
        again = torch.cat(chunks, 1).flip(1)
    except Exception:
        return None
    return head if again.shape == logits.shape and close(again, logits) else None


def without_base(model: Any, output_type: type[Any]) -> Any:
    """Return a model that takes as ``inputs_embeds`` what its base model would give out as ``output_type``."""
    head = copy.copy(model)
    head.__dict__["_modules"] = {**model._modules, model.base_model_prefix: _PassThrough(output_type)}
    # accelerate wraps forward on the instance and binds it to the whole model; its hooks on the head itself stay.
    head.__dict__.pop("forward", None)
    return head


def probe_logits(model: Any, token_ids: torch.Tensor) -> torch.Tensor:
    """Return the ``(1, L, W)`` logits of the whole model for ``(1, L)`` token ids."""
    logits: torch.Tensor = call_model(model, input_ids=token_ids, use_cache=False).logits
    return logits


def require_causal(model: Any, token_ids: torch.Tensor, logits: torch.Tensor) -> None:
    """Raise `InvalidArgumentError` if a changed last token changes the logits of the rows before it."""
    changed = token_ids.clone()
    changed[0, -1] = token_ids[0, 0]
    if not close(probe_logits(model, changed)[:, :-1], logits[:, :-1]):
        raise InvalidArgumentError(
            f"the teacher must be a causal language model, but the logits of {type(model).__name__} after a token"
            " depend on the tokens that follow"
        )


def close(a: torch.Tensor, b: torch.Tensor, *, units: int = 8, least: float = 0.0) -> bool:
    """Compare to a few units in the last place of the largest logit, or to a share of it if that is more."""
    tolerance = max(units * torch.finfo(b.dtype).eps, least) * float(b.float().abs().max())
    return bool(torch.allclose(a.float(), b.float(), rtol=0.0, atol=tolerance))
