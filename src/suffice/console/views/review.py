"""The review page of one reviewer: the item in hand, the queue, the reviewers' agreement, and what verdicts changed."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from hashlib import sha256
from typing import Final

from suffice.assurance.estimate import IntervalEstimate, em_drop_of
from suffice.console.context import UnknownNameError, ViewContext, ViewRecord
from suffice.console.views.episodes import Correctness
from suffice.review.agreement import Kappa, agreement, em_of
from suffice.review.items import ReviewItem, ReviewLease, Verdict, allowed_verdicts
from suffice.review.queue import ItemState, State
from suffice.sanitize import plural
from suffice.store.database.views import EpisodeWithLabels, LogSource, find_event, find_runs, last_place
from suffice.store.people.deciding import kept_question, kept_sources, read_reviews
from suffice.store.routes.rollups import RouteScorer, measure_governed_run, tally_now
from suffice.types import Outcome, Request

MOST_WAITING: Final = 30  # listed
MOST_SETTLED: Final = 15
WORDS: Final[Mapping[str, tuple[str, str]]] = {
    "right": ("y", "It is right"),
    "wrong": ("n", "It is wrong"),
    "unsure": ("u", "I cannot say"),
}
# Of two answers that stand side by side, without saying which the early stop gave.
BLIND_WORDS: Final[Mapping[str, tuple[str, str]]] = {
    "first": ("a", "Only A is right"),
    "second": ("b", "Only B is right"),
    "both": ("y", "Both are right"),
    "neither": ("n", "Neither is right"),
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


class BlindAnswer(ViewRecord, frozen=True):
    letter: str  # "A" or "B"; "": it stands alone
    answer: str | None


class LastVerdict(ViewRecord, frozen=True):
    """The reviewer's verdict before, with what was hidden until then."""

    item: ReviewItem
    sentence: str


class InHand(ViewRecord, frozen=True):
    item: ReviewItem
    lease: ReviewLease | None  # None: a verdict that is given again
    answers: tuple[BlindAnswer, ...]  # in an order that tells nothing
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
    last: LastVerdict | None  # None: none was given before
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
    again = queue.places.get(view.query.get("again", ""))
    if again is not None and again.verdict_of(name) is not None:
        in_hand: InHand | None = _in_hand(view, again, None)
    else:
        in_hand = None if mine is None else _in_hand(view, *mine)
    return ReviewPage(
        in_hand=in_hand,
        last=_last(queue.places.get(view.query.get("changed", "")), name),
        n_waiting=sum(one.may_take(name, now_s) for one in waiting),
        waiting=tuple(_row(one, now_s) for one in waiting[:MOST_WAITING]),
        settled=tuple(_row(one, now_s) for one in reversed(settled[-MOST_SETTLED:])),
        routes=tuple(
            RouteReviews(
                route=route,
                counts=queue.counts(now_s=now_s, route=route),
                kappa=agreement(queue.of(route)),
                em=em_of(queue, route),
            )
            for route in view.settings.routes
            if any(True for _ in queue.of(route))
        ),
    )


def _row(place: ItemState, now_s: float) -> QueueRow:
    return QueueRow(item=place.item, state=place.state(now_s), by=tuple(one.reviewer for one in place.verdicts))


def early_is_first(item: str) -> bool:
    """Whether the early answer stands first; the same for every reviewer, and known from the item's id alone."""
    return sha256(f"review order {item}".encode()).digest()[0] % 2 == 0


def unblind(item: ReviewItem, word: str) -> str:
    """Translate `first` and `second`, as the page has the answers, into `early` and `full`."""
    if word not in ("first", "second") or item.shows != "both":
        return word
    return "early" if (word == "first") == early_is_first(item.episode_id) else "full"


