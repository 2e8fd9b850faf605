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

from suffice.errors import StoreError
from suffice.review.items import ControlDraw, ItemReturn, ReviewItem, ReviewLease, Verdict, VerdictForm
from suffice.review.queue import EMPTY, Queue, Submission, accept_verdict, give_back, next_for
from suffice.review.select import item_of, of_run
from suffice.settings import Review as ReviewRules
from suffice.store.database.decisions import Decisions
from suffice.store.database.views import LogSource, find_event, open_reader, read_newer
from suffice.store.routes.windows import whole_episodes
from suffice.store.rows.events import Event
from suffice.store.rows.records import FeedbackEvent, QuestionText, Sources
from suffice.types import Outcome, Request

_TRIES: Final = 20  # steps that are decided anew because somebody else was quicker
_NEW: Final = """
    SELECT seq, at_s, kind, body FROM events INDEXED BY reviews WHERE seq > ? AND kind IN
        ('review_asked', 'review_drawn', 'review_leased', 'review_returned', 'review_verdict')
    ORDER BY seq"""


@dataclass(frozen=True, slots=True)
class Reviews:
    seq: int
    queue: Queue


NOTHING_ASKED: Final = Reviews(0, EMPTY)


def read_reviews(source: LogSource, known: Reviews = NOTHING_ASKED) -> Reviews:
    """The queue now, given what was known before; the same object where nothing is new. Raises StoreError."""
    rows = read_newer(source, _NEW, known.seq)
    if not rows:
        return known
    records = (
        stored.event
        for stored in rows
        if isinstance(stored.event, ReviewItem | ControlDraw | ReviewLease | ItemReturn | Verdict)
    )
    return Reviews(rows[-1].seq, known.queue.after(records))


def kept_question(source: LogSource, episode_id: str, *, now_s: float) -> str | None:
    """The text of a run's question, where its route keeps it and its time is not over; else None. Raises StoreError."""
    with open_reader(source) as connection:
        question = find_event(connection, QuestionText, episode_id)
    return question.text if question is not None and now_s < question.expires_at_s else None


def kept_sources(source: LogSource, episode_id: str, *, now_s: float) -> Sources | None:
    """What the steps of a run read and wrote, where its route keeps it and its time is not over. Raises StoreError."""
    with open_reader(source) as connection:
        kept = find_event(connection, Sources, episode_id)
    return kept if kept is not None and now_s < kept.expires_at_s else None


# ---- steps ---------------------------------------------------------------------------------------


def lease_next(
    writer: Decisions, reviewer: str, *, now_s: float, route: str | None = None, third: bool = False
) -> ReviewLease | None:
    """Take the next item for a reviewer, or give the one again that they have; None: there is none for them.

    third  only items whose reviewers contradict each other

    Raises StoreError.
    """
    reviews = NOTHING_ASKED
    for _ in range(_TRIES):
        reviews = read_reviews(writer.path, reviews)
        found = next_for(reviews.queue, reviewer, now_s=now_s, route=route, third=third)
        if found is None:
            return None
        lease, is_new = found
        if not is_new or _written(writer, [lease]):
            return lease
    raise _busy(writer)


def submit_verdict(writer: Decisions, said: VerdictForm, *, now_s: float) -> Submission | str:
    """Take what a reviewer says, with the label that it may come to; a sentence where it cannot be taken.

    Raises StoreError, and then nothing was written: say it again.
    """
    reviews = NOTHING_ASKED
    for _ in range(_TRIES):
        reviews = read_reviews(writer.path, reviews)
        place = reviews.queue.places.get(said.item)
        if place is None:
            return f"unknown item {said.item!r}: nobody was asked about such a run"
        found = accept_verdict(place, said, now_s=now_s)
        if isinstance(found, str) or found.verdict is None:
            return found
        events: list[Event] = [found.verdict]
        if found.lease is not None:
            events.insert(0, found.lease)
        if found.label is not None:
            events.append(FeedbackEvent(found.label))
        if _written(writer, events):
            return found
    raise _busy(writer)


def give_item_back(writer: Decisions, item: str, reviewer: str, reason: str, *, now_s: float) -> bool:
    """Give an item back without a verdict; False: this reviewer does not have it. Raises StoreError."""
    place = read_reviews(writer.path).queue.places.get(item)
    found = None if place is None else give_back(place, reviewer, reason, now_s=now_s)
    return found is not None and _written(writer, [found])


def add_review(writer: Decisions, item: ReviewItem) -> bool:
    """Ask about a run; False: somebody was asked about it before. Raises StoreError."""
    return _written(writer, [item])


def ask_about(
    writer: Decisions, episode_id: str, rules: Mapping[str, ReviewRules], reason: str, author: str, *, now_s: float
) -> ReviewItem | str:
    """Ask about a run because a person wants it, whatever the cap; a sentence where that cannot be.

    rules  the `review` table of each route

    Raises StoreError.
    """
    if not reason.strip() or not author.strip():
        return "to ask about a run needs an author and a reason"
    with open_reader(writer.path) as connection:
        found = whole_episodes(connection, [episode_id], 0)
    if not found:
        return f"unknown run {episode_id!r}, or it has not ended"
    asked, ended, _ = found[0]
    assert isinstance(asked.event, Request)
    assert isinstance(ended.event, Outcome)
    request = asked.event
    if request.ungoverned is not None or request.route not in rules:
        return f"run {episode_id} was not governed, so there is nothing to judge"
    candidate = of_run(request, ended.event, "person", f"asked for by {author.strip()}: {reason.strip()}")
    item = item_of(candidate, rules[request.route], now_s=now_s, author=author.strip())
    return item if add_review(writer, item) else f"somebody is asked about run {episode_id} already"


def _written(writer: Decisions, events: list[Event]) -> bool:
    """Write all of it; False: somebody was quicker with a part of it, and nothing was written."""
    return writer.write(None, events, all_new=True) == [True] * len(events)


def _busy(writer: Decisions) -> StoreError:
    return StoreError(f"store {writer.path}: others were quicker {_TRIES} times; try again")
