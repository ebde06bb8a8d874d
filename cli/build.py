"""``logitstore build``."""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from .codec_options import codec_options, codec_record, loss_text
from .generation import generation_config, generation_options
from .sizes import SIZE

if TYPE_CHECKING:
    from logitstore.build import BuildConfig, BuildSummary

__all__ = ["command"]


@click.command(short_help="Run a teacher over a corpus and store its logits.")
@click.option(
    "--teacher", required=True, metavar="DIR_OR_ID", help="Model: a folder, or an id on the Hugging Face hub."
)
@click.option(
    "--data",
    multiple=True,
    metavar="PATH",
    help="Input: .txt, .jsonl, .jsonl.gz or .parquet "
    "files, folders, globs, URLs, or a Hugging Face dataset. May be given several times.",
)
@generation_options
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the store.")
@click.option("--top-k", type=click.IntRange(1), help="Keep the K most probable ids of each row.")
@click.option(
    "--top-fraction",
    type=float,
    metavar="F",
    help="Keep the most probable fraction F of the vocabulary; SLIM keeps 0.05.",
)
@click.option("--top-p", type=float, metavar="P", help="Keep the fewest ids that hold probability P; needs --max-k.")
@click.option("--max-k", type=click.IntRange(1), help="At most so many ids with --top-p.")
@click.option(
    "--sample", type=click.IntRange(1, 255), metavar="N", help="Keep N random draws with counts; also beside --top-k."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of --sample and of --generate.")
@click.option(
    "--values",
    type=click.Choice(["logprob", "logit"]),
    default="logprob",
    show_default=True,
    help="Store log-probabilities or raw logits, as float16.",
)
@click.option(
    "--rows",
    type=click.Choice(["all", "masked"]),
    default="all",
    show_default=True,
    help="'masked' keeps entries only where the next token is a training target (the assistant's).",
)
@click.option(
    "--temperature",
    type=float,
    multiple=True,
    metavar="T",
    help="Also keep the log-sum-exp at temperature T, of rows (of what is written: --sampling-temperature). "
    "May be repeated.",
)
@click.option(
    "--text-field", help="Field with a record's text. Default: messages, else prompt and completion, else text."
)
@click.option("--messages-field", help="Field with a chat: a list of {role, content}.")
@click.option("--prompt-field", help="Field with a prompt; with --completion-field.")
@click.option("--completion-field", help="Field with the completion; its tokens are the training targets.")
@click.option("--key-field", help="Field that names a document.")
@click.option(
    "--metadata-field",
    "metadata_fields",
    multiple=True,
    help="Field kept with each document; '*' keeps all. May be repeated.",
)
@click.option("--doc-separator", help="Text between the documents of a .txt file. Default: a file is one document.")
@click.option("--split", default="train", show_default=True, help="Split of a Hugging Face dataset.")
@click.option("--limit", type=click.IntRange(1), help="Read only the first so many records.")
@click.option(
    "--seq-len",
    type=click.IntRange(1),
    help="Cut longer documents into windows of so many tokens; with --generate, tokens of prompt and text together at "
    "most. Default: the teacher's context or --tokens-per-batch, whichever is less.",
)
@click.option(
    "--special-tokens/--no-special-tokens",
    default=True,
    show_default=True,
    help="Add the tokenizer's special tokens to plain text.",
)
@click.option("--append-eos", is_flag=True, help="End text with the tokenizer's EOS token.")
@click.option(
    "--chat-template",
    type=click.Choice(["auto", "plain"]),
    default="auto",
    show_default=True,
    help="The tokenizer's template where it has one, or a plain one.",
)
@click.option("--revision", help="Branch, tag or commit of the teacher on the hub.")
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    default="auto",
    show_default=True,
    help="Type the teacher computes in.",
)
@click.option("--device", default="auto", show_default=True, help="Torch device; 'auto' is CUDA where there is one.")
@click.option("--device-map", help="Spread the teacher over devices, as transformers understands it; needs accelerate.")
@click.option("--attn-implementation", help="sdpa, eager, flash_attention_2, …")
@click.option("--trust-remote-code", is_flag=True, help="Run Python code that comes with the teacher.")
@click.option(
    "--tokens-per-batch",
    type=click.IntRange(1),
    default=8192,
    show_default=True,
    help="Tokens of a forward pass, padding included; with --generate, tokens in the cache of a batch at most.",
)
@click.option(
    "--rows-per-chunk",
    type=click.IntRange(1),
    default=1024,
    show_default=True,
    help="Rows whose logits exist at the same time.",
)
@click.option(
    "--container",
    type=click.Choice(["zarr", "webdataset"]),
    default="zarr",
    show_default=True,
    help="Zarr arrays for random access, or tars of whole documents for WebDataset.",
)
@click.option(
    "--shard-size",
    "shard_bytes",
    type=SIZE,
    default="256MB",
    show_default=True,
    help="With webdataset: fill tars up to this size.",
)
@click.option(
    "--rows-per-shard",
    type=click.IntRange(1),
    help="With zarr: rows of a shard, a power of two. Default: shards of about 64 MiB.",
)
@codec_options(default="exact")
@click.option("--workers", type=click.IntRange(1), default=2, show_default=True, help="Threads that encode.")
@click.option(
    "--encode",
    type=click.Choice(["host", "device"]),
    default="host",
    show_default=True,
    help="Where chunks are encoded: by those threads, or beside the teacher (experimental; with --codec exact alone).",
)
@click.option("--resume", is_flag=True, help="Go on with an unfinished store.")
@click.option("--overwrite", is_flag=True, help="Replace a store at --out.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def command(
    out: Path,
    *,
    workers: int,
    encode: Literal["host", "device"],
    resume: bool,
    overwrite: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Run a teacher over a corpus and store the logits it keeps of every token.

    \b
    logitstore build --teacher DIR --data corpus.jsonl --top-k 64 --out teacher.zarr
    logitstore build --teacher ID --data 'chats/*.jsonl' --top-fraction 0.05 --rows masked --out teacher.zarr
    logitstore build --teacher DIR --data corpus.jsonl --top-k 64 --container webdataset --out teacher.wds
    logitstore build --teacher DIR --data corpus.jsonl --top-k 128 --codec compact --max-kl 3e-4 --out small.zarr
    logitstore build --teacher DIR --generate --prompts prompts.jsonl --top-k 64 --out written.zarr

    Ctrl-C, or a crash, loses at most the shard in flight: run the same command with --resume.
    """  # noqa: D301
    from logitstore.build import build

    from .progress import build_progress

    config = _config(options)
    try:
        with build_progress() as report:
            summary = build(
                config, out, resume=resume, overwrite=overwrite, workers=workers, encode=encode,
                command=shlex.join(["logitstore", *sys.argv[1:]]), on_progress=report,
            )  # fmt: skip
    except KeyboardInterrupt:
        from logitstore.container.progress import Progress

        rows = Progress.read(out).rows if out.is_dir() else 0
        click.echo(f"\nInterrupted. {rows:,} rows are committed; go on with the same command and --resume.", err=True)
        raise
    click.echo(json.dumps(_as_json(summary), indent=1)) if as_json else _render(summary, out)


def _config(options: dict[str, Any]) -> BuildConfig:
    from logitstore.build import BuildConfig
    from logitstore.corpus import CorpusConfig
    from logitstore.select import Selection
    from logitstore.teacher import TeacherConfig

    teacher = TeacherConfig(
        options["teacher"],
        **{
            name: options[name]
            for name in ("revision", "dtype", "device", "device_map", "attn_implementation", "trust_remote_code")
        },
    )
    generation = generation_config(options)
    corpus_names = (
        "text_field", "messages_field", "prompt_field", "completion_field", "key_field", "doc_separator",
        "split", "seq_len", "append_eos", "chat_template", "limit",
    )  # fmt: skip
    corpus = CorpusConfig(
        data=options["data"] or options["prompts"],
        prompts=generation is not None,
        **{name: options[name] for name in corpus_names},
        metadata_fields=options["metadata_fields"] or None,
        add_special_tokens=options["special_tokens"],
    )
    kept = {name: options[name] for name in ("top_k", "top_fraction", "top_p", "max_k")}
    if options["sample"] is None and not any(value is not None for value in kept.values()):
        raise click.UsageError("say what to keep: --top-k, --top-fraction, --top-p with --max-k, or --sample")
    build_names = (
        "values", "rows", "tokens_per_batch", "rows_per_chunk", "rows_per_shard", "container", "shard_bytes",
    )  # fmt: skip
    return BuildConfig(
        teacher,
        corpus,
        Selection(**kept, samples=options["sample"], seed=options["seed"]),
        temperatures=options["temperature"],
        codec=codec_record(options),
        generation=generation,
        **{name: options[name] for name in build_names},
    )


def _bits_by_field(summary: BuildSummary) -> dict[str, float]:
    entries = max(1, summary.manifest.entries)
    return {name: 8 * size / entries for name, size in _bytes_by_field(summary).items()}


def _bytes_by_field(summary: BuildSummary) -> dict[str, int]:
    files = summary.manifest.codec.files.values()
    codebooks = {"codebooks": sum(file.bytes for file in files)} if files else {}
    return {**summary.manifest.bytes_by_field, **codebooks}


def _as_json(summary: BuildSummary) -> dict[str, Any]:
    manifest = summary.manifest
    return {
        "rows": manifest.rows,
        "documents": manifest.documents,
        "entries": manifest.entries,
        "bytes": sum(_bytes_by_field(summary).values()),
        "bits_per_entry_by_field": _bits_by_field(summary),
        "codec": manifest.codec.to_json(),
        "new_rows": summary.new_rows,
        "kept_mass": _finite(summary.kept_mass),
        "perplexity": _finite(summary.perplexity),
        "seconds": summary.seconds,
        "stage_seconds": summary.stage_seconds,
        "stage_shares": summary.stage_shares,
        "teacher_waited_seconds": summary.teacher_waited,
        "empty_documents": summary.counters.empty_documents,
        "files_ignored": summary.counters.files_ignored,
    }


def _finite(number: float) -> float | None:
    return number if abs(number) < float("inf") else None


def _render(summary: BuildSummary, out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    manifest = summary.manifest
    size = sum(_bytes_by_field(summary).values())
    bits = _bits_by_field(summary)
    table = Table(title=f"{out}", title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))
    again = "" if summary.new_rows == manifest.rows else f" ({summary.new_rows:,} computed by this run)"
    lines = [
        ("documents", f"{manifest.documents:,}"),
        ("rows", f"{manifest.rows:,}{again}"),
        ("entries", f"{manifest.entries:,}, up to {manifest.slots:,} a row"),
        (
            "size",
            f"{size / 1e6:,.1f} MB: {size / max(1, manifest.rows):,.1f} bytes a row, "
            f"{sum(bits.values()):.2f} bits an entry",
        ),
        ("", ", ".join(f"{name} {value:.2f}" for name, value in sorted(bits.items(), key=lambda item: -item[1]))),
    ]
    if manifest.codec.name != "exact":
        lines.append(("values", loss_text(manifest.codec.to_json())))
    if summary.new_rows:
        lines += [
            ("kept mass", f"{summary.kept_mass:.4f}"),
            ("teacher perplexity", f"{summary.perplexity:.2f}"),
        ]
    shares = summary.stage_shares
    stages = ", ".join(f"{name} {s:.1f} s ({shares[name]:.0%})" for name, s in summary.stage_seconds.items())
    lines += [
        ("time", f"{summary.seconds:.1f} s: {stages}"),
        ("teacher waited", f"{summary.teacher_waited:.1f} s ({summary.teacher_waited / summary.seconds:.0%})"),
    ]
    if skipped := summary.counters.empty_documents:
        lines.append(("skipped", f"{skipped:,} records without text"))
    if ignored := summary.counters.files_ignored:
        lines.append(("ignored", f"{ignored:,} files of other kinds"))
    for line in lines:
        table.add_row(*line)
    Console(width=max(100, int(os.environ.get("COLUMNS", "0") or 0))).print(table)
