"""``logitstore verify``: is a store sound, and does a teacher still say the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from .render import print_json, progress_bar, status_line, stderr, stdout

if TYPE_CHECKING:
    from logitstore.audit.report import Problem

__all__ = ["command"]


@click.command("verify", short_help="Check every byte and every row of a store.")
@click.argument("store", type=click.Path(exists=True, file_okay=False))
@click.option("--teacher", metavar="DIR_OR_ID", help="Also run this teacher on sampled documents, and compare.")
@click.option("--sample-rows", type=click.IntRange(1), default=2048, show_default=True, help="Rows to compare.")
@click.option("--dtype", help="Type to run the teacher in. Default: as the store was built.")
@click.option("--device", default="auto", show_default=True, help="Where to run the teacher.")
@click.option("--trust-remote-code", is_flag=True, help="Run Python code that comes with the teacher.")
@click.option("--seed", type=int, default=0, show_default=True, help="Which documents are sampled.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: ok, errors, rows_checked.")
def command(
    store: str,
    teacher: str | None,
    sample_rows: int,
    dtype: str | None,
    device: str,
    trust_remote_code: bool,
    seed: int,
    as_json: bool,
) -> None:
    """Check every file, checksum and row of STORE. Lists all problems and exits with 1 if there is one.

    With --teacher, the teacher is run again on some documents and its log-probabilities are compared with the stored
    ones, within a tolerance learned from running it twice in different batches.

    \b
    Examples:
      logitstore verify teacher.zarr
      logitstore verify teacher.zarr --teacher path/to/teacher --sample-rows 5000
    """  # noqa: D301
    from logitstore.audit.verify import verify

    with progress_bar("verifying", "rows") as progress:
        report = verify(store, progress=progress)
    result: dict[str, Any] = report.to_json()
    errors, notes = list(report.errors), list(report.notes)
    if teacher is not None and report.ok:
        from logitstore.audit.teacher_check import check_teacher

        with status_line("running the teacher") as say:
            check = check_teacher(
                store, teacher, sample_rows=sample_rows, dtype=dtype, device=device, seed=seed,
                trust_remote_code=trust_remote_code, progress=say,
            )  # fmt: skip
        errors += check.errors
        notes += check.notes
        content = check.to_json()
        result |= {"ok": check.ok, "errors": result["errors"] + content.pop("errors"), "teacher": content}
        result["notes"] = result["notes"] + content.pop("notes")
    elif teacher is not None:
        notes.append("the teacher was not run, because the store is broken")
        result["notes"] = notes
    if as_json:
        print_json(result)
    else:
        for note in notes:
            stderr().print(f"note: {note}", markup=False)
        _print(errors, result)
    if errors:
        click.get_current_context().exit(1)


def _print(errors: list[Problem], result: dict[str, Any]) -> None:
    console = stdout()
    if errors:
        from rich.table import Table

        table = Table("file", "shard", "row", "rule", "message", box=None, header_style="bold", pad_edge=False)
        table.columns[-1].overflow = "fold"
        for error in errors:
            shard, row = ("" if number is None else str(number) for number in (error.shard, error.row))
            table.add_row(error.file, shard, row, error.rule, error.message)
        console.print(table)
        console.print(f"BROKEN: {len(errors)} problems; {result['rows_checked']:,} rows could be checked", style="red")
        return
    sound = f"sound: {result['rows_checked']:,} rows checked"
    if "teacher" in result:
        check = result["teacher"]
        sound += (
            f"; the teacher says the same of {check['rows_compared']:,} rows of {check['documents']:,} documents "
            f"(largest difference {check['largest_difference']:.2g} nats beside rounding to float16, "
            f"allowed {check['tolerance']:.2g})"
        )
    console.print(sound, style="green")
