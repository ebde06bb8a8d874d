"""Options that choose a store's codec, of every command that writes one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import click

from .sizes import COUNT

if TYPE_CHECKING:
    from collections.abc import Callable

    from logitstore.container.codec_record import CodecRecord

__all__ = ["codec_options", "codec_record", "loss_text"]

F = TypeVar("F", bound="Callable[..., Any]")

_OPTIONS = (
    click.option("--max-kl", type=float, metavar="X", help="With compact: quantise log-probabilities so that no row "
        "has a generalised KL above X, in nats; 3e-4 is a good start."),
    click.option("--max-error", type=float, metavar="X", help="With compact: quantise values so that none is off by "
        "more than X, in nats."),
    click.option("--lossless", is_flag=True, help="With compact: keep values bit for bit. The default."),
    click.option("--training-rows", type=COUNT, metavar="N", help="With compact: train codebooks on the first N rows "
        "at most. Default: 131,072."),
    click.option("--retrain-rows", type=COUNT, metavar="N", help="With compact: after every N rows, a power of 2, try "
        "the codebooks on the next ones and train new ones where that is worth it. Default: 4,194,304."),
)  # fmt: skip


def codec_options(*, default: str | None) -> Callable[[F], F]:
    """Add ``--codec`` with a default, or as a required option without, and what belongs to it."""
    needed: dict[str, Any] = {"required": True} if default is None else {"default": default, "show_default": True}
    codec = click.option(
        "--codec",
        type=click.Choice(["exact", "compact"]),
        **needed,
        help="exact: every row alone, bit for bit. compact: smaller, with codebooks learnt from the first rows.",
    )

    def add(function: F) -> F:
        for option in reversed((codec, *_OPTIONS)):
            function = option(function)
        return function

    return add


def codec_record(options: dict[str, Any]) -> CodecRecord:
    """Take the options out of ``options`` and return what they say."""
    from logitstore.container.codec_record import CodecRecord

    name = options.pop("codec")
    given = {key: options.pop(key) for key in ("max_kl", "max_error", "training_rows", "retrain_rows")}
    given = {key: value for key, value in given.items() if value is not None}
    lossless = options.pop("lossless")
    if name == "exact":
        if given or lossless:
            asked = [*given, *(["lossless"] if lossless else [])]
            raise click.UsageError(f"--{asked[0].replace('_', '-')} goes with --codec compact")
        return CodecRecord()
    if lossless and ("max_kl" in given or "max_error" in given):
        raise click.UsageError("--lossless keeps every bit; it does not go with --max-kl or --max-error")
    return CodecRecord.compact(**given)


def loss_text(codec: dict[str, Any]) -> str:
    """Say in words what a codec, as the manifest describes it, may lose and has lost."""
    bounds = [
        f"{what} at most {codec[name]:g}"
        for name, what in (("max_kl", "generalised KL of a row"), ("max_error", "error of a value"))
        if codec.get(name) is not None
    ]
    if not bounds:
        return "bit for bit"
    text = f"quantised, {bounds[0]} nats"
    loss = codec.get("loss")
    if loss is None:
        return text
    measured = []
    if loss["kl_mean"] is not None:
        measured.append(f"KL mean {loss['kl_mean']:.3g}, p99 {loss['kl_p99']:.3g}, worst {loss['kl_worst']:.3g}")
    measured.append(f"error mean {loss['error_mean']:.3g}, worst {loss['error_worst']:.3g}")
    return f"{text}; measured on all {loss['rows']:,} rows: {'; '.join(measured)}"
