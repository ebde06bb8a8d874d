"""What does not fit is refused before the first step, with a reason."""

from __future__ import annotations

import json

import pytest
import torch
import transformers

from logitstore.errors import InvalidArgumentError
from logitstore.loss import make_loss
from logitstore.train import LossStep, TrainConfig, train
from logitstore.train.student import require_separate_documents
from tests.conftest import StoreMaker
from tests.train.conftest import small_llama


def with_other_tokenizer(stores, folder, *, swap=(), eos=None):
    """Save the teacher's tokenizer with the ids of two tokens swapped, or with another EOS."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(stores.teacher)
    if eos is not None:
        tokenizer.eos_token = eos
    tokenizer.save_pretrained(folder)
    if swap:
        content = json.loads((folder / "tokenizer.json").read_text())
        ids = content["model"]["vocab"]
        ids[swap[0]], ids[swap[1]] = ids[swap[1]], ids[swap[0]]
        (folder / "tokenizer.json").write_text(json.dumps(content))
    return str(folder)


@pytest.fixture
def no_step(monkeypatch):
    def step(*_, **__):
        raise AssertionError("a step was taken")

    monkeypatch.setattr(transformers.Trainer, "training_step", step)


@pytest.mark.usefixtures("no_step")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": "mse"}, "no loss is called 'mse'"),
        ({"loss": "full_kl"}, "a teacher that runs along"),
        ({"loss": "sampled_kl"}, "needs the counts of random draws; build the store with --sample"),
        ({"loss": "forward_kl", "loss_options": {"temperature": 2.0}}, "temperatures in the store: none"),
        ({"loss": "forward_kl", "loss_options": {"temperature": 2.0, "ce_weight": 0.5}}, "at temperature 2.0"),
        ({"seq_len": 512}, "reads 256 tokens at most, seq_len is 512"),
        ({"student_config": "./no-such-folder"}, "no such file or folder"),
        ({"student_config": None, "student": "./no-such-folder"}, "no such file or folder"),
        ({"tokenizer": "./no-such-folder"}, "no such file or folder"),
        ({"student_config": "generation_config.json"}, "the student cannot be loaded"),
        ({"tokenizer": "."}, "the tokenizer cannot be loaded"),
        ({"lr_scheduler": "sawtooth"}, "sawtooth"),
        ({"report_to": ("smoke signals",)}, "smoke signals"),
        ({"eval_text": "./no-such-file.txt"}, "no such file"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_refused(changes, message, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "generation_config.json").write_text("{}")
    with pytest.raises(InvalidArgumentError) as caught:
        train(run.config(tmp_path / "run", **changes))
    assert message in str(caught.value)
    assert not (tmp_path / "run" / "distillation.json").exists()


@pytest.mark.usefixtures("no_step")
def test_a_small_vocabulary(run, tmp_path):
    small_llama(vocab_size=299).save_pretrained(tmp_path / "student")
    with pytest.raises(InvalidArgumentError, match="ids up to 299, but the student has 299 embeddings and 299 logits"):
        train(run.config(tmp_path / "run", student_config=str(tmp_path / "student")))


@pytest.mark.parametrize("ignore", [False, True])
@pytest.mark.usefixtures("no_step")
def test_another_vocabulary(ignore, run, stores, tmp_path):
    other = with_other_tokenizer(stores, tmp_path / "other", swap=("a", "b"))
    with pytest.raises(InvalidArgumentError, match=r"differ in: vocabulary .*300 ids there, 300 here"):
        train(run.config(tmp_path / "run", tokenizer=other, ignore_tokenizer_mismatch=ignore))


@pytest.mark.usefixtures("no_step")
def test_a_teacher_that_is_gone(run, tmp_path):
    path = StoreMaker().make(tmp_path / "s", [9], teacher={"id": "./moved"})
    with pytest.raises(InvalidArgumentError, match=r"names ./moved as its teacher, whose .* give one \(--tokenizer\)"):
        train(run.config(tmp_path / "run", store=str(path)))


def test_other_special_tokens(run, stores, tmp_path):
    other = with_other_tokenizer(stores, tmp_path / "other", eos="!")
    with pytest.raises(InvalidArgumentError) as caught:
        train(run.config(tmp_path / "run", tokenizer=other))
    assert "special tokens" in str(caught.value)
    assert "vocabulary (" not in str(caught.value)
    assert train(run.config(tmp_path / "run", tokenizer=other, ignore_tokenizer_mismatch=True, steps=1)).steps == 1


def test_models_that_mix_packed_documents():
    require_separate_documents(transformers.LlamaForCausalLM(small_llama()))
    mamba = transformers.MambaConfig(vocab_size=320, hidden_size=32, state_size=4, num_hidden_layers=1)
    with pytest.raises(InvalidArgumentError, match="MambaForCausalLM does not keep packed documents apart"):
        require_separate_documents(transformers.MambaForCausalLM(mamba))


def test_heads_that_are_more_than_a_matrix():
    capped = transformers.Gemma2Config(
        vocab_size=320, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, head_dim=16,
        num_key_value_heads=2, final_logit_softcapping=0.05,
    )  # fmt: skip
    model = transformers.Gemma2ForCausalLM(capped)
    with pytest.raises(InvalidArgumentError, match="cannot be fused"):
        LossStep(model, make_loss("slim"), vocab_size=300, fused=True)
    assert not LossStep(model, make_loss("slim"), vocab_size=300).fused
    assert LossStep(transformers.LlamaForCausalLM(small_llama()), make_loss("slim"), vocab_size=300).fused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"student": "a"}, "either a student or a student_config"),
        ({"student_config": None}, "either a student or a student_config"),
        ({"epochs": 2.0}, "either steps or epochs"),
        ({"steps": None}, "either steps or epochs"),
        ({"steps": 0}, "steps is a whole number from 1 on, found 0"),
        ({"keep_checkpoints": 1}, "keep_checkpoints is a whole number from 2 on"),
        ({"lr": float("nan")}, "lr is a finite number"),
        ({"steps": None, "epochs": 0.0}, "epochs is positive"),
        ({"device": "tpu"}, "device is 'auto' or 'cpu'"),
        ({"decode": "gpu"}, "decode is 'auto', 'host' or 'device'"),
    ],
    ids=str,
)
def test_settings(changes, message):
    with pytest.raises(InvalidArgumentError) as caught:
        TrainConfig(**{"store": "s", "out": "o", "student_config": "c", "steps": 1} | changes)
    assert message in str(caught.value)


def test_the_model_can_still_be_called_as_it_was():
    model = transformers.LlamaForCausalLM(small_llama()).eval()
    ids = torch.arange(5)[None]
    before = model(input_ids=ids).logits
    LossStep(model, make_loss("slim"), vocab_size=300)
    assert torch.equal(model(input_ids=ids).logits, before)
