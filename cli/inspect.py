"""``logitstore inspect``: what is in a store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from .codec_options import loss_text
from .render import bytes_text, describe, key_values, percent, print_json, stderr, stdout

if TYPE_CHECKING:
    from logitstore.audit.documents import DocumentView, RowView

__all__ = ["command"]


_Span = tuple[int | None, int | None]


def _parse_span(ctx: click.Context, param: click.Parameter, value: str | None) -> _Span | None:
    """Read a row, or a span of rows as in a slice."""
    if value is None:
        return None
    parts = value.split(":")
    try:
        if len(parts) == 1:
            return int(value), int(value) + 1 or None
        start, stop = (int(part) if part else None for part in parts)
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a row, nor a span like 10:20, :20 or 10:", ctx, param) from None
    return start, stop


@click.command("inspect", short_help="Say what is in a store; show tokens with their candidates.")
@click.argument("store", type=click.Path(exists=True, file_okay=False))
@click.option("--document", type=int, metavar="N", help="Show document N, token by token; negative: from the end.")
@click.option("--rows", callback=_parse_span, metavar="A:B", help="Rows to show, as in a slice. Default: the first 40.")
@click.option("--top", type=click.IntRange(1), default=5, show_default=True, help="Candidates to show per row.")
@click.option("--tokenizer", metavar="DIR_OR_ID", help="Tokenizer for the texts. Default: the teacher's, if at hand.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    store: str,
    document: int | None,
    rows: _Span | None,
    top: int,
    tokenizer: str | None,
    as_json: bool,
) -> None:
    """Say what is in STORE: totals, sizes, selection and teacher; or show one document with the teacher's candidates.

    Works for an unfinished store, too, and says how far its build has come.

    \b
    Examples:
      logitstore inspect teacher.zarr
      logitstore inspect teacher.zarr --document 3 --rows 10:20 --top 3
    """  # noqa: D301
    if document is None:
        if rows is not None or tokenizer is not None:
            raise click.UsageError("--rows and --tokenizer go with --document")
        from logitstore.audit.inspect import summarise

        summary = summarise(store)
        if as_json:
            print_json(summary)
        else:
            _print_summary(summary)
        return
    from logitstore.audit.documents import show_document

    span = rows or ((None, None) if as_json else (0, 40))
    view = show_document(store, document, rows=span, top=top, tokenizer=tokenizer)
    for note in view.notes:
        stderr().print(f"note: {note}", markup=False)
    if as_json:
        print_json(view.to_json())
    else:
        _print_document(view)


def _print_summary(summary: dict[str, Any]) -> None:
    from rich.table import Table

    console = stdout()
    identity = summary["teacher"].get("identity", {})
    teacher = [str(summary["teacher"].get("id", "unknown"))]
    teacher += [str(identity[name]) for name in ("architecture", "dtype") if name in identity]
    vocabulary = f"{summary['vocab_size']:,}"
    if summary["padded_vocab_size"] != summary["vocab_size"]:
        vocabulary += f" (the teacher's output is padded to {summary['padded_vocab_size']:,})"
    pairs = [
        ("format", f"{summary['format_version']}, codec {summary['codec']['name']} {summary['codec']['version']}"),
        ("container", summary["container"]),
        ("complete", "yes" if summary["complete"] else "NO: the build is not finished; go on with --resume"),
        ("documents", f"{summary['documents']:,}"),
        ("rows", f"{summary['rows']:,} in {summary['shards']:,} shards"),
        ("entries", f"{summary['entries']:,} (at most {summary['k_max']:,} a row), kept as {summary['values']}s"),
        ("values", loss_text(_lossy_codec(summary))),
        ("vocabulary", vocabulary),
        ("selection", describe(summary["selection"])),
        ("teacher", ", ".join(teacher)),
        ("tokenizer", str(summary["tokenizer"].get("class", "unknown"))),
    ]
    if "generation" in summary["build"]:
        pairs.append(("text", f"written by the teacher: {describe(summary['build']['generation'])}"))
    if summary["temperatures"]:
        pairs.insert(8, ("temperatures", ", ".join(map(str, summary["temperatures"]))))
    console.print(key_values(summary["path"], pairs))
    total = summary["bytes_total"]
    table = Table(
        "field", "size", "bytes a row", "bits an entry", "share", box=None, pad_edge=False, header_style="bold"
    )
    for column in table.columns[1:]:
        column.justify = "right"
    for name, size in [*summary["bytes_by_field"].items(), ("total", total)]:
        row = f"{size / summary['rows']:.2f}" if summary["rows"] else "–"
        entry = f"{8 * size / summary['entries']:.2f}" if summary["entries"] else "–"
        share = percent(size / total) if total else "–"
        table.add_row(name, bytes_text(size), row, entry, share, style="bold" if name == "total" else None)
    console.print()
    console.print(table)


def _lossy_codec(summary: dict[str, Any]) -> dict[str, Any]:
    """Return the codec that quantised the values, if one did: this store's, or one they have been in before."""
    own: dict[str, Any] = summary["codec"]
    before: dict[str, Any] = summary["build"].get("recoded_from", own)
    return own if own.get("max_kl") is not None or own.get("max_error") is not None else before


def _print_document(view: DocumentView) -> None:
    from rich.table import Table
    from rich.text import Text

    console = stdout()
    pairs = [
        ("key", view.key),
        ("rows", f"{view.length:,}, from row {view.first_row:,} of the store"),
    ]
    if view.parent is not None:
        pairs.append(("cut from", f"{view.parent[0]}, token {view.parent[1]:,}"))
    if view.metadata:
        pairs.append(("metadata", describe(view.metadata)))
    console.print(key_values(f"document {view.document}", pairs))
    table = Table("row", "token", "next", "rank", "p(next)", "kept", "candidates", box=None, header_style="bold")
    table.columns[0].justify = table.columns[3].justify = table.columns[4].justify = "right"
    for row in view.rows:
        candidates = Text()
        for candidate in row.candidates:
            style = "green" if candidate.id == row.label else ""
            candidates.append(_word(candidate.text, candidate.id), style)
            candidates.append(f" {candidate.probability:.3f}  ", "dim")
        table.add_row(
            str(row.row), Text(_word(row.text, row.token), "" if row.mask else "dim"), Text(_next(row)), _rank(row),
            "" if row.label_probability is None else f"{row.label_probability:.4f}", percent(row.kept_mass), candidates,
        )  # fmt: skip
    console.print()
    console.print(table)
    first, last = (view.rows[0].row, view.rows[-1].row) if view.rows else (0, -1)
    if last - first + 1 < view.length:
        stderr().print(f"showing rows {first} to {last} of {view.length}; --rows a:b shows others")


def _next(row: RowView) -> str:
    return "" if row.label is None else _word(row.label_text, row.label)


def _rank(row: RowView) -> str:
    if row.label is None or not row.kept:
        return ""
    return "outside" if row.label_rank is None else str(row.label_rank)


def _word(text: str | None, token: int) -> str:
    """Return a token so that spaces and line feeds can be seen."""
    return str(token) if text is None else repr(text)[1:-1].replace(" ", "·")
