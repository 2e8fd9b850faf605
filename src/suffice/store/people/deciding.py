"""What people decide on a route, written: pauses, incidents opened and decided, overrides set and ended.

    read what holds ──▶ review.decide ──▶ rows, all of a decision or none of it

Of two people who decide at the same moment, the second one is told what the first one did. A log that is
locked or full raises StoreError; then nothing was written and everything is as it was.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final, TypeVar

from suffice.errors import StoreError
from suffice.review.decide import DecisionRows, IncidentForm, Now, OverrideForm, in_words, override_of, resolve_incident
from suffice.review.holds import Incident, Override, OverrideEnd, describe_override, name_by_hand, why_not
from suffice.settings import Route
from suffice.store.database.decisions import Decisions
from suffice.store.database.views import LogReader, find_event, open_reader
from suffice.store.people.holds import read_holds
from suffice.store.routes.in_force import InForce, read_decided
from suffice.store.routes.windows import read_publications
from suffice.store.rows.events import Event
from suffice.types import Pause, Publication, Resumption

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


_TRIES: Final = 20

T = TypeVar("T")


def read_now(connection: LogReader, route: str, settings: Route, *, setup: str = "") -> Now:
    """What holds on a route at this moment.

    setup  as `gateway.route.route_setup` has it; "": the latest publication's own is taken

    Raises StoreError.
    """
    held = read_decided(connection).of(route)
    known = held.last.setup if held.last is not None else ""
    return Now(
        route=route,
        holds=read_holds(connection).of(route),
        settings=settings,
        epoch=held.epoch,
        publication=held.publication,
        pause=held.pause,
        setup=setup or known,
    )


def read_publication(connection: LogReader, route: str, number: int) -> Publication | None:
    """One of a route's publications; None: there is none of that number. Raises StoreError."""
    return find_event(connection, Publication, f"{route}:{number}")


def fitting(connection: LogReader, now: Now, *, now_s: float) -> list[tuple[Publication, str | None]]:
    """The publications of the epoch that runs, the latest first, each with why it may not be served; None: it may.

    Raises StoreError.
    """
    if now.epoch is None:
        return []
    budget = now.holds.in_effect(now_s).budget(now.settings.max_em_drop)
    return [
        (made, why_not(made, epoch=now.epoch, max_em_drop=budget, confidence=now.settings.confidence, setup=now.setup))
        for _, made in reversed(read_publications(connection, now.route, epoch=now.epoch.number))
    ]


def set_override(
    writer: Decisions,
    route: str,
    settings: Route,
    wanted: OverrideForm,
    *,
    now_s: float,
    publication: int | None = None,
    setup: str = "",
) -> Override | str:
    """Hold a route or a class of its questions; a sentence where it cannot be held so.

    publication  pin: number of the earlier publication to be served; None: what is in force

    Raises StoreError, and then nothing is held.
    """

    def step(connection: LogReader) -> tuple[list[Event], Override] | str:
        pinned = wanted.pinned
        if publication is not None:
            pinned = read_publication(connection, route, publication)
            if pinned is None:
                return f"unknown publication {publication} of route {route}"
        now = read_now(connection, route, settings, setup=setup)
        found = override_of(replace(wanted, pinned=pinned), now, now_s=now_s)
        return found if isinstance(found, str) else ([found], found)

    return _step(writer, step)


def end_override(
    writer: Decisions, route: str, settings: Route, number: int, reason: str, author: str, *, now_s: float
) -> OverrideEnd | str:
    """End an override before its time; a sentence where there is none to end. Raises StoreError."""

    def step(connection: LogReader) -> tuple[list[Event], OverrideEnd] | str:
        if not reason.strip() or not author.strip():
            return "the end of an override needs an author and a reason"
        now = read_now(connection, route, settings)
        found = now.holds.override(number)
        if found is None or now_s >= found.expires_at_s:
            live = ", ".join(str(one.number) for one in now.holds.overrides if now_s < one.expires_at_s) or "none"
            return f"no override {number} holds on route {route}; those that do: {live}"
        left = replace(
            now, holds=replace(now.holds, overrides=tuple(one for one in now.holds.overrides if one.number != number))
        )
        end = OverrideEnd(
            route=route,
            number=number,
            reason=reason.strip(),
            author=author.strip(),
            ended_at_s=now_s,
            before=describe_override(found),
            after=in_words(left, now_s=now_s),
        )
        return [end], end

    return _step(writer, step)


def open_incident(
    writer: Decisions,
    route: str,
    settings: Route,
    summary: str,
    author: str,
    *,
    now_s: float,
    evidence: tuple[str, ...] = (),
    pauses: bool = False,
) -> Incident | str:
    """Open an incident by hand; a sentence where it cannot be.

    pauses  let everything run in full until somebody decides

    Raises StoreError.
    """

    def step(connection: LogReader) -> tuple[list[Event], Incident] | str:
        if not summary.strip() or not author.strip():
            return "an incident needs an author and a sentence that says what is wrong"
        held = read_decided(connection).of(route)
        events: list[Event] = []
        pause = held.pause
        if pauses and pause is None:
            pause = Pause(
                route=route, number=held.n_pauses + 1, cause="person", reason=summary.strip(), author=author.strip()
            )
            events.append(pause)
        now = read_now(connection, route, settings)
        incident = Incident(
            incident=name_by_hand(route, now.holds.n_by_hand + 1),
            route=route,
            cause="person",
            summary=summary.strip(),
            evidence=(*evidence, f"held then: {in_words(now, now_s=now_s)}"),
            pause=pause.number if pauses and pause is not None else None,
            opened_at_s=now_s,
            author=author.strip(),
        )
        return [*events, incident], incident

    return _step(writer, step)


def decide_incident(
    writer: Decisions,
    settings: Route,
    route: str,
    asked: IncidentForm,
    *,
    now_s: float,
    publication: int | None = None,
    setup: str = "",
) -> DecisionRows | str:
    """Decide an incident and carry the decision out; a sentence where it cannot be.

    publication  roll back: number of the publication to go back to

    Raises StoreError, and then everything is as it was.
    """

    def step(connection: LogReader) -> tuple[list[Event], DecisionRows] | str:
        pinned = asked.pinned
        if publication is not None:
            pinned = read_publication(connection, route, publication)
            if pinned is None:
                return f"unknown publication {publication} of route {route}"
        found = resolve_incident(
            replace(asked, pinned=pinned), read_now(connection, route, settings, setup=setup), now_s=now_s
        )
        if isinstance(found, str):
            return found
        events: list[Event] = [found.decision]
        if found.override is not None:
            events.append(found.override)
        if found.resumption is not None:
            events.append(found.resumption)
        return events, found

    return _step(writer, step)


def _step(writer: Decisions, step: Callable[[LogReader], tuple[list[Event], T] | str]) -> T | str:
    """Decide on what holds, and write it; where somebody was quicker, decide anew on what holds then."""
    for _ in range(_TRIES):
        with open_reader(writer.path) as connection:
            found = step(connection)
        if isinstance(found, str):
            return found
        events, made = found
        if writer.write(None, events, all_new=True) == [True] * len(events):
            return made
    raise StoreError(f"store {writer.path}: others were quicker {_TRIES} times; try again")
