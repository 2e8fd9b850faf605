"""Writes what people decide: pauses, incidents, overrides and verdicts of the review queue.

A decision is written as a whole or not at all. If another writer was first, it is made again on the new state; a pause
is refused instead. Every function raises StoreError on a locked or full log; then nothing was written.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from suffice.review import decide
from suffice.review.holds import Incident, Override, OverrideEnd, describe_override, pin_problem
from suffice.review.items import ControlDraw, ItemReturn, ReviewItem, ReviewLease, Verdict, VerdictForm
from suffice.review.queue import EMPTY, Queue, Submission, accept_verdict, give_back, next_for
from suffice.review.select import item_of, of_run
from suffice.settings import Review as ReviewRules
from suffice.settings import Route
from suffice.store.database.decisions import Decisions
from suffice.store.database.views import LogReader, LogSource, find_event, open_reader, read_newer, read_publications
from suffice.store.routes.deployments import read_decided, read_holds
from suffice.store.rows.events import Event, FeedbackEvent, QuestionText, Sources
from suffice.types import Outcome, Pause, Publication, Request, Resumption

RACE: Final = "somebody else decided at the same time; check it and try again"


def start_pause(writer: Decisions, route: str, *, reason: str, author: str) -> str | None:
    """Run every request of a route in full until somebody resumes it. Return why it was refused; None: done."""
    held = read_decided(writer.path).of(route)
    if held.pause is not None:
        return f"is paused already: {held.pause.reason}"
    pause = Pause(route=route, number=held.n_pauses + 1, cause="person", reason=reason, author=author)
    return None if writer.write_new(pause) else RACE


def end_pause(writer: Decisions, route: str, *, reason: str, author: str) -> str | None:
    pause = read_decided(writer.path).of(route).pause
    if pause is None:
        return "is not paused"
    end = Resumption(route=route, number=pause.number, reason=reason, author=author)
    return None if writer.write_new(end) else RACE


def read_snapshot(connection: LogReader, route: str, settings: Route, *, setup: str = "") -> decide.DecisionInputs:
    """Return the current state of a route; `setup` as in `serving.route.route_setup`, "": the latest publication's."""
    held = read_decided(connection).of(route)
    return decide.DecisionInputs(
        name=route,
        holds=read_holds(connection).of(route),
        settings=settings,
        epoch=held.epoch,
        publication=held.publication,
        pause=held.pause,
        setup=setup or (None if held.last is None else held.last.setup) or None,
    )


def fitting(connection: LogReader, now: decide.DecisionInputs, *, now_s: float) -> list[tuple[Publication, str | None]]:
    """Return the publications of the current epoch, latest first, each with why it may not be served; None: it may."""
    if now.epoch is None:
        return []
    budget, confidence = now.holds.in_effect(now_s).budget(now.settings.max_em_drop), now.settings.confidence
    problem = partial(pin_problem, epoch=now.epoch, max_em_drop=budget, confidence=confidence, setup=now.setup)
    made = read_publications(connection, now.name, epoch=now.epoch.number)
    return [(one, problem(one)) for _, one in reversed(made)]


def _read_situation(
    connection: LogReader, route: str, settings: Route, *, setup: str, publication: int | None
) -> tuple[decide.DecisionInputs, Publication | None] | str:
    pinned = None if publication is None else find_event(connection, Publication, f"{route}:{publication}")
    if publication is not None and pinned is None:
        return f"unknown publication {publication} of route {route}"
    return read_snapshot(connection, route, settings, setup=setup), pinned


def set_override(
    writer: Decisions,
    route: str,
    settings: Route,
    wanted: decide.OverrideForm,
    *,
    now_s: float,
    publication: int | None = None,
    setup: str = "",
) -> Override | str:
    def step(connection: LogReader) -> tuple[list[Event], Override] | str:
        situation = _read_situation(connection, route, settings, setup=setup, publication=publication)
        if isinstance(situation, str):
            return situation
        now, pinned = situation
        override = decide.override_of(replace(wanted, pinned=pinned), now, now_s=now_s)
        return override if isinstance(override, str) else ([override], override)

    return writer.decide(step)


def end_override(
    writer: Decisions, route: str, settings: Route, number: int, reason: str, author: str, *, now_s: float
) -> OverrideEnd | str:
    reason, author = reason.strip(), author.strip()
    if not reason or not author:
        return "the end of an override needs an author and a reason"

    def step(connection: LogReader) -> tuple[list[Event], OverrideEnd] | str:
        now = read_snapshot(connection, route, settings)
        override, others = now.holds.override(number), [one for one in now.holds.overrides if one.number != number]
        if override is None or now_s >= override.expires_at_s:
            live = ", ".join(str(one.number) for one in now.holds.overrides if now_s < one.expires_at_s) or "none"
            return f"no override {number} holds on route {route}; those that do: {live}"
        left = replace(now, holds=replace(now.holds, overrides=tuple(others)))
        end = OverrideEnd(
            route=route,
            number=number,
            reason=reason,
            author=author,
            ended_at_s=now_s,
            before=describe_override(override),
            after=decide.describe_state(left, now_s=now_s),
        )
        return [end], end

    return writer.decide(step)


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
    summary, author = summary.strip(), author.strip()
    if not summary or not author:
        return "an incident needs an author and a sentence that says what is wrong"

    def step(connection: LogReader) -> tuple[list[Event], Incident]:
        held, now = read_decided(connection).of(route), read_snapshot(connection, route, settings)
        events: list[Event] = []
        pause = held.pause if pauses else None
        if pauses and pause is None:
            pause = Pause(route=route, number=held.n_pauses + 1, cause="person", reason=summary, author=author)
            events.append(pause)
        incident = Incident(
            incident=f"{route}:m{now.holds.n_manual + 1}",
            route=route,
            cause="person",
            summary=summary,
            evidence=(*evidence, f"held then: {decide.describe_state(now, now_s=now_s)}"),
            pause=None if pause is None else pause.number,
            opened_at_s=now_s,
            author=author,
        )
        return [*events, incident], incident

    return writer.decide(step)


