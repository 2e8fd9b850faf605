"""The job `review` fills the queue of answers for human review, within the caps of each route and of the deployment.

A random draw and its review items are one transaction, so the recorded odds hold even if the worker dies in between.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from math import ceil
from typing import Final

from suffice.assurance.forecast import RouteForecast
from suffice.control.evidence.run_join import remember
from suffice.control.jobs.base import LOOK_BACK, JobPass
from suffice.control.jobs.folds import FoldJob
from suffice.review import select
from suffice.review.items import ControlDraw, day_number
from suffice.rollout.assign import point_of
from suffice.sanitize import plural
from suffice.settings import Route
from suffice.signals.query import class_of
from suffice.store.database.log import StoredEvent
from suffice.store.database.views import LogReader, find_event, newest_event, place_before, read_open_label_requests
from suffice.store.people.deciding import NO_REVIEWS, Reviews, read_reviews
from suffice.store.routes.deployments import RouteDeployment
from suffice.store.rows.events import FeedbackEvent
from suffice.types import Epoch, LabelRequest, Outcome, Request

DRIFT_RUNS: Final = 100  # first runs of an epoch that are candidates for review
REVIEWABLE: Final = ("done", "stopped", "truncated")  # ends whose delivered answer is known


@dataclass(slots=True, kw_only=True)
class Candidates:
    """One route's runs since its last draw, and its candidates; `point` is uniform in [0, 1), by episode."""

    name: str
    most_drawn: int
    since_seq: int
    point: Callable[[str], float]
    queued: Collection[str] = ()
    below: dict[str, str] = field(default_factory=dict)
    seq: int = 0  # position of the last row read
    n: int = 0  # requests are not counted here
    waiting: select.CandidateQueue = field(init=False, default_factory=select.CandidateQueue)
    urn: select.Urn = field(init=False)
    _open: dict[str, Request] = field(init=False, default_factory=dict)
    _n_new: int = field(init=False, default=0)  # runs of the epoch that still become candidates
    _new_because: str = field(init=False, default="")

    def __post_init__(self) -> None:
        self.urn = select.Urn(self.most_drawn)

    def feed(self, stored: StoredEvent) -> None:
        if stored.seq <= self.seq:
            return
        self.seq, event = stored.seq, stored.event
        if isinstance(event, Request):
            if event.route == self.name and event.ungoverned is None:
                remember(self._open, event.episode_id, event)
        elif isinstance(event, Outcome):
            request = self._open.pop(event.episode_id, None)
            if request is not None and event.end_reason in REVIEWABLE:
                self._end_run(request, event)
        elif isinstance(event, FeedbackEvent):
            given = event.feedback
            if given.episode_id is not None and (given.correct is not None or given.gold is not None):
                self.waiting.drop(given.episode_id)  # a labelled run needs no reviewer
        elif isinstance(event, LabelRequest) and event.route == self.name:
            self.add_request(event)
        elif isinstance(event, Epoch) and event.route == self.name:
            # Neither a cold start nor another guarantee, which begins without a burst, is drift.
            self._n_new = DRIFT_RUNS if event.number > 1 and event.burst else 0
            self._new_because = f"one of the first runs since epoch {event.number} began: {event.reason}"

    def restart(self, until_seq: int) -> None:
        self.since_seq, self.urn = until_seq, select.Urn(self.most_drawn)

    def add_request(self, wanted: LabelRequest) -> None:
        """Add an audit that disagrees at the active level or the next one."""
        if wanted.episode_id not in self.queued:
            self.waiting.add(
                select.ReviewCandidate(
                    episode_id=wanted.episode_id,
                    route=self.name,
                    why="disagreement",
                    shows="both",
                    because=f"{wanted.why}; without a label it counts as a loss",
                    full_answer=wanted.answer,
                    early_answer=wanted.would_answer,
                    urgency=1 / (1 + wanted.level),
                    deadline_s=wanted.deadline_s,
                )
            )

    def _end_run(self, request: Request, outcome: Outcome) -> None:
        name, query_class = request.episode_id, class_of(request.query)
        if self.seq > self.since_seq:
            self.urn.add(self.point(name), select.of_run(request, outcome, "control", "drawn at random from all runs"))
        if name in self.queued:
            return
        if query_class in self.below:
            self.waiting.add(select.of_run(request, outcome, "class_below", self.below[query_class]))
        if self._n_new:
            self._n_new -= 1
            self.waiting.add(select.of_run(request, outcome, "drift", self._new_because))
        if outcome.stopped and outcome.stop_step is not None:
            before = [step.answer for step in outcome.steps if step.index <= outcome.stop_step]
            share = select.uncertainty(before, outcome.answer)
            if share >= select.LEAST_UNCERTAIN:
                because = f"it was stopped although {share:.0%} of its trial answers differed from the delivered one"
                self.waiting.add(select.of_run(request, outcome, "uncertain", because, urgency=min(share, 0.999)))