def _blind_answers(item: ReviewItem) -> tuple[BlindAnswer, ...]:
    if item.shows != "both":
        alone = item.full_answer if item.shows == "full" else item.early_answer
        return (BlindAnswer(letter="", answer=alone),)
    pair = (item.early_answer, item.full_answer)
    ordered = pair if early_is_first(item.episode_id) else pair[::-1]
    return tuple(BlindAnswer(letter=letter, answer=answer) for letter, answer in zip("AB", ordered, strict=True))


def _last(place: ItemState | None, reviewer: str) -> LastVerdict | None:
    verdict = None if place is None else place.verdict_of(reviewer)
    if place is None or verdict is None:
        return None
    item, word = place.item, verdict.category
    if item.shows != "both":
        which = "the full run's" if item.shows == "full" else "the early stop's"
        return LastVerdict(item=item, sentence=f"You said {word} of {which} answer")
    early, full = ("A", "B") if early_is_first(item.episode_id) else ("B", "A")
    words = {"early": f"only {early}", "full": f"only {full}", "both": "both are right", "neither": "neither is right"}
    return LastVerdict(
        item=item,
        sentence=f"You said: {words.get(word, 'unsure')}. {early} was the early stop's answer, {full} the full run's",
    )


def _in_hand(view: ViewContext, place: ItemState, lease: ReviewLease | None) -> InHand:
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
        answers=_blind_answers(item),
        choices=tuple(
            ReviewChoice(word, *words)
            for word, words in (
                BLIND_WORDS.items()
                if item.shows == "both"
                else ((word, WORDS[word]) for word in allowed_verdicts(item.shows))
            )
        ),
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


def check_item(source: LogSource, item: str, tenants: tuple[str, ...] | None) -> ReviewItem:
    """Raise UnknownNameError unless a run of these tenants (None: of any) was queued."""
    place = read_reviews(source).queue.of_tenants(tenants).places.get(item)
    if place is None:
        raise UnknownNameError(f"review: no item {item[:80]!r} was queued")
    return place.item


SESSION_S: Final = 3_600.0
MOST_VERDICTS: Final = 100
_BY_REVIEW: Final = "review:"  # prefix of the ids of labels that come of verdicts


def bound_moved(view: ViewContext, item: str) -> str:
    """Say how far the route's bound on the EM drop is from what it would be without these verdicts.

    The bound is the upper end of the EM drop as every page has it; both come from the same tally.
    """
    places = read_reviews(view.connection, view.visit.context.cache.reviews).queue.places
    route, name = places[item].item.route, view.visit.principal.name
    mine = [
        one.item.episode_id
        for one in places.values()
        if one.item.route == route
        and (verdict := one.verdict_of(name)) is not None
        and view.now_s - verdict.given_at_s < SESSION_S
    ][-MOST_VERDICTS:]
    scorer, log = RouteScorer("", Correctness(view).match(route)), view.connection
    now = tally_now(log, route, scorer)
    if now is None or not mine:
        return ""
    before = copy.deepcopy(now)
    for _, run in find_runs(log, mine, until_seq=last_place(log)).values():
        request = run.episode.request
        if request.ungoverned is None:
            after, without = (measure_governed_run(one, scorer.match) for one in (run, _without_review(run)))
            before.relabel(after, without)
    bounds = [em_drop_of(one) for one in (before, now)]
    highs = [100 * one.high for one in bounds if one is not None and one.high is not None]
    if len(highs) < 2:
        return f"No bound on the EM drop of {route} yet: it takes audits."
    words = f"Your {plural(len(mine), 'verdict')} of the last hour"
    if round(highs[0], 2) == round(highs[1], 2):
        return f"{words} left the bound on the EM drop of {route} at {highs[1]:.2f} points."
    return f"{words} moved the bound on the EM drop of {route} from {highs[0]:.2f} to {highs[1]:.2f} points."


def _without_review(run: EpisodeWithLabels) -> EpisodeWithLabels:
    return replace(run, labels=tuple(one for one in run.labels if not one.feedback.feedback_id.startswith(_BY_REVIEW)))
