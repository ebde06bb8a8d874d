from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import tokenizers
import torch
import transformers

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

VOCAB_SIZE = 90
PADDED_VOCAB_SIZE = 96


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    pass


def save_tokenizer(folder: Path, size: int = VOCAB_SIZE) -> None:
    words = {f"w{i}": i for i in range(size - 1)} | {"<unk>": size - 1}
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=model, unk_token="<unk>").save_pretrained(folder)


def tiny_config(kind: str, **changes: Any) -> Any:
    """Two layers of width 16. Gemma 2, Granite and Cohere scale or cap their logits after the last matrix."""
    common = {
        "vocab_size": PADDED_VOCAB_SIZE,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": None,
        "initializer_range": 0.5,
    }
    transformer = common | {
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 64,
    }
    make: dict[str, Callable[[], Any]] = {
        "llama": lambda: transformers.LlamaConfig(**(transformer | changes)),
        "gpt2": lambda: transformers.GPT2Config(
            **(
                {"vocab_size": PADDED_VOCAB_SIZE, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
                | {"bos_token_id": 0, "eos_token_id": 0, "initializer_range": 0.5}
                | changes
            )
        ),
        "gemma2": lambda: transformers.Gemma2Config(
            **(transformer | {"head_dim": 8, "final_logit_softcapping": 1.5, "sliding_window": 16} | changes)
        ),
        "granite": lambda: transformers.GraniteConfig(**(transformer | {"logits_scaling": 8.0} | changes)),
        "cohere": lambda: transformers.CohereConfig(**(transformer | {"logit_scale": 0.0625} | changes)),
        "bloom": lambda: transformers.BloomConfig(**(common | {"n_layer": 2, "n_head": 2} | changes)),
        "mamba": lambda: transformers.MambaConfig(**(common | {"state_size": 4} | changes)),
    }
    return make[kind]()


def save_teacher(folder: Path, kind: str = "llama", *, tokenizer_size: int = VOCAB_SIZE, **changes: Any) -> str:
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(tiny_config(kind, **changes)).save_pretrained(folder)
    save_tokenizer(folder, tokenizer_size)
    return str(folder)


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Give the folder of a tiny random teacher of a kind, made once."""
    made: dict[str, str] = {}

    def folder(kind: str) -> str:
        if kind not in made:
            made[kind] = save_teacher(tmp_path_factory.mktemp(kind), kind)
        return made[kind]

    return folder


@pytest.fixture
def make_teacher_folder(tmp_path: Path) -> Callable[..., str]:
    """Make a tiny random teacher with changes, in a folder of this test alone."""

    def make(kind: str = "llama", **changes: Any) -> str:
        return save_teacher(tmp_path / kind, kind, **changes)

    return make