@dataclass(kw_only=True)
class ReviewJob(FoldJob[Candidates]):
    """Queues runs of every governed route for review. Days, deadlines and caps follow the clock, not the log."""

    name = "review"
    is_shared = False  # routes share the cap of a day
    failing = "nothing is queued for review"
    _reviews: Reviews = field(init=False, default=NO_REVIEWS)
    _now_s: float = field(init=False, default=0.0)  # of the pass
    _granted: dict[str, tuple[int, int]] = field(init=False, default_factory=dict)  # runs that may be picked and drawn

    def concerns(self, route: Route) -> bool:
        return route.mode != "off" and bool(route.review.per_day) and bool(self.settings.review.per_day)

    def forget(self) -> None:
        super().forget()
        self._reviews = NO_REVIEWS

    def begin(self, log: LogReader) -> None:
        self._reviews = read_reviews(log, self._reviews)
        for fold in self._memory.values():
            self._update(fold, log)

    def build(self, name: str, here: JobPass) -> Candidates:
        rules, drawings = self.settings.routes[name].review, self._reviews.queue.drawings.get(name, ())
        looked_back = place_before(here.log, name, LOOK_BACK)
        fold = Candidates(
            name=name,
            most_drawn=max(1, 2 * ceil(select.n_control(rules) / max(1, select.n_drawings(rules)))),
            since_seq=max(drawings[-1].until_seq, looked_back) if drawings else looked_back,
            point=self._point,
            # Requests from before the last draw may end after it, so those still open are read, too.
            seq=looked_back,
        )
        self._update(fold, here.log)
        for wanted in read_open_label_requests(here.log, name, most=select.MOST_WAITING):
            fold.add_request(wanted)
        return fold

    def _point(self, episode: str) -> float:
        return point_of(episode, salt=f"{self.secret} review", purpose=b"audit-lot")

    def given(self, name: str, fold: Candidates | None) -> Mapping[str, object]:  # noqa: ARG002 - as every fold's
        if fold is None:
            return {"point": self._point, "queued": self._reviews.queue.places}
        return {"point": fold.point, "queued": fold.queued}

    def resume(self, name: str, fold: Candidates, here: JobPass) -> bool:
        """Leave out what another worker has queued since."""
        self._update(fold, here.log)
        for episode in fold.queued:
            fold.waiting.drop(episode)
        drawings = self._reviews.queue.drawings.get(name, ())
        if drawings and drawings[-1].until_seq > fold.since_seq:
            if drawings[-1].until_seq < fold.seq:
                return False  # the urn holds runs from before and after the draw
            fold.restart(drawings[-1].until_seq)
        return True

    def _update(self, fold: Candidates, log: LogReader) -> None:
        fold.queued = self._reviews.queue.places
        fold.below = harmed_classes(self._decided.of(fold.name), log, fold.name, self.settings.routes[fold.name])

    def prepare(self) -> None:
        """Divide what is left of the deployment's cap for today among the routes."""
        now_s = self._now_s = self.now()
        day = day_number(now_s)
        queue = self._reviews.queue
        demands = list[select.Demand]()
        n_queued = queue.items_on(day)
        for name, fold in self._memory.items():
            rules, (n_chosen, n_drawn) = self.settings.routes[name].review, n_queued.get(name, (0, 0))
            most_chosen = rules.per_day - select.n_control(rules)
            drawings = queue.drawings.get(name, ())
            last_at_s = drawings[-1].drawn_at_s if drawings else None
            demands.append(
                select.Demand(
                    route=name,
                    n_chosen=n_chosen,
                    n_drawn=n_drawn,
                    control_share=rules.control_share,
                    drawable=min(fold.urn.n, select.count_due(rules, drawn=n_drawn, last_at_s=last_at_s, now_s=now_s)),
                    priorities=fold.waiting.priorities(select.open_now(most_chosen, n_chosen, now_s=now_s)),
                )
            )
        room = select.open_now(self.settings.review.per_day, sum(map(sum, n_queued.values())), now_s=now_s)
        self._granted = select.share_out(room, demands, day=day)

    def conclude(self, name: str, fold: Candidates, here: JobPass) -> None:
        n_chosen, n_drawn = self._granted[name]
        drawing, drawn = self._draw(fold, n_drawn) if n_drawn else (None, [])
        taken = {one.episode_id for one in drawn}
        chosen = [one for one in fold.waiting.choose(n_chosen) if one.episode_id not in taken]
        if drawing is None and not chosen:
            return
        for at, one in enumerate(chosen):  # a label request does not hold the question's key: the run's request does
            request = None if one.question_key else find_event(here.log, Request, one.episode_id)
            if request is not None:
                query_class = class_of(request.query)
                chosen[at] = replace(one, question_key=request.question_key, query_class=query_class)
        rules = self.settings.routes[name].review
        items = [select.item_of(one, rules, now_s=self._now_s, author=self.author, drawing=drawing) for one in drawn]
        items += [select.item_of(one, rules, now_s=self._now_s, author=self.author) for one in chosen]
        here.writer.write([*([] if drawing is None else [drawing]), *items])
        if drawing is not None:
            fold.restart(fold.seq)
        self._reviews = read_reviews(self.path, self._reviews)
        of = "" if drawing is None else f", {len(drawn)} of them drawn from {drawing.n_candidates:,}"
        self.add_sentence(name, f"{plural(len(items), 'run')} queued for review{of}")

    def _draw(self, fold: Candidates, n: int) -> tuple[ControlDraw, list[select.ReviewCandidate]]:
        n_candidates, drawn = fold.urn.n, fold.urn.draw(n)
        drawing = ControlDraw(
            route=fold.name,
            number=len(self._reviews.queue.drawings.get(fold.name, ())) + 1,
            day=day_number(self._now_s),
            since_seq=fold.since_seq,
            until_seq=fold.seq,
            n_candidates=n_candidates,
            drawn=tuple(one.episode_id for one in drawn),
            drawn_at_s=self._now_s,
            author=self.author,
        )
        return drawing, drawn


def harmed_classes(held: RouteDeployment, log: LogReader, name: str, route: Route) -> dict[str, str]:
    """Classes that stopping harms beyond the route's budget, each with the evidence."""
    reasons = {
        query_class: f"the class {query_class or 'without a name'!r} is held back by its guard-rail"
        for query_class, _ in held.classes
    }
    forecast = newest_event(log, RouteForecast, route=name)
    for account in () if forecast is None else forecast.classes:
        query_class, drop = account.query_class, account.em_drop
        if query_class is None or not account.known or drop is None or drop.low is None:
            continue
        if drop.low > route.max_em_drop and query_class not in reasons:
            reasons[query_class] = (
                f"the class {query_class or 'without a name'!r} loses at least {100 * drop.low:.1f} points,"
                f" and the route's budget is {100 * route.max_em_drop:g}"
            )
    return reasons
