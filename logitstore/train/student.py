"""The student: loading it, and calling it so that packed documents do not see each other."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from logitstore.errors import InvalidArgumentError
from logitstore.teacher.head import call_model, close, without_base
from logitstore.teacher.loading import explained, quiet, require_all_weights

if TYPE_CHECKING:
    from torch import Tensor

    from logitstore.reader import Store
    from logitstore.train.config import TrainConfig

__all__ = [
    "check_paths",
    "has_plain_head",
    "load_student",
    "load_tokenizer",
    "require_separate_documents",
    "student_inputs",
]

_PROBE_TOKENS = 4


def check_paths(config: TrainConfig) -> None:
    """Raise `InvalidArgumentError` where a student or tokenizer is plainly a path, and one that leads nowhere."""
    for name in (config.student, config.student_config, config.tokenizer):
        if name is not None and name.startswith((".", "~", "/")) and not Path(name).exists():
            raise InvalidArgumentError("there is no such file or folder", path=name)


def load_tokenizer(config: TrainConfig, store: Store) -> Any:
    """Load the tokenizer that a configuration asks for.

    Raises
    ------
    InvalidArgumentError
        If it cannot be had.
    """
    from transformers import AutoTokenizer

    name = config.tokenizer or config.student
    teacher = str(store.manifest.teacher.get("id"))
    try:
        with quiet(), explained("tokenizer", name or teacher):
            return AutoTokenizer.from_pretrained(name or teacher, trust_remote_code=config.trust_remote_code)
    except InvalidArgumentError as error:
        if name is not None:
            raise
        raise InvalidArgumentError(
            f"the store names {teacher} as its teacher, whose tokenizer is not there; give one (--tokenizer):"
            f" {error.message}",
            path=store.path,
        ) from error


def load_student(config: TrainConfig) -> Any:
    """Load a pretrained student in float32, or make one with random weights, seeded by torch's generator.

    Raises
    ------
    InvalidArgumentError
        If it cannot be had, or its weights are incomplete.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    arguments: dict[str, Any] = {"trust_remote_code": config.trust_remote_code}
    if config.attn_implementation is not None:
        arguments["attn_implementation"] = config.attn_implementation
    name = config.student or config.student_config
    assert name is not None
    with quiet(), explained("student", name):
        if config.student is None:
            settings = AutoConfig.from_pretrained(name, trust_remote_code=config.trust_remote_code)
            return AutoModelForCausalLM.from_config(settings, dtype=torch.float32, **arguments)
        model, loading = AutoModelForCausalLM.from_pretrained(
            name, dtype=torch.float32, output_loading_info=True, **arguments
        )
    require_all_weights(name, loading)
    return model


def student_inputs(model: Any, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return what a model of transformers is called with for a batch of a stream.

    Without packing that is the tokens alone: padding stands behind them, where no row of a causal model looks. With it,
    ``position_ids`` that start again tell transformers where another document begins, given neither an attention mask
    nor a cache. FlashAttention looks at them only in a batch of one sequence, so the batch becomes one.
    """
    if "cu_seqlens" not in batch:
        return {"input_ids": batch["tokens"]}
    inputs = {"input_ids": batch["tokens"], "position_ids": batch["position_ids"]}
    if "flash" in str(getattr(model.config, "_attn_implementation", "")):
        inputs = {name: tensor.reshape(1, -1) for name, tensor in inputs.items()}
    return inputs


@torch.no_grad()
def has_plain_head(model: Any) -> bool:
    """Whether logits are the last hidden states times the weight of the LM head, plus its bias, and nothing more."""
    head = model.get_output_embeddings()
    if not isinstance(head, torch.nn.Linear):
        return False
    from transformers.modeling_outputs import BaseModelOutputWithPast

    numbers = torch.arange(_PROBE_TOKENS * head.in_features, device=head.weight.device, dtype=head.weight.dtype)
    hidden = numbers.sin().reshape(1, _PROBE_TOKENS, -1) * 4
    try:
        # Without the layers below, whose attention may not run on this device.
        logits = without_base(model, BaseModelOutputWithPast)(inputs_embeds=hidden).logits
    except Exception:
        # Whatever goes wrong inside an unknown model only means that its whole forward must be used.
        return False
    again = torch.nn.functional.linear(hidden, head.weight, head.bias)
    return again.shape == logits.shape and close(again, logits)


@torch.no_grad()
def require_separate_documents(model: Any) -> None:
    """Raise `InvalidArgumentError` if a document's logits depend on the one that is packed before it.

    FlashAttention is taken at transformers' word: it runs neither on every device nor in float32.
    """
    if "flash" in str(getattr(model.config, "_attn_implementation", "")):
        return
    training = model.training
    model.eval()
    try:
        ids = _probe(model)
        alone = call_model(model, input_ids=ids, use_cache=False).logits
        positions = torch.arange(ids.shape[1], device=ids.device).repeat(2)[None]
        packed = call_model(
            model, input_ids=torch.cat((ids.flip(1), ids), 1), position_ids=positions, use_cache=False
        ).logits[:, ids.shape[1] :]
    finally:
        model.train(training)
    if not close(packed, alone):
        raise InvalidArgumentError(
            f"{type(model).__name__} does not keep packed documents apart by their position_ids: what comes before a"
            " document changes its logits; train it without packing (pack=False, --no-pack)"
        )


def _probe(model: Any) -> Tensor:
    embeddings = model.get_input_embeddings().weight
    numbers = torch.arange(_PROBE_TOKENS, device=embeddings.device)
    return (numbers * max(1, len(embeddings) // _PROBE_TOKENS) % len(embeddings))[None]
