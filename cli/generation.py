"""Options of ``logitstore build --generate``: the teacher writes the data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from collections.abc import Callable

    from logitstore.build import GenerationConfig

__all__ = ["generation_config", "generation_options"]

F = TypeVar("F", bound="Callable[..., Any]")

# No defaults here: an option that was not given is None, so that one without --generate is noticed.
_OPTIONS = (
    click.option(
        "--generate", is_flag=True, help="The teacher writes: go on with --prompts, or write --documents from nothing."
    ),
    click.option(
        "--prompts",
        multiple=True,
        metavar="PATH",
        help="With --generate: prompts, as --data; texts, prompts whatever completes them, chats without the "
        "assistant's last turn. May be given several times.",
    ),
    click.option(
        "--documents", type=click.IntRange(1), metavar="N", help="With --generate: write N documents from no prompt."
    ),
    click.option(
        "--samples-per-prompt",
        type=click.IntRange(1),
        metavar="N",
        help="With --prompts: documents written for each prompt. Default: 1.",
    ),
    click.option(
        "--max-new-tokens",
        type=click.IntRange(1),
        metavar="N",
        help="With --generate: tokens written per document at most. Default: 512; --seq-len ends a document as well.",
    ),
    click.option(
        "--sampling-temperature",
        type=float,
        metavar="T",
        help="With --generate: temperature of the tokens written; 0 takes the most probable. Default: 1.",
    ),
    click.option(
        "--sampling-top-p",
        type=float,
        metavar="P",
        help="With --generate: write only tokens of the fewest ids that hold probability P. Default: 1, any token.",
    ),
    click.option(
        "--end-token",
        "end_tokens",
        multiple=True,
        metavar="TOKEN",
        help="With --generate: token that ends a document, as the vocabulary spells it; may be repeated. Default: EOS, "
        "and what the teacher's generation configuration names.",
    ),
)
_NAMES = {
    "prompts": "--prompts",
    "documents": "--documents",
    "samples_per_prompt": "--samples-per-prompt",
    "max_new_tokens": "--max-new-tokens",
    "sampling_temperature": "--sampling-temperature",
    "sampling_top_p": "--sampling-top-p",
    "end_tokens": "--end-token",
}


def generation_options(function: F) -> F:
    """Give a command the options."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def generation_config(options: dict[str, Any]) -> GenerationConfig | None:
    """Return what the options ask for, or None without --generate.

    Raises
    ------
    click.UsageError
        If options do not go together.
    """
    from logitstore.build import GenerationConfig
    from logitstore.select import Sampling

    given = {name: options[name] for name in _NAMES if options[name] not in (None, ())}
    if not options["generate"]:
        if given:
            raise click.UsageError(f"{', '.join(_NAMES[name] for name in given)}: only with --generate")
        if not options["data"]:
            raise click.UsageError("say what the teacher reads: --data; or have it write: --generate")
        return None
    if options["data"]:
        raise click.UsageError("with --generate the teacher goes on with --prompts; --data is what it reads without")
    if ("prompts" in given) == ("documents" in given):
        raise click.UsageError("--generate needs either --prompts, or --documents to write from no prompt")
    if "documents" in given and "samples_per_prompt" in given:
        raise click.UsageError("--samples-per-prompt goes with --prompts; --documents says how many are written")
    sampling = {"seed": options["seed"]}
    sampling |= {name: given[f"sampling_{name}"] for name in ("temperature", "top_p") if f"sampling_{name}" in given}
    names = ("documents", "samples_per_prompt", "max_new_tokens", "end_tokens")
    return GenerationConfig(
        sampling=Sampling(**sampling),
        **{name: given[name] for name in names if name in given},
    )
