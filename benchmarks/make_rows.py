"""Build the stores that the other benchmarks read: one teacher, one text, kept in different ways.

    python benchmarks/make_rows.py --teacher TEACHER --text TEXT --out STORES

A store that is there and complete is left as it is.
"""

from __future__ import annotations

import json
from pathlib import Path

import click
from transformers import AutoTokenizer

import logitstore
from logitstore.build import BuildConfig, build
from logitstore.corpus import CorpusConfig
from logitstore.select import Selection
from logitstore.teacher import TeacherConfig

SELECTIONS = {"k64": Selection(top_k=64), "k128": Selection(top_k=128), "fraction5": Selection(top_fraction=0.05)}
VARIANTS = (("logprob", "float32"), ("logit", "float32"), ("logit", "bfloat16"))
"""What is kept of an entry, and the type the teacher is run in."""


def store_name(selection: str, values: str, dtype: str) -> str:
    return f"{selection}-{values}-{dtype}.zarr"


def first_tokens(teacher: str, text: Path, tokens: int, out: Path) -> Path:
    """Write the beginning of ``text`` that has ``tokens`` tokens, as a corpus of one document."""
    corpus = out / "corpus.jsonl"
    content = text.read_text(encoding="utf-8")[: 16 * tokens]
    offsets = AutoTokenizer.from_pretrained(teacher)(
        content, return_offsets_mapping=True, add_special_tokens=False, verbose=False
    )["offset_mapping"]
    if len(offsets) < tokens:
        raise click.BadParameter(f"{text} has {len(offsets)} tokens, asked for {tokens}", param_hint="--text")
    corpus.write_text(json.dumps({"id": "text", "text": content[: offsets[tokens - 1][1]]}) + "\n", encoding="utf-8")
    return corpus


def is_complete(path: Path) -> bool:
    try:
        logitstore.open(path).close()
    except logitstore.TruncatedDataError:
        return False
    return True


@click.command(help=__doc__.splitlines()[0])
@click.option("--teacher", required=True, help="Folder or Hugging Face id of a causal language model.")
@click.option("--text", required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--tokens", default=65536, show_default=True, help="Rows of every store.")
@click.option("--seq-len", default=512, show_default=True, help="Tokens of a document.")
@click.option(
    "--selection",
    "selections",
    multiple=True,
    type=click.Choice(list(SELECTIONS)),
    default=("k128", "fraction5"),
    show_default=True,
)
@click.option(
    "--values",
    type=click.Choice(["logprob", "all"]),
    default="all",
    show_default=True,
    help="Only log-probabilities of a float32 teacher, or raw logits as well.",
)
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder of the stores.")
def main(
    teacher: str, text: Path, tokens: int, seq_len: int, selections: tuple[str, ...], values: str, out: Path
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    corpus = first_tokens(teacher, text, tokens, out)
    for name in selections:
        for kind, dtype in VARIANTS[:1] if values == "logprob" else VARIANTS:
            path = out / store_name(name, kind, dtype)
            if is_complete(path):
                print(f"{path.name}: there already")
                continue
            config = BuildConfig(
                TeacherConfig(teacher, dtype=dtype),
                CorpusConfig(data=(str(corpus),), key_field="id", seq_len=seq_len),
                SELECTIONS[name],
                values=kind,
            )
            summary = build(config, path, resume=True)
            print(f"{path.name}: {summary.manifest.rows} rows in {summary.seconds:.0f} s")


if __name__ == "__main__":
    main()
