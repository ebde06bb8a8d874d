"""What a run learns, logs and leaves behind."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch
import transformers

import logitstore
from logitstore.loss import TeacherRows, make_loss
from logitstore.stream import BatchStream, Collate
from logitstore.train import LossStep, train
from logitstore.train.meter import Meter
from tests.conftest import StoreMaker
from tests.train.conftest import small_llama


@pytest.mark.parametrize(
    ("loss", "options", "parts"),
    [
        ("slim", {}, {"cross_entropy": 1, "distillation": 1}),
        ("forward_kl", {"outside": "residual", "ce_weight": 0.25}, {"cross_entropy": 0.25, "forward_kl": 0.75}),
        ("cross_entropy", {}, {}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_it_learns_and_says_how(loss, options, parts, run, tmp_path):
    config = run.config(
        tmp_path / "run", loss=loss, loss_options=options, steps=9, log_every=3, gradient_accumulation=2, pack=False
    )
    lines = [line for line in train(config).log if "loss" in line]
    assert [line["step"] for line in lines] == [3, 6, 9]
    assert lines[-1]["loss"] < lines[0]["loss"]
    for line in lines:
        if parts:
            assert sum(factor * line[name] for name, factor in parts.items()) == pytest.approx(line["loss"], rel=1e-5)
            assert 0 < line["kept_mass"] < 1
        if loss == "slim":
            assert 0 < line["weight"] < 1
        assert 0 < line["data_wait_share"] < 1
        assert line["data_wait_seconds"] > 0
        assert line["tokens_per_second"] > 0
        assert math.isfinite(line["grad_norm"])


@pytest.fixture(scope="module")
def trained(run, tmp_path_factory):
    torch.set_num_threads(1)
    config = run.config(
        tmp_path_factory.mktemp("trained") / "run", steps=None, epochs=1.5, eval_store=str(run.stores.tars),
        eval_every=2, bf16=True, gradient_checkpointing=True, batch_size=4,
    )  # fmt: skip
    return config, train(config)


def test_what_it_leaves_behind(trained, stores):
    config, summary = trained
    model = transformers.AutoModelForCausalLM.from_pretrained(summary.out)
    assert model.config.use_cache
    for name, tensor in summary.trainer.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)
    assert model.dtype == torch.float32
    tokenizer = transformers.AutoTokenizer.from_pretrained(summary.out)
    assert (
        tokenizer("the old fox").input_ids
        == transformers.AutoTokenizer.from_pretrained(stores.teacher)("the old fox").input_ids
    )
    record = json.loads((summary.out / "distillation.json").read_text())
    with logitstore.open(stores.zarr) as store:
        assert record["store"]["store_id"] == store.manifest.store_id
    assert record["complete"]
    assert record["loss"] == {"name": "slim", "options": {}, "is": "Slim(weight='text', support='renorm')"}
    assert record["settings"] == json.loads(json.dumps(dataclasses.asdict(config)))
    assert record["steps"] == summary.steps
    assert record["metrics"] == summary.metrics


def test_epochs(trained, stores):
    config, summary = trained
    stream = BatchStream(stores.zarr, 4, collate=Collate(config.seq_len, pack=True))
    assert summary.steps == math.ceil(1.5 * len(stream))
    assert [line["epoch"] for line in summary.log if "loss" in line] == [0] * len(stream) + [1] * (
        summary.steps - len(stream)
    )


def test_evaluations(trained):
    _, summary = trained
    lines = [line for line in summary.log if "eval_store_kl" in line]
    assert [line["step"] for line in lines] == [*range(2, summary.steps, 2), summary.steps]
    assert all(lines[-1][name] == value for name, value in summary.metrics.items())
    assert 1 < summary.metrics["eval_store_perplexity"] < 300
    assert summary.metrics["eval_store_perplexity"] < lines[0]["eval_store_perplexity"]


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_documents_are_alone(fused, attention, stores):
    torch.manual_seed(1)
    model = transformers.LlamaForCausalLM._from_config(
        small_llama(initializer_range=0.3), attn_implementation=attention
    )
    step = LossStep(model, make_loss("slim"), vocab_size=300, fused=fused)
    with logitstore.open(stores.zarr, order="stored") as store:
        stream = BatchStream(store, 3, collate=Collate(128, pack=True, values="logprob", fields=step.stored_fields))
        batch = next(iter(stream))
        summed, parts = model(distill=batch)
        numbers = sorted(set(batch["document_ids"].flatten().tolist()) - {-1})
        assert len(numbers) > 3
        expected, count = 0.0, 0
        for number in numbers:
            document = store[number]
            alone = Collate(values="logprob")([document])
            rows = TeacherRows(**{name: alone[name] for name in (*step.loss.needs, "mask")})
            expected += step.loss(model(input_ids=alone["tokens"]).logits[..., :300], rows, reduction="sum").item()
            count += int(step.loss.counted(rows).sum())
    assert step.counted(batch) == count
    assert summed.item() == pytest.approx(expected, rel=1e-5)
    assert ((parts["cross_entropy"] + parts["distillation"]) * count).item() == pytest.approx(expected, rel=1e-5)


def test_the_temperature_is_found_among_those_stored(tmp_path):
    path = StoreMaker().make(tmp_path / "s", [9, 12], temperatures=(4.0, 2.0), vocab_size=97)
    model = transformers.LlamaForCausalLM(small_llama(vocab_size=97))
    loss = make_loss("forward_kl", temperature=2.0, ce_weight=0.5)
    step = LossStep(model, loss, vocab_size=97, temperatures=(4.0, 2.0))
    stream = BatchStream(path, 2, collate=Collate(values="logprob", fields=step.stored_fields), shuffle=False)
    batch = next(iter(stream))
    assert torch.equal(step.rows(batch).lse_T.nan_to_num(), batch["lse_T"][..., 1].nan_to_num())
    assert model(distill=batch)[0].isfinite()


def test_meter():
    now = iter([0.0, 2.0, 10.0, 100.0, 101.0, 110.0])
    meter = Meter(lambda: next(now))
    with meter.step_begins():
        pass
    meter.add_means({"loss": torch.tensor(2.0)}, torch.tensor(0.25))
    meter.add_means({"loss": torch.tensor(4.0)}, torch.tensor(0.75))
    meter.step_ends()
    with meter.step_begins():  # saving between the steps does not count
        pass
    meter.add_means({"loss": torch.tensor(5.5), "once": torch.tensor(3.0)}, torch.tensor(1.0))
    meter.add_tokens(400)
    meter.step_ends()
    # A second rank of the same speed, whose batches were blank.
    found = meter.take(lambda sums: [sums, sums._replace(sums={}, weights={}, tokens=0)])
    assert found == pytest.approx(
        {"loss": (3.5 + 5.5) / 2, "once": 3.0, "tokens_per_second": 20.0, "data_wait_seconds": 1.5,
         "data_wait_share": 0.15}
    )  # fmt: skip
    assert meter.take(lambda sums: [sums]) == {}