def decide_incident(
    writer: Decisions,
    settings: Route,
    route: str,
    form: decide.IncidentForm,
    *,
    now_s: float,
    publication: int | None = None,
    setup: str = "",
) -> decide.DecisionRows | str:
    def step(connection: LogReader) -> tuple[list[Event], decide.DecisionRows] | str:
        situation = _read_situation(connection, route, settings, setup=setup, publication=publication)
        if isinstance(situation, str):
            return situation
        now, pinned = situation
        made = decide.resolve_incident(replace(form, pinned=pinned), now, now_s=now_s)
        if isinstance(made, str):
            return made
        return [one for one in (made.decision, made.override, made.resumption) if one is not None], made

    return writer.decide(step)


@dataclass(frozen=True, slots=True)
class Reviews:
    seq: int
    queue: Queue


NO_REVIEWS: Final = Reviews(0, EMPTY)


def read_reviews(source: LogSource, known: Reviews = NO_REVIEWS) -> Reviews:
    """Return the queue, updated from `known`; the same object if nothing is new."""
    rows = read_newer(source, "reviews", known.seq)
    if not rows:
        return known
    events = (stored.event for stored in rows)
    records = (one for one in events if isinstance(one, ReviewItem | ControlDraw | ReviewLease | ItemReturn | Verdict))
    return Reviews(rows[-1].seq, known.queue.after(records))


def kept_question(source: LogSource, episode_id: str, *, now_s: float) -> str | None:
    question = find_event(source, QuestionText, episode_id)
    return question.text if question is not None and now_s < question.expires_at_s else None


def kept_sources(source: LogSource, episode_id: str, *, now_s: float) -> Sources | None:
    kept = find_event(source, Sources, episode_id)
    return kept if kept is not None and now_s < kept.expires_at_s else None


# ---- steps in the review queue --------------------------------------------------------------------


def lease_next(
    writer: Decisions,
    reviewer: str,
    *,
    now_s: float,
    route: str | None = None,
    third: bool = False,
    tenants: Collection[str] | None = None,
) -> ReviewLease | None:
    """Lease the next item, or return the one already held.

    third    only items with contradicting verdicts
    tenants  only runs of theirs; None: of all
    """

    def step(connection: LogReader) -> tuple[list[Event], ReviewLease | None]:
        queue = read_reviews(connection).queue.of_tenants(tenants)
        lease, is_new = next_for(queue, reviewer, now_s=now_s, route=route, third=third) or (None, False)
        return [lease] if lease is not None and is_new else [], lease

    leased = writer.decide(step)
    assert not isinstance(leased, str)
    return leased


def submit_verdict(writer: Decisions, form: VerdictForm, *, now_s: float) -> Submission | str:
    """Record a verdict and the label that may follow; return a sentence if it is refused. Errors may be retried."""

    def step(connection: LogReader) -> tuple[list[Event], Submission] | str:
        place = read_reviews(connection).queue.places.get(form.item)
        if place is None:
            return f"unknown item {form.item!r}: no review was requested for such a run"
        made = accept_verdict(place, form, now_s=now_s)
        if isinstance(made, str):
            return made
        label = None if made.label is None else FeedbackEvent(made.label)
        events = (made.lease, made.verdict, label) if made.verdict is not None else ()
        return [one for one in events if one is not None], made

    return writer.decide(step)


def give_item_back(writer: Decisions, item: str, reviewer: str, reason: str, *, now_s: float) -> bool:
    """Return an item without a verdict; False: this reviewer does not hold it."""
    place = read_reviews(writer.path).queue.places.get(item)
    returned = None if place is None else give_back(place, reviewer, reason, now_s=now_s)
    return returned is not None and writer.write_new(returned)


def ask_about(
    writer: Decisions, episode_id: str, rules: Mapping[str, ReviewRules], reason: str, author: str, *, now_s: float
) -> ReviewItem | str:
    """Queue a run for review at a person's request, regardless of the cap; return a sentence if it is refused."""
    reason, author = reason.strip(), author.strip()
    if not reason or not author:
        return "requesting a review needs an author and a reason"
    with open_reader(writer.path) as connection:
        request, outcome = find_event(connection, Request, episode_id), find_event(connection, Outcome, episode_id)
    if request is None or outcome is None:
        return f"unknown run {episode_id!r}, or it has not ended"
    if request.ungoverned is not None or request.route not in rules:
        return f"run {episode_id} was not governed, so there is nothing to judge"
    candidate = of_run(request, outcome, "person", f"asked for by {author}: {reason}")
    item = item_of(candidate, rules[request.route], now_s=now_s, author=author)
    return item if writer.write_new(item) else f"run {episode_id} is already in the review queue"
