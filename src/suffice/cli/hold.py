"""`suffice pause` and `suffice resume`: a person takes enforcement away from a route, and gives it back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Callable

    from suffice.store.events import Event
    from suffice.store.in_force import InForce

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
    from suffice.store.control_events import EnforcementPaused
    from suffice.types import Pause

    def decided(held: InForce) -> Event | str:
        if held.pause is not None:
            return f"is paused already: {held.pause.reason}"
        number = held.n_pauses + 1
        return EnforcementPaused(Pause(route=route, number=number, cause="person", reason=reason, author=_who(author)))

    _decide(route, path, decided, "paused")


@click.command()
@click.argument("route")
@_CONFIG
@_REASON
@_AUTHOR
def resume(route: str, path: str, reason: str, author: str | None) -> None:
    """End a pause of ROUTE: what is certified there acts again."""
    from suffice.store.control_events import EnforcementResumed
    from suffice.types import Resumption

    def decided(held: InForce) -> Event | str:
        if held.pause is None:
            return "is not paused"
        return EnforcementResumed(
            Resumption(route=route, number=held.pause.number, reason=reason, author=_who(author))
        )

    _decide(route, path, decided, "resumed")


def _who(author: str | None) -> str:
    import getpass

    return author or getpass.getuser()


def _decide(route: str, path: str, decided: Callable[[InForce], Event | str], done: str) -> None:
    """Write one decision; exits with 1 when there is nothing to decide, and with 2 when it cannot be written."""
    from suffice import wiring
    from suffice.errors import ConfigError, SufficeError
    from suffice.store.in_force import read_decided

    try:
        settings = wiring.load_settings(path)
        if route not in settings.routes:
            known = ", ".join(sorted(settings.routes)) or "none is configured"
            raise ConfigError(f"unknown route {route!r}; known: {known}")
        with wiring.decisions(settings) as writer:
            event = decided(read_decided(writer.path).of(route))
            if isinstance(event, str):
                click.echo(f"route {route} {event}", err=True)
                raise SystemExit(1)
            if writer.write(None, [event]) != [True]:
                click.echo(f"route {route}: somebody else decided at the same moment; look again", err=True)
                raise SystemExit(1)
    except SufficeError as error:
        click.echo(f"{done.removesuffix('d')}: {error}", err=True)
        raise SystemExit(2) from None
    click.echo(f"route {route}: {done}")
