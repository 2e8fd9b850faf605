"""`suffice pause` and `suffice resume`: a person takes enforcement away from a route, and gives it back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Callable

    from suffice.store.decisions import Decisions

_CONFIG = click.option("--config", "path", default="suffice.toml", show_default=True, help="Settings, TOML or YAML.")
_REASON = click.option("--reason", required=True, help="Why; it stays in the log.")
_AUTHOR = click.option("--author", default=None, help="Who decides. [default: the user of this computer]")


@click.command()
@click.argument("route")
@_CONFIG
@_REASON
@_AUTHOR
def pause(route: str, path: str, reason: str, author: str | None) -> None:
    """Let every request of ROUTE run in full until somebody resumes it."""
    from suffice.store import pausing

    def decide(writer: Decisions) -> str | None:
        return pausing.pause(writer, route, reason=reason, author=_who(author))

    _decide(route, path, decide, "paused")


@click.command()
@click.argument("route")
@_CONFIG
@_REASON
@_AUTHOR
def resume(route: str, path: str, reason: str, author: str | None) -> None:
    """End a pause of ROUTE: what is certified there acts again."""
    from suffice.store import pausing

    def decide(writer: Decisions) -> str | None:
        return pausing.resume(writer, route, reason=reason, author=_who(author))

    _decide(route, path, decide, "resumed")


def _who(author: str | None) -> str:
    import getpass

    return author or getpass.getuser()


def _decide(route: str, path: str, decide: Callable[[Decisions], str | None], done: str) -> None:
    """Write one decision; exits with 1 when there is nothing to decide, and with 2 when it cannot be written."""
    from suffice import wiring
    from suffice.errors import ConfigError, SufficeError

    try:
        settings = wiring.load_settings(path)
        if route not in settings.routes:
            known = ", ".join(sorted(settings.routes)) or "none is configured"
            raise ConfigError(f"unknown route {route!r}; known: {known}")
        with wiring.decisions(settings) as writer:
            problem = decide(writer)
    except SufficeError as error:
        click.echo(f"{done.removesuffix('d')}: {error}", err=True)
        raise SystemExit(2) from None
    if problem is not None:
        click.echo(f"route {route} {problem}", err=True)
        raise SystemExit(1)
    click.echo(f"route {route}: {done}")
