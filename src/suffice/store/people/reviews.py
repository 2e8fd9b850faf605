"""The review queue in the log: reading it, taking an item, saying what is right.

    read_reviews ──▶ Queue ──▶ lease_next, submit_verdict, give_item_back ──▶ rows, all of a step or none of it

What a step comes to is decided in `review.queue`; here it is written. Two people who are at it at the same moment
cannot both have what one of them got: the second one's step is decided anew on what the first one left. A log that is
locked or full raises StoreError, and then nothing of the step was written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from suffice.review.items import ControlDraw, ItemReturn, ReviewItem, ReviewLease, Verdict, VerdictForm
from suffice.review.queue import EMPTY, Queue, Submission, accept_verdict, give_back, next_for
from suffice.review.select import item_of, of_run
from suffice.settings import Review as ReviewRules
from suffice.store.database.decisions import Decisions
from suffice.store.database.views import LogReader, LogSource, find_event, open_reader, read_newer
from suffice.store.rows.events import Event
from suffice.store.rows.records import FeedbackEvent, QuestionText, Sources
from suffice.types import Outcome, Request


@dataclass(frozen=True, slots=True)
class Reviews:
    seq: int
    queue: Queue


NOTHING_ASKED: Final = Reviews(0, EMPTY)


def read_reviews(source: LogSource, known: Reviews = NOTHING_ASKED) -> Reviews:
    """The queue now, given what was known before; the same object where nothing is new. Raises StoreError."""
    rows = read_newer(source, "reviews", known.seq)
    if not rows:
        return known
    events = (stored.event for stored in rows)
    records = (one for one in events if isinstance(one, ReviewItem | ControlDraw | ReviewLease | ItemReturn | Verdict))
    return Reviews(rows[-1].seq, known.queue.after(records))


def kept_question(source: LogSource, episode_id: str, *, now_s: float) -> str | None:
    """The text of a run's question, where its route keeps it and its time is not over; else None. Raises StoreError."""
    question = find_event(source, QuestionText, episode_id)
    return question.text if question is not None and now_s < question.expires_at_s else None


def kept_sources(source: LogSource, episode_id: str, *, now_s: float) -> Sources | None:
    """What the steps of a run read and wrote, where its route keeps it and its time is not over. Raises StoreError."""
    kept = find_event(source, Sources, episode_id)
    return kept if kept is not None and now_s < kept.expires_at_s else None


# ---- steps ---------------------------------------------------------------------------------------


def lease_next(
    writer: Decisions, reviewer: str, *, now_s: float, route: str | None = None, third: bool = False
) -> ReviewLease | None:
    """Take the next item for a reviewer, or give the one again that they have; None: there is none for them.

    third  only items whose reviewers contradict each other

    Raises StoreError.
    """

    def step(connection: LogReader) -> tuple[list[Event], ReviewLease | None]:
        queue = read_reviews(connection).queue
        lease, is_new = next_for(queue, reviewer, now_s=now_s, route=route, third=third) or (None, False)
        return [lease] if lease is not None and is_new else [], lease

    leased = writer.decide(step)
    assert not isinstance(leased, str)
    return leased


def submit_verdict(writer: Decisions, said: VerdictForm, *, now_s: float) -> Submission | str:
    """Take what a reviewer says, with the label that it may come to; a sentence where it cannot be taken.

    Raises StoreError, and then nothing was written: say it again.
    """

    def step(connection: LogReader) -> tuple[list[Event], Submission] | str:
        place = read_reviews(connection).queue.places.get(said.item)
        if place is None:
            return f"unknown item {said.item!r}: nobody was asked about such a run"
        made = accept_verdict(place, said, now_s=now_s)
        if isinstance(made, str):
            return made
        label = None if made.label is None else FeedbackEvent(made.label)
        events = (made.lease, made.verdict, label) if made.verdict is not None else ()
        return [one for one in events if one is not None], made

    return writer.decide(step)


def give_item_back(writer: Decisions, item: str, reviewer: str, reason: str, *, now_s: float) -> bool:
    """Give an item back without a verdict; False: this reviewer does not have it. Raises StoreError."""
    place = read_reviews(writer.path).queue.places.get(item)
    returned = None if place is None else give_back(place, reviewer, reason, now_s=now_s)
    return returned is not None and writer.write_new(returned)


def add_review(writer: Decisions, item: ReviewItem) -> bool:
    return writer.write_new(item)


def ask_about(
    writer: Decisions, episode_id: str, rules: Mapping[str, ReviewRules], reason: str, author: str, *, now_s: float
) -> ReviewItem | str:
    """Ask about a run because a person wants it, whatever the cap; a sentence where that cannot be.

    Raises StoreError.
    """
    reason, author = reason.strip(), author.strip()
    if not reason or not author:
        return "to ask about a run needs an author and a reason"
    with open_reader(writer.path) as connection:
        request, outcome = find_event(connection, Request, episode_id), find_event(connection, Outcome, episode_id)
    if request is None or outcome is None:
        return f"unknown run {episode_id!r}, or it has not ended"
    if request.ungoverned is not None or request.route not in rules:
        return f"run {episode_id} was not governed, so there is nothing to judge"
    candidate = of_run(request, outcome, "person", f"asked for by {author}: {reason}")
    item = item_of(candidate, rules[request.route], now_s=now_s, author=author)
    return item if add_review(writer, item) else f"somebody is asked about run {episode_id} already"
