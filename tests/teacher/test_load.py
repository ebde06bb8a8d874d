from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import safetensors.torch
import torch
import transformers

from logitstore.errors import InvalidArgumentError
from logitstore.teacher import TeacherConfig, load_teacher
from logitstore.teacher.fingerprint import weight_files, weights_digest

if TYPE_CHECKING:
    from collections.abc import Callable


def test_padding_of_the_vocabulary_is_measured(teacher_folder: Callable[[str], str]) -> None:
    teacher = load_teacher(TeacherConfig(teacher_folder("llama"), device="cpu"))
    assert teacher.vocab_size == 90
    assert teacher.padded_vocab_size == 96
    assert teacher.max_length == 64
    assert not teacher.model.training


def test_a_tokenizer_with_more_ids_than_the_model_is_refused(make_teacher_folder: Callable[..., str]) -> None:
    folder = make_teacher_folder(tokenizer_size=97)
    with pytest.raises(InvalidArgumentError, match=r"97 ids.*96"):
        load_teacher(TeacherConfig(folder, device="cpu"))


def test_description_is_json_and_its_identity_survives_a_move(
    teacher_folder: Callable[[str], str], tmp_path: Path
) -> None:
    folder = teacher_folder("gpt2")
    moved = shutil.copytree(folder, tmp_path / "elsewhere")
    here, there = (load_teacher(TeacherConfig(str(path), device="cpu")).describe() for path in (folder, moved))
    assert json.loads(json.dumps(here)) == here
    assert here["id"] == folder
    assert here["identity"] == there["identity"]
    assert here["identity"]["architecture"] == "GPT2LMHeadModel"
    assert here["identity"]["dtype"] == "float32"
    assert folder not in json.dumps(here["identity"])
    assert here["versions"] == {"torch": torch.__version__, "transformers": transformers.__version__}


def test_identity_tells_fine_tuned_weights_of_the_same_shapes_apart(
    teacher_folder: Callable[[str], str], tmp_path: Path
) -> None:
    changed = shutil.copytree(teacher_folder("llama"), tmp_path / "changed")
    weights = safetensors.torch.load_file(changed / "model.safetensors")
    safetensors.torch.save_file(
        {name: tensor * 1.001 for name, tensor in weights.items()}, changed / "model.safetensors", {"format": "pt"}
    )
    assert weights_digest(changed) != weights_digest(Path(teacher_folder("llama")))


def test_weights_in_parts_are_digested_with_their_index(tmp_path: Path) -> None:
    transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16
        )
    ).save_pretrained(tmp_path, max_shard_size="4KB")
    files = [path.name for path in weight_files(tmp_path)]
    assert "model.safetensors.index.json" in files
    assert len(files) > 2
    before = weights_digest(tmp_path)
    (tmp_path / "README.md").write_text("not a weight")
    assert weights_digest(tmp_path) == before


def test_dtype_is_part_of_the_identity(teacher_folder: Callable[[str], str]) -> None:
    teacher = load_teacher(TeacherConfig(teacher_folder("llama"), dtype="bfloat16", device="cpu"))
    assert teacher.describe()["identity"]["dtype"] == "bfloat16"


def test_missing_weights_are_not_made_up(teacher_folder: Callable[[str], str], tmp_path: Path) -> None:
    broken = shutil.copytree(teacher_folder("llama"), tmp_path / "broken")
    weights = safetensors.torch.load_file(broken / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    safetensors.torch.save_file(weights, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(InvalidArgumentError, match=r"lacks 1 of .*model\.layers\.1\.mlp\.up_proj\.weight"):
        load_teacher(TeacherConfig(str(broken), device="cpu"))


def test_truncated_weights_are_an_error_that_names_the_folder(
    teacher_folder: Callable[[str], str], tmp_path: Path
) -> None:
    broken = shutil.copytree(teacher_folder("llama"), tmp_path / "broken")
    file = broken / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InvalidArgumentError, match=r"cannot be loaded.*broken"):
        load_teacher(TeacherConfig(str(broken), device="cpu"))


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=r"does not exist.*absent"):
        load_teacher(TeacherConfig(str(tmp_path / "absent"), device="cpu"))


def test_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=r"must hold config\.json"):
        load_teacher(TeacherConfig(str(tmp_path), device="cpu"))


def test_folder_without_a_tokenizer(teacher_folder: Callable[[str], str], tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        shutil.copy(Path(teacher_folder("llama")) / name, tmp_path)
    with pytest.raises(InvalidArgumentError, match=r"cannot be loaded.*tokenizer"):
        load_teacher(TeacherConfig(str(tmp_path), device="cpu"))


def test_a_model_that_sees_the_future_is_refused(tmp_path: Path, make_teacher_folder: Callable[..., str]) -> None:
    folder = make_teacher_folder()
    transformers.BertLMHeadModel(
        transformers.BertConfig(
            vocab_size=96, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
        )
    ).save_pretrained(folder)
    with pytest.raises(InvalidArgumentError, match="BertLMHeadModel after a token depend on the tokens that follow"):
        load_teacher(TeacherConfig(folder, device="cpu"))


def test_rotary_embeddings_stretched_beyond_the_trained_context_count(make_teacher_folder: Callable[..., str]) -> None:
    folder = make_teacher_folder(
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 10_000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    )
    assert load_teacher(TeacherConfig(folder, device="cpu")).max_length == 256


def test_loading_is_silent_and_leaves_the_settings_of_transformers(
    teacher_folder: Callable[[str], str], capfd: pytest.CaptureFixture[str]
) -> None:
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    load_teacher(TeacherConfig(teacher_folder("llama"), device="cpu"))
    assert capfd.readouterr() == ("", "")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": ""}, "needs a model"),
        ({"dtype": "int8"}, "dtype must be one of auto, float32"),
        ({"device": "cpu", "device_map": "auto"}, "exclude each other"),
    ],
)
def test_invalid_configurations(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        TeacherConfig(**({"model": "somewhere"} | arguments))


def test_unknown_device(teacher_folder: Callable[[str], str]) -> None:
    with pytest.raises(InvalidArgumentError, match="'quantum' is no torch device"):
        load_teacher(TeacherConfig(teacher_folder("llama"), device="quantum"))
