"""The scripts in examples/ run, learn, and resume exactly."""

from __future__ import annotations

import gc
import importlib
import math
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from examples import accelerate_loop, datasets_iterable, hf_trainer, pytorch_loop, webdataset_pipeline
from tests.tiny_stores import make_stores

FOLDER = Path(importlib.import_module("step").__file__).parent
SCRIPTS = sorted(path.name for path in FOLDER.glob("*.py") if path.name != "step.py")
FOUR_BATCHES = ("--batch-size", "4", "--seq-len", "64", "--lr", "1e-2")  # and a short one are an epoch

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
    # WebDataset leaves closing its files to the garbage collector.
    pytest.mark.filterwarnings("ignore:unclosed file .*tar:ResourceWarning"),
]


@pytest.fixture(autouse=True)
def _one_thread_of_the_cpu(tmp_path, monkeypatch):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.chdir(tmp_path)
    yield
    torch.set_num_threads(threads)
    gc.collect()


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    return make_stores(tmp_path_factory.mktemp("examples"))


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    """A random Llama whose vocabulary is padded beyond the teacher's."""
    folder = tmp_path_factory.mktemp("student")
    torch.manual_seed(1)
    transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=320, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=256, bos_token_id=0, eos_token_id=0,
        )
    ).save_pretrained(folder)  # fmt: skip
    return str(folder)


@pytest.mark.parametrize(
    "example",
    [pytorch_loop, hf_trainer, accelerate_loop, webdataset_pipeline, datasets_iterable],
    ids=lambda example: example.__name__.rpartition(".")[2],
)
def test_it_learns(example, stores, student):
    store = stores.tars if example is webdataset_pipeline else stores.zarr
    losses = example.main([str(store), student, "--steps", "8", *FOUR_BATCHES])
    assert len(losses) == 8
    assert all(math.isfinite(loss) for loss in losses)
    assert sum(losses[-2:]) < sum(losses[:2])


@pytest.mark.parametrize("example", [webdataset_pipeline, datasets_iterable])
def test_with_workers(example, stores, student):
    store = stores.tars if example is webdataset_pipeline else stores.zarr
    assert len(example.main([str(store), student, "--steps", "3", "--workers", "1", *FOUR_BATCHES])) == 3


@pytest.mark.parametrize(("stop", "workers"), [(2, 0), (7, 2)])
def test_the_plain_loop_resumes_exactly(stop, workers, stores, student):
    def run(name, steps, workers=0):
        options = ("--steps", str(steps), "--workers", str(workers), "--checkpoint", name)
        return pytorch_loop.main([str(stores.zarr), student, *options, *FOUR_BATCHES])

    whole = run("whole.pt", 9)
    first = run("parts.pt", stop, workers)
    second = run("parts.pt", 9, workers)
    assert run("parts.pt", 9) == []
    assert first + second == whole
    expected, found = torch.load("whole.pt"), torch.load("parts.pt")
    assert found["stream"] == expected["stream"]
    assert found["stream"]["epoch"] >= 1
    assert_equal(found["student"], expected["student"])
    start = transformers.AutoModelForCausalLM.from_pretrained(student).state_dict()
    assert not torch.equal(start["lm_head.weight"], found["student"]["lm_head.weight"])


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_trainer_resumes_exactly(accumulate, stores, student):
    def run(name):
        options = ("--steps", "7", "--save-every", "3", "--accumulate", str(accumulate), "--output", name)
        return hf_trainer.main([str(stores.zarr), student, *options, *FOUR_BATCHES])

    whole = run("whole")
    shutil.copytree("whole/checkpoint-3", "parts/checkpoint-3")
    assert run("parts") == whole
    assert run("parts") == []
    last = [Path(name, "checkpoint-7") for name in ("whole", "parts")]
    assert (last[0] / "stream.json").read_text() == (last[1] / "stream.json").read_text()
    assert_equal(*(load_file(folder / "model.safetensors") for folder in last))


@pytest.mark.parametrize("example", [hf_trainer, accelerate_loop])
def test_accumulated_batches_weigh_what_one_batch_would(example, stores, student, tmp_path):
    def run(accumulate, batch_size):
        options = ("--steps", "2", "--accumulate", str(accumulate), "--batch-size", str(batch_size))
        output = ("--output", str(tmp_path / str(accumulate))) if example is hf_trainer else ()
        return example.main([str(stores.zarr), student, *options, "--seq-len", "160", "--lr", "1e-2", *output])

    # Their numbers of targets differ, so that a mean of their means would be another loss. An epoch has 5 sequences.
    assert run(2, 1) == pytest.approx(run(1, 2), abs=2e-4)


def test_the_same_batch_gives_the_same_loss(stores, student):
    """The Trainer counts targets by itself, by rules of its own."""
    options = [str(stores.zarr), student, "--steps", "1", *FOUR_BATCHES]
    plain = pytorch_loop.main(options)
    assert accelerate_loop.main([*options, "--accumulate", "1"]) == pytest.approx(plain, abs=1e-5)
    assert hf_trainer.main(options) == pytest.approx(plain, abs=1e-4)


def test_a_fresh_student(stores, student):
    options = ("--steps", "1", "--lr", "0", *FOUR_BATCHES)
    same = [pytorch_loop.main([str(stores.zarr), student, *options, "--checkpoint", name]) for name in ("a", "b")]
    fresh = pytorch_loop.main([str(stores.zarr), student, *options, "--checkpoint", "c", "--fresh"])
    assert same[0] == same[1] != fresh


@pytest.mark.parametrize("script", SCRIPTS)
def test_help(script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(FOLDER / script), run_name="__main__")
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert f"python examples/{script} teacher." in shown
    assert "--steps" in shown


def test_as_a_script():
    done = subprocess.run(
        [sys.executable, str(FOLDER / "pytorch_loop.py"), "--help"], capture_output=True, text=True, check=True
    )
    assert "--checkpoint" in done.stdout


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
