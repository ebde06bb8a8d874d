"""``logitstore``: finds the command and loads only its module, so that ``--help`` answers at once."""

from __future__ import annotations

import importlib
import sys

import click

from logitstore.errors import InvalidArgumentError, LogitStoreError
from logitstore.version import __version__

__all__ = ["cli", "main"]

_COMMANDS = {
    "build": "Run a teacher over a corpus and store its logits.",
    "plan": "What k, selection and codec would cost and keep, before the teacher runs.",
    "inspect": "Say what is in a store; show tokens with their candidates.",
    "verify": "Check every byte and every row of a store.",
    "stats": "Kept mass, entropy, label ranks, perplexity; as a figure, too.",
    "train": "Train a student from a store.",
    "convert": "Write a store into the other container, without loss.",
    "recode": "Write a store with another codec, without the teacher.",
    "bench": "Measure reading against plain Zarr and raw memory maps.",
    "demo": "Train a small teacher, store its logits, check and read them.",
}

EXIT_BROKEN = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _COMMANDS:
            return None
        command = importlib.import_module(f".{cmd_name}", __package__).command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="logitstore")
def cli() -> None:
    """Store a teacher's logits on disk, check them, and read them back into any training loop.

    Exit status: 0 sound, 1 broken or failed, 2 wrong usage, 3 readable but data was lost or skipped,
    130 interrupted.
    """


def main() -> None:
    """Run the command line; the console script."""
    try:
        status = cli.main(standalone_mode=False)
    except click.exceptions.Exit as done:
        status = done.exit_code
    except click.ClickException as error:
        error.show()
        status = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)  # noqa: T201
        status = EXIT_INTERRUPTED
    except InvalidArgumentError as error:
        print(f"Error: {error}", file=sys.stderr)  # noqa: T201
        status = EXIT_USAGE
    except LogitStoreError as error:
        print(f"Error: {error}", file=sys.stderr)  # noqa: T201
        status = EXIT_BROKEN
    sys.exit(status if isinstance(status, int) else 0)


if __name__ == "__main__":
    main()
