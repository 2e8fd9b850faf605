"""The review page of one reviewer: the item in hand, the queue, and how far reviewers agree."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from suffice.assurance.estimate import IntervalEstimate
from suffice.console.auth import Principal
from suffice.console.context import NotThere, ViewContext
from suffice.console.exchange import ConsoleRequest
from suffice.review.agreement import Kappa, agreement, em_of
from suffice.review.items import ReviewItem, ReviewLease, Verdict, words_for
from suffice.review.queue import ItemState, Queue, State
from suffice.store.database.views import find_event
from suffice.store.people.reviews import NOTHING_ASKED, Reviews, kept_question, kept_sources, read_reviews
from suffice.types import Outcome, Request

MOST_WAITING: Final = 30  # that are listed
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
FileOf = Callable[
    [ReviewItem], str | None
]  # the text of an item's question from the route's own file; None: it is in none


@dataclass(frozen=True, slots=True, kw_only=True)
class ReviewChoice:
    word: str
    key: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueRow:
    item: ReviewItem
    state: str
    by: tuple[str, ...]  # reviewers who have spoken


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopStep:
    step: int  # from 1
    action: str  # what its caller calls this kind of step; "": nothing
    answer: str | None  # that it would have given; None: none
    read: tuple[str, ...]  # passages; (): none were told, or none are kept
    wrote: str  # its own text; "": as above


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopView:
    steps: tuple[LoopStep, ...]
    sources_from: str  # where the texts are from, or why there are none
    is_cut: bool  # there was more than is kept


@dataclass(frozen=True, slots=True, kw_only=True)
class InHand:
    item: ReviewItem
    lease: ReviewLease
    question: str | None  # its text; None: it cannot be had
    question_from: str  # where it is from, or why there is none
    loop: LoopView | None  # None: the run is no loop of its caller's
    choices: tuple[ReviewChoice, ...]
    others: tuple[Verdict, ...]  # what the others said, where this reviewer decides between them


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteReviews:
    route: str
    counts: Mapping[State, int]
    kappa: Kappa | None
    em: IntervalEstimate | None  # of delivered answers, from items that were drawn at random


@dataclass(frozen=True, slots=True, kw_only=True)
class ReviewPage:
    in_hand: InHand | None  # None: this reviewer has nothing in hand
    n_waiting: int  # that this reviewer could take
    waiting: tuple[QueueRow, ...]  # by anybody, the most urgent first
    settled: tuple[QueueRow, ...]  # the latest
    routes: tuple[RouteReviews, ...]


@dataclass(slots=True)
class Reader:
    """Reads the queue on from where it was read to.

    from_file  texts of questions that the log does not keep
    """

    from_file: FileOf
    _known: Reviews = field(default=NOTHING_ASKED)

    def page(self, look: ViewContext, _asked: ConsoleRequest, visitor: Principal) -> ReviewPage:
        """The queue as this person sees it. Raises StoreError."""
        queue = self.queue(look)
        mine = [one for one in queue.of() if one.held_by(visitor.name, look.now_s) is not None]
        waiting = queue.waiting(now_s=look.now_s)
        settled = [one for one in queue.of() if one.state(look.now_s) in ("settled", "undecided")]
        return ReviewPage(
            in_hand=self._in_hand(look, mine[0], visitor.name) if mine else None,
            n_waiting=sum(one.may_take(visitor.name, look.now_s) for one in waiting),
            waiting=tuple(_listed(one, look.now_s) for one in waiting[:MOST_WAITING]),
            settled=tuple(_listed(one, look.now_s) for one in reversed(settled[-MOST_SETTLED:])),
            routes=tuple(
                RouteReviews(
                    route=name,
                    counts=queue.counts(now_s=look.now_s, route=name),
                    kappa=agreement(queue.of(name)).overall,
                    em=em_of(queue, name),
                )
                for name in look.settings.routes
                if any(True for _ in queue.of(name))
            ),
        )

    def queue(self, look: ViewContext) -> Queue:
        """All items. Raises StoreError."""
        self._known = read_reviews(look.connection, self._known)
        return self._known.queue

    def _in_hand(self, look: ViewContext, place: ItemState, name: str) -> InHand:
        lease = place.held_by(name, look.now_s)
        assert lease is not None
        question, where = self._question(look, place.item)
        choices = tuple(
            ReviewChoice(word=word, key=WORDS[word][0], text=WORDS[word][1]) for word in words_for(place.item.shows)
        )
        return InHand(
            item=place.item,
            lease=lease,
            question=question,
            question_from=where,
            loop=_loop(look, place.item),
            choices=choices,
            others=place.verdicts if place.needs_third else (),
        )

    def _question(self, look: ViewContext, item: ReviewItem) -> tuple[str | None, str]:
        kept = kept_question(look.connection, item.episode_id, now_s=look.now_s)
        if kept is not None:
            return kept, "kept in the log"
        result = self.from_file(item)
        if result is not None:
            return result, "from the route's file of questions"
        return None, (
            f"The log holds no text. Set routes.{item.route}.review.keep_text, or name a file in"
            f" routes.{item.route}.review.questions."
        )


def _loop(look: ViewContext, item: ReviewItem) -> LoopView | None:
    request = find_event(look.connection, Request, item.episode_id)
    outcome = find_event(look.connection, Outcome, item.episode_id)
    if request is None or outcome is None or request.kind != "rounds":
        return None
    kept = kept_sources(look.connection, item.episode_id, now_s=look.now_s)
    sources = kept.sources if kept is not None else ()
    steps = tuple(
        LoopStep(
            step=one.index,
            action=one.caller_action or "",
            answer=one.answer,
            read=tuple(each.text for each in sources if each.step == one.index and each.what == "read"),
            wrote="".join(each.text for each in sources if each.step == one.index and each.what == "wrote"),
        )
        for one in outcome.steps
    )
    if kept is None:
        where = f"the log holds none of their texts; routes.{item.route}.review.keep_text keeps those to come"
        return LoopView(steps=steps, sources_from=where, is_cut=False)
    return LoopView(steps=steps, sources_from="texts are kept in the log", is_cut=kept.is_cut)


def _listed(place: ItemState, now_s: float) -> QueueRow:
    return QueueRow(item=place.item, state=place.state(now_s), by=tuple(one.reviewer for one in place.verdicts))


def no_such_item(item: str) -> NotThere:
    return NotThere(f"review: nobody was asked about {item[:80]!r}")
