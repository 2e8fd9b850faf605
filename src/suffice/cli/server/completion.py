"""`suffice completion`: what makes a shell complete the command."""

from __future__ import annotations

from typing import Final

import click

from suffice.cli.shell import Command

SHELLS: Final = ("bash", "zsh", "fish")


@click.command(cls=Command)
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print what makes SHELL complete commands and options.

    In ~/.bashrc: eval "$(suffice completion bash)". In ~/.zshrc, behind compinit: eval "$(suffice completion zsh)". In
    ~/.config/fish/config.fish: suffice completion fish | source.
    """
    from click.shell_completion import get_completion_class

    made = get_completion_class(shell)
    assert made is not None, "click completes all of these shells"
    root = context.find_root()
    click.echo(made(root.command, {}, "suffice", "_SUFFICE_COMPLETE").source())
