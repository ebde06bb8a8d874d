"""Measures selections and codecs on a sample's rows."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from logitstore.audit.planning.codecs import CODECS, CodecSetting, CompactRows, Loss, Size, exact_size
from logitstore.audit.planning.line import PlanLine
from logitstore.audit.planning.selections import Draws

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from logitstore.audit.planning.codecs import Columns
    from logitstore.audit.planning.sample import SampleRows
    from logitstore.audit.planning.selections import Kept, Selecting
    from logitstore.container.manifest import Manifest

__all__ = ["measured_lines"]

_STEPS = 100
"""Progress of a selection: training of its codebook, then its codecs."""


def measured_lines(
    rows: SampleRows,
    selections: Sequence[Selecting],
    expected: int,
    manifest: Manifest,
    progress: Callable[[int, int], None] | None,
) -> Iterator[PlanLine]:
    """Yield a line for each selection and codec, over the rows of a sample behind those for training."""
    other = _other_bytes(manifest)
    flags = _flags(manifest)

    def report(number: int, part: float) -> None:
        if progress is not None:
            progress(int(_STEPS * (number + 0.8 * part)), _STEPS * len(selections))

    for number, selection in enumerate(selections):
        kept = selection.keep(rows)
        if kept.capped <= 0.5:  # a cap that decides most rows makes it a top-k with another name
            for codec, size, loss in _sizes(rows, kept, expected, partial(report, number)):
                yield _line(rows, selection, kept, codec, size, loss, expected, other, flags)
        report(number + 1, 0.0)


def _sizes(
    rows: SampleRows, kept: Kept, expected: int, progress: Callable[[float], None]
) -> Iterator[tuple[CodecSetting, Size, Loss]]:
    """Encode the rows behind those for training with every codec; what they lose is of rows with entries."""
    training, measured = _split(kept.columns, rows.training)
    values = measured["values"]
    filled = (values > -np.inf).any(axis=1)
    yield CODECS[0], exact_size(measured, rows.vocab_size), Loss.of(values[filled], values[filled])
    compact = CompactRows(training, measured, vocab_size=rows.vocab_size, expected_rows=expected, progress=progress)
    for codec in CODECS[1:]:
        size, coded = compact.coded(codec.bounds or {})
        yield codec, size, Loss.of(coded["values"][filled], coded["stored"][filled])


def _split(columns: Columns, at: int) -> tuple[Columns, Columns]:
    return {name: array[:at] for name, array in columns.items()}, {name: array[at:] for name, array in columns.items()}


def _line(
    rows: SampleRows,
    selection: Selecting,
    kept: Kept,
    codec: CodecSetting,
    size: Size,
    loss: Loss,
    expected: int,
    other: float,
    flags: str,
) -> PlanLine:
    measured = len(rows.ids) - rows.training
    drawn = isinstance(selection, Draws)
    parts = {name: part / measured for name, part in size.fields.items()}
    parts |= {"codebooks": size.codebooks / expected, "other": other}
    return PlanLine(
        selection=selection.name,
        codec=codec.name,
        flags=" ".join(flag for flag in (selection.flags, codec.flags, flags) if flag),
        entries=kept.entries,
        bytes_per_token=sum(parts.values()),
        bytes_by_part=parts,
        codebook_bytes=size.codebooks,
        capped=kept.capped,
        kept_mass=float(kept.mass.mean()),
        kept_mass_p1=float(np.quantile(kept.mass, 0.01)),
        label_kept=kept.label_kept,
        kl_left_out=None if drawn else _mean(loss.left_out),
        kl_of_kept=_mean(loss.of_kept),
        kl_of_tail=_mean(loss.of_tail),
    )


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean()) if len(values) else 0.0


def _other_bytes(manifest: Manifest) -> float:
    """Bytes a row of everything but entries: what the sample takes for it, less what does not grow with a store."""
    arrays = {"tokens", "lse", "label_logprob", "mask", "lse_T"}
    size = sum(size for name, size in manifest.bytes_by_field.items() if name in arrays)
    documents = 0 if manifest.documents_file is None else manifest.documents_file.bytes
    return (size + documents + 2 * 8 * manifest.documents) / manifest.rows


def _flags(manifest: Manifest) -> str:
    """Return what the sample was built with that changes the bytes of other fields."""
    flags = [f"--temperature {temperature:g}" for temperature in manifest.temperatures]
    return " ".join([*(["--rows masked"] if manifest.build.get("rows") == "masked" else []), *flags])
