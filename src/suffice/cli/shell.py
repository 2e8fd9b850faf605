"""What every command shares with the shell that calls it: its settings file, how a group lists it, how it fails.

Refuses to know what any command does. Imports click and the standard library alone, since `--help` waits for it.
"""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import click

_HELP = "Settings, TOML or YAML."

# The same option twice, for functions that call it `path` and for those that need a Path.
CONFIG = click.option("--config", "path", metavar="FILE", default="suffice.toml", show_default=True, help=_HELP)
CONFIG_FILE = click.option(
    "--config",
    type=click.Path(path_type=Path),
    metavar="FILE",
    default=Path("suffice.toml"),
    show_default=True,
    help=_HELP,
)
INSECURE_OPEN = click.option(
    "--insecure-open",
    is_flag=True,
    help="Serve other machines although no keys are asked for.",
)
JSON_LINES = click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
JSON_OBJECT = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


class CommandGroup(click.Group):
    """A group whose help lists its commands in the order in which they are defined, each with its whole sentence."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click passes it
        return list(self.commands)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - as above
        with formatter.section("Commands"):
            formatter.write_dl([(name, self.commands[name].get_short_help_str(1_000)) for name in self.commands])


def print_line(text: str) -> None:
    from suffice.sanitize import printable

    click.echo(printable(text))


def fail(command: str, why: object, status: int = 2) -> NoReturn:
    """End `suffice COMMAND` with a sentence on standard error.

    status  2: it cannot be done, or the log or the settings cannot be read; 1: it was done and the answer is no
    """
    for_operator = getattr(why, "for_operator", None)  # of an error of an upstream
    click.echo(f"suffice {command}: {why if for_operator is None else for_operator()}", err=True)
    raise SystemExit(status)
