"""`suffice pause` and `suffice resume`: a person takes enforcement away from a route, and gives it back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from suffice.cli.deciding import AUTHOR, CONFIG, REASON, failing_with, log_of, refused, route_of, who

if TYPE_CHECKING:
    from collections.abc import Callable

    from suffice.store.database.decisions import Decisions


@click.command()
@click.argument("route")
@CONFIG
@REASON
@AUTHOR
def pause(route: str, path: str, reason: str, author: str | None) -> None:
    """Let every request of ROUTE run in full until somebody resumes it."""
    from suffice.store.routes import pausing

    def decide(writer: Decisions) -> str | None:
        return pausing.pause(writer, route, reason=reason, author=who(author))

    _decide("pause", route, path, decide, again="`suffice kill` needs no database.")


@click.command()
@click.argument("route")
@CONFIG
@REASON
@AUTHOR
def resume(route: str, path: str, reason: str, author: str | None) -> None:
    """End a pause of ROUTE: what is certified there acts again."""
    from suffice.store.routes import pausing

    def decide(writer: Decisions) -> str | None:
        return pausing.resume(writer, route, reason=reason, author=who(author))

    _decide("resume", route, path, decide)


def _decide(
    command: str, route: str, path: str, decide: Callable[[Decisions], str | None], *, again: str = ""
) -> None:
    """Write one decision; exits with 1 when there is nothing to decide, and with 2 when it cannot be written."""
    with failing_with(command, again=again), log_of(path) as (settings, writer):
        route_of(settings, route)
        problem = decide(writer)
    if problem is not None:
        refused(command, f"route {route} {problem}")
    click.echo(f"route {route}: {command}d")
