"""A person takes enforcement away from a route, and gives it back: for the command, the console and the API alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from suffice.store.database.decisions import Decisions
from suffice.store.routes.in_force import InForce, read_decided
from suffice.store.rows.events import Event
from suffice.types import Pause, Resumption

RACE: Final = "somebody else decided at the same moment; look again"


def start_pause(writer: Decisions, route: str, *, reason: str, author: str) -> str | None:
    """Let every request of a route run in full until somebody resumes it; why not, or None: it is done.

    Raises StoreError.
    """

    def decided(held: InForce) -> Event | str:
        if held.pause is not None:
            return f"is paused already: {held.pause.reason}"
        number = held.n_pauses + 1
        return Pause(route=route, number=number, cause="person", reason=reason, author=author)

    return _decide(writer, route, decided)


def end_pause(writer: Decisions, route: str, *, reason: str, author: str) -> str | None:
    """End a pause: what is certified acts again; why not, or None: it is done. Raises StoreError."""

    def decided(held: InForce) -> Event | str:
        if held.pause is None:
            return "is not paused"
        return Resumption(route=route, number=held.pause.number, reason=reason, author=author)

    return _decide(writer, route, decided)


def _decide(writer: Decisions, route: str, decided: Callable[[InForce], Event | str]) -> str | None:
    event = decided(read_decided(writer.path).of(route))
    if isinstance(event, str):
        return event
    return None if writer.write(None, [event]) == [True] else RACE
