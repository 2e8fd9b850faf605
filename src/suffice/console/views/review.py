"""The review page of one reviewer: the item in hand, the queue, and the agreement between reviewers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from suffice.assurance.estimate import IntervalEstimate
from suffice.console.context import UnknownNameError, ViewContext, ViewRecord
from suffice.review.agreement import Kappa, agreement, em_of
from suffice.review.items import ReviewItem, ReviewLease, Verdict, allowed_verdicts
from suffice.review.queue import ItemState, State
from suffice.store.database.views import LogSource, find_event
from suffice.store.people.deciding import kept_question, kept_sources, read_reviews
from suffice.types import Outcome, Request

MOST_WAITING: Final = 30  # listed
MOST_SETTLED: Final = 15
WORDS: Final[Mapping[str, tuple[str, str]]] = {
    "both": ("b", "Both are right"),
    "full": ("f", "Only the full answer"),
    "early": ("e", "Only the early answer"),
    "neither": ("n", "Neither is right"),
    "right": ("y", "It is right"),
    "wrong": ("n", "It is wrong"),
    "unsure": ("u", "I cannot say"),
}


class ReviewChoice(ViewRecord, frozen=True, kw_only=False):
    word: str
    key: str
    text: str


class QueueRow(ViewRecord, frozen=True):
    item: ReviewItem
    state: str
    by: tuple[str, ...]  # reviewers with a verdict


class LoopStep(ViewRecord, frozen=True):
    step: int  # from 1
    action: str  # the caller's name of this kind of step; "": none
    answer: str | None  # None: none
    read: tuple[str, ...]  # passages; (): none were recorded, or none are kept
    wrote: str  # its own text; "": as above


class LoopView(ViewRecord, frozen=True):
    steps: tuple[LoopStep, ...]
    sources_from: str  # where the texts are from, or why there are none
    is_cut: bool  # the texts were longer than what is kept


class InHand(ViewRecord, frozen=True):
    item: ReviewItem
    lease: ReviewLease
    question: str | None  # None: not available
    question_from: str  # where it is from, or why it is not available
    loop: LoopView | None  # None: not a caller's own loop
    choices: tuple[ReviewChoice, ...]
    others: tuple[Verdict, ...]  # the others' verdicts, for the adjudicator


class RouteReviews(ViewRecord, frozen=True):
    route: str
    counts: Mapping[State, int]
    kappa: Kappa | None
    em: IntervalEstimate | None  # of delivered answers, from randomly drawn items


class ReviewPage(ViewRecord, frozen=True):
    in_hand: InHand | None  # None: this reviewer has no item
    n_waiting: int  # that this reviewer could take
    waiting: tuple[QueueRow, ...]  # of all reviewers, the most urgent first
    settled: tuple[QueueRow, ...]  # the latest
    routes: tuple[RouteReviews, ...]


def review_page(view: ViewContext) -> ReviewPage:
    name, now_s = view.visit.principal.name, view.now_s
    view.visit.context.cache.reviews = known = read_reviews(view.connection, view.visit.context.cache.reviews)
    queue = known.queue.of_tenants(view.tenants)
    waiting = queue.waiting(now_s=now_s)
    settled = [one for one in queue.of() if one.state(now_s) in ("settled", "undecided")]
    held = ((one, one.held_by(name, now_s)) for one in queue.of())
    mine = next(((one, lease) for one, lease in held if lease is not None), None)
    return ReviewPage(
        in_hand=None if mine is None else _in_hand(view, *mine),
        n_waiting=sum(one.may_take(name, now_s) for one in waiting),
        waiting=tuple(_row(one, now_s) for one in waiting[:MOST_WAITING]),
        settled=tuple(_row(one, now_s) for one in reversed(settled[-MOST_SETTLED:])),
        routes=tuple(
            RouteReviews(
                route=route,
                counts=queue.counts(now_s=now_s, route=route),
                kappa=agreement(queue.of(route)).overall,
                em=em_of(queue, route),
            )
            for route in view.settings.routes
            if any(True for _ in queue.of(route))
        ),
    )


def _row(place: ItemState, now_s: float) -> QueueRow:
    return QueueRow(item=place.item, state=place.state(now_s), by=tuple(one.reviewer for one in place.verdicts))


def _in_hand(view: ViewContext, place: ItemState, lease: ReviewLease) -> InHand:
    item = place.item
    question, where = kept_question(view.connection, item.episode_id, now_s=view.now_s), "kept in the log"
    if question is None:
        question, where = view.services.question_of(item), "from the route's file of questions"
    if question is None:
        settings = f"routes.{item.route}.review"
        where = f"The log holds no text. Set {settings}.keep_text, or name a file in {settings}.questions."
    return InHand(
        item=item,
        lease=lease,
        question=question,
        question_from=where,
        loop=_loop(view, item),
        choices=tuple(ReviewChoice(word, *WORDS[word]) for word in allowed_verdicts(item.shows)),
        others=place.verdicts if place.needs_third else (),
    )


def _loop(view: ViewContext, item: ReviewItem) -> LoopView | None:
    request = find_event(view.connection, Request, item.episode_id)
    outcome = find_event(view.connection, Outcome, item.episode_id)
    if request is None or outcome is None or request.kind != "rounds":
        return None
    kept = kept_sources(view.connection, item.episode_id, now_s=view.now_s)

    def texts(step: int, what: str) -> tuple[str, ...]:
        sources = kept.sources if kept is not None else ()
        return tuple(one.text for one in sources if one.step == step and one.what == what)

    steps = tuple(
        LoopStep(
            step=one.index,
            action=one.caller_action or "",
            answer=one.answer,
            read=texts(one.index, "read"),
            wrote="".join(texts(one.index, "wrote")),
        )
        for one in outcome.steps
    )
    if kept is None:
        where = f"the log holds none of their texts; routes.{item.route}.review.keep_text keeps those to come"
        return LoopView(steps=steps, sources_from=where, is_cut=False)
    return LoopView(steps=steps, sources_from="texts are kept in the log", is_cut=kept.is_cut)


def check_item(source: LogSource, item: str, tenants: tuple[str, ...] | None) -> None:
    """Raise UnknownNameError unless a run of these tenants (None: of any) was queued."""
    if item not in read_reviews(source).queue.of_tenants(tenants).places:
        raise UnknownNameError(f"review: no item {item[:80]!r} was queued")
