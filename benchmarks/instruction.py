"""Instruction following after distillation: labels alone, stored rows, a live teacher; scored by Rouge-L.

    python benchmarks/instruction.py --teacher TEACHER --student STUDENT --train TRAIN --heldout HELDOUT --out OUT

The teacher is fine-tuned on the conversations first, as is usual, and its rows are stored. Then the student is trained
on the same conversations with each method and seed: the same batches, steps and learning rates. Held-out instructions
are answered greedily, and scored by Rouge-L against their reference answers; beside it stands the perplexity of the
reference answers, which is less noisy. Needs `pip install 'logitstore[benchmarks]'`. Finished runs are kept in
OUT/runs.json.

TRAIN has conversations, `{"messages": [...]}` a line; HELDOUT the same, or Self-Instruct's records.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from pathlib import Path
from typing import Any

import click
import torch
from harness import show
from rouge_score.rouge_scorer import RougeScorer
from runs import Runs, make_store
from student import Settings, held_out, load_teacher, stored_objective, train
from transformers import AutoTokenizer

import logitstore
from logitstore.corpus import CorpusConfig, iter_documents
from logitstore.select import Selection

METHODS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "SFT": ("cross_entropy", {}, False),
    "SLIM, 5 %": ("slim", {}, False),
    "forward KL, 5 %, tail": ("forward_kl", {"outside": "tail"}, False),
    "full KD, live teacher": ("full_kl", {}, True),
}


def as_messages(heldout: Path, out: Path, limit: int) -> Path:
    """Write held-out instructions as conversations of one question and its reference answer."""
    lines = []
    for line in heldout.read_text(encoding="utf-8").splitlines()[:limit]:
        record = json.loads(line)
        if "messages" not in record:
            first = record["instances"][0]
            question = "\n\n".join(text for text in (record["instruction"], first["input"]) if text)
            record = {"messages": [{"role": "user", "content": question},
                                   {"role": "assistant", "content": first["output"]}]}  # fmt: skip
        lines.append(json.dumps({"messages": record["messages"]}))
    out.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return out


@torch.no_grad()
def answers(model: Any, tokenizer: Any, instructions: Path, most: int, batch_size: int = 32) -> list[str]:
    """Answer every instruction greedily."""
    corpus = CorpusConfig(data=(str(instructions),), prompts=True)
    prompts = [item.document.tokens.tolist() for item in iter_documents(corpus, tokenizer)]
    room = model.config.max_position_embeddings - most
    found: dict[int, str] = {}
    by_length = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
    model.eval()
    for start in range(0, len(by_length), batch_size):
        numbers = by_length[start : start + batch_size]
        rows = [prompts[number][-room:] for number in numbers]
        width = max(map(len, rows))
        tokens = torch.tensor([[tokenizer.eos_token_id] * (width - len(row)) + row for row in rows])
        attention = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        written = model.generate(
            input_ids=tokens, attention_mask=attention, max_new_tokens=most, do_sample=False,
            pad_token_id=tokenizer.eos_token_id,
        )[:, width:]  # fmt: skip
        for number, text in zip(numbers, tokenizer.batch_decode(written, skip_special_tokens=True), strict=True):
            found[number] = text.strip()
    return [found[number] for number in range(len(prompts))]


def rouge_l(found: list[str], instructions: Path) -> float:
    """Return the mean F-measure of Rouge-L, in per cent."""
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    references = [json.loads(line)["messages"][-1]["content"] for line in instructions.read_text().splitlines()]
    scores = [
        scorer.score(reference, text)["rougeL"].fmeasure for reference, text in zip(references, found, strict=True)
    ]
    return 100 * statistics.mean(scores)


class Scored:
    """Measures models on held-out instructions."""

    def __init__(self, instructions: Path, store: Path, tokenizer: Any, settings: Settings, most: int) -> None:
        self._instructions, self._store, self._tokenizer = instructions, store, tokenizer
        self._settings, self._most = settings, most

    def __call__(self, model: Any, teacher: Any) -> dict[str, float]:
        """Return perplexity of the reference answers, divergence from the teacher, and Rouge-L."""
        written = answers(model, self._tokenizer, self._instructions, self._most)
        return held_out(model, self._store, self._settings, teacher) | {"rouge_l": rouge_l(written, self._instructions)}


@click.command(help=__doc__.splitlines()[0])
@click.option("--teacher", required=True, help="Folder or Hugging Face id of a causal language model.")
@click.option("--student", required=True, help="The same, of the same tokenizer.")
@click.option("--train", "conversations", required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--heldout", required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--documents", default=400, show_default=True, help="Conversations to learn from.")
@click.option("--instructions", default=252, show_default=True, help="Held-out instructions.")
@click.option("--new-tokens", default=48, show_default=True, help="Most tokens of an answer.")
@click.option("--epochs", default=2.0, show_default=True, help="Of teacher and student.")
@click.option("--seeds", default=3, show_default=True)
@click.option("--seq-len", default=256, show_default=True)
@click.option("--batch", default=4, show_default=True)
@click.option("--lr", default=5e-4, show_default=True)
@click.option("--threads", default=1, show_default=True)
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path))
def main(
    teacher: str, student: str, conversations: Path, heldout: Path, documents: int, instructions: int, new_tokens: int,
    epochs: float, seeds: int, seq_len: int, batch: int, lr: float, threads: int, out: Path,
) -> None:  # fmt: skip
    torch.set_num_threads(threads)
    out.mkdir(parents=True, exist_ok=True)
    settings = Settings(0, 0, seq_len, batch, lr)  # its sizes are those of the student that is given
    runs = Runs(
        out / "runs.json",
        {
            "teacher": teacher, "student": student, "train": str(conversations), "heldout": str(heldout),
            "documents": documents, "instructions": instructions, "new_tokens": new_tokens, "epochs": epochs,
            **dataclasses.asdict(settings),
        },
    )  # fmt: skip
    corpus = {"seq_len": seq_len, "limit": documents}
    text = str(conversations)
    tokens_only = make_store(out / "tokens.zarr", teacher, text, Selection(top_k=1), **corpus)
    with logitstore.open(tokens_only) as opened:
        tokens = round(epochs * len(opened.rows))
    tuned = out / "teacher"
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    if not tuned.exists():
        model = load_teacher(teacher)
        train(model, tokens_only, *stored_objective("cross_entropy"), settings, tokens=tokens, seed=0)
        tokenizer.save_pretrained(out / "partial")
        model.save_pretrained(out / "partial")
        (out / "partial").rename(tuned)
    kept = make_store(out / "5percent.zarr", str(tuned), text, Selection(top_fraction=0.05), **corpus)
    questions = as_messages(heldout, out / "heldout.jsonl", instructions)
    measured_on = make_store(out / "heldout.zarr", teacher, str(questions), Selection(top_k=1), seq_len=seq_len)
    scored = Scored(questions, measured_on, tokenizer, settings, new_tokens)
    live = load_teacher(str(tuned))
    untrained = {"teacher, as it came": teacher, "teacher, fine-tuned": str(tuned), "student, as it came": student}
    for name, folder in untrained.items():
        if runs.get(name) is None:
            runs.add(name, found=scored(load_teacher(folder), live))
            print(f"{name}: {runs.get(name)}", flush=True)
    for seed in range(seeds):
        for method, (loss, options, runs_along) in METHODS.items():
            if runs.get(method, seed) is not None:
                continue
            model = load_teacher(student)
            store = tokens_only if loss in ("cross_entropy", "full_kl") else kept
            fields, objective = stored_objective(loss, **options)
            found = train(
                model,
                store,
                fields,
                objective,
                settings,
                tokens=tokens,
                seed=seed,
                teacher=live if runs_along else None,
            )
            runs.add(method, seed, found=found | scored(model, live))
            print(f"{method}, seed {seed}: {runs.get(method, seed)}", flush=True)
    show(f"{tokens:,} tokens of {documents} conversations", table_of(runs, list(untrained), seeds))


def table_of(runs: Runs, untrained: list[str], seeds: int) -> list[dict[str, Any]]:
    """Mean and standard deviation over seeds."""
    table = []
    for name in (*untrained, *METHODS):
        every = [runs.get(name)] if name in untrained else [runs.get(name, seed) for seed in range(seeds)]
        row: dict[str, Any] = {"model": name}
        for column, key in (("Rouge-L", "rouge_l"), ("perplexity of answers", "perplexity"), ("KL to teacher", "kl")):
            values = [run[key] for run in every if run]
            spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
            row[column] = f"{statistics.mean(values):.2f}{spread}"
        seconds = [1000 * run["seconds"] / run["tokens"] for run in every if run and "seconds" in run]
        row["s per 1,000 tokens"] = f"{statistics.median(seconds):.2f}" if seconds else ""
        table.append(row)
    return table


if __name__ == "__main__":
    main()
