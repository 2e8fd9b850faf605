"""`suffice pause` and `suffice resume`: a person takes enforcement away from a route, and gives it back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from suffice.cli.deciding import (
    AUTHOR,
    CONFIG,
    REASON,
    WAIT,
    confirm,
    failing_with,
    find_settings,
    log_of,
    refused,
    who,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from suffice.store.database.decisions import Decisions


@click.command()
@click.argument("route")
@CONFIG
@REASON
@AUTHOR
@WAIT
def pause(route: str, path: str, reason: str, author: str | None, wait_s: float) -> None:
    """Let every request of ROUTE run in full until somebody resumes it.

    Waits until every running gateway has confirmed, and exits with 3 when one has not, or none is running.
    """
    from suffice.store.people.deciding import start_pause

    def decide(writer: Decisions) -> str | None:
        return start_pause(writer, route, reason=reason, author=who(author))

    _decide("pause", route, path, decide, wait_s=wait_s, again="`suffice kill` needs no database.")


@click.command()
@click.argument("route")
@CONFIG
@REASON
@AUTHOR
@WAIT
def resume(route: str, path: str, reason: str, author: str | None, wait_s: float) -> None:
    """End a pause of ROUTE: what is certified there acts again.

    Waits until every running gateway has confirmed, and exits with 3 when one has not, or none is running.
    """
    from suffice.store.people.deciding import end_pause

    def decide(writer: Decisions) -> str | None:
        return end_pause(writer, route, reason=reason, author=who(author))

    _decide("resume", route, path, decide, wait_s=wait_s)


def _decide(
    command: str, route: str, path: str, decide: Callable[[Decisions], str | None], *, wait_s: float, again: str = ""
) -> None:
    """Write one decision and wait for gateways; exits with 1 when there is nothing to decide, with 2 when it failed."""
    from suffice import wiring
    from suffice.store.database.views import newest_of, open_reader

    with failing_with(command, again=again), log_of(path, waits=True) as (settings, writer):
        find_settings(settings, route)
        problem = decide(writer)
        if problem is None:
            with open_reader(writer.path) as connection:
                seq = newest_of(connection, ("enforcement_paused", "enforcement_resumed"))
    if problem is not None:
        refused(command, f"route {route} {problem}")
    click.echo(f"route {route}: {command}d")
    confirm(command, wiring.presence_files(settings), lambda one: one.decided >= seq, wait_s=wait_s)
