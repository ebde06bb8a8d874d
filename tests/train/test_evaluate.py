"""Metrics, against the same in NumPy and float64, a document at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers

import logitstore
from logitstore.stream import BatchStream, Collate
from logitstore.train.evaluate import Evaluation, evaluate
from logitstore.train.text import TextBatches
from tests.train.conftest import small_llama

SEQ_LEN = 50


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(3)
    return transformers.LlamaForCausalLM(small_llama(initializer_range=0.3))


def log_q(model, tokens):
    """The student's log-probabilities after each token, over the ids there are."""
    model.eval()
    with torch.no_grad():
        logits = model(input_ids=torch.as_tensor(tokens.astype(np.int64))[None]).logits[0, :, :300].double().numpy()
    return (
        logits
        - np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1, keepdims=True))
        - logits.max(1, keepdims=True)
    )


@pytest.mark.parametrize("plain_head", [True, False])
def test_a_store(plain_head, model, stores):
    nll, teacher_nll, kl, agree = [], [], [], []
    with logitstore.open(stores.zarr, order="stored") as store:
        for document in store:
            for start in range(0, len(document), SEQ_LEN):
                rows = slice(start, start + SEQ_LEN)
                q = log_q(model, document.tokens[rows])
                for t, s in enumerate(q, start):
                    if not document.mask[t]:
                        continue
                    S, logs = document.ids[t].astype(int), document.logprobs[t].astype(np.float64)
                    p, outside = np.exp(logs), 1 - np.exp(logs).sum()
                    rest = np.log(np.exp(np.delete(s, S)).sum())
                    nll.append(-s[document.tokens[t + 1]])
                    teacher_nll.append(-document.label_logprob[t])
                    kl.append((p * (logs - s[S])).sum() + outside * (np.log(outside) - rest))
                    agree.append(s.argmax() == S[logs.argmax()])
        stream = BatchStream(store, 4, collate=Collate(SEQ_LEN, values="logprob"), shuffle=False)
        found = evaluate(
            model, Evaluation(stream), vocab_size=300, plain_head=plain_head, device=torch.device("cpu"),
            reduce=lambda tensor: tensor,
        )  # fmt: skip
    assert found["rows"] == len(nll) > 300
    expected = {
        "nll": np.mean(nll), "perplexity": np.exp(np.mean(nll)), "teacher_perplexity": np.exp(np.mean(teacher_nll)),
        "kl": np.mean(kl), "top1_agreement": np.mean(agree),
    }  # fmt: skip
    assert found == pytest.approx(expected | {"rows": len(nll)}, rel=1e-5)
    assert found["kl"] > 0.1


def test_text(model, stores, tmp_path):
    texts = [text for text, prompt in zip(stores.texts, stores.prompts, strict=True) if not prompt]
    (tmp_path / "held_out.txt").write_text("\n---\n".join(texts))
    tokenizer = transformers.AutoTokenizer.from_pretrained(stores.teacher)
    tokens = np.array(tokenizer("\n---\n".join(texts))["input_ids"])
    nll = []
    for start in range(0, len(tokens), SEQ_LEN):
        piece = tokens[start : start + SEQ_LEN]
        q = log_q(model, piece)
        nll += [-q[t, piece[t + 1]] for t in range(len(piece) - 1)]
    sums = []
    model.train()
    for rank in range(2):
        text = TextBatches(
            str(tmp_path / "held_out.txt"), tokenizer, seq_len=SEQ_LEN, batch_size=3, num_replicas=2, rank=rank
        )
        for _ in range(2):  # it can be iterated again
            found = evaluate(
                model, Evaluation(text), vocab_size=300, plain_head=True, device=torch.device("cpu"),
                reduce=lambda tensor: tensor,
            )  # fmt: skip
        sums.append((found["rows"], found["nll"] * found["rows"]))
    rows, total = np.sum(sums, axis=0)
    assert rows == len(nll)
    assert total == pytest.approx(np.sum(nll), rel=1e-5)
    assert set(found) == {"rows", "nll", "perplexity"}
    assert model.training
