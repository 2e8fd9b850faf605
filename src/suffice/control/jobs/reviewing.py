"""The job `review`: fills the queue of what people are asked about, within the caps of each route and of all together.

    log ──▶ each row to each route's Candidates ──▶ Demand ──▶ share_out ──▶ ReviewItem, ControlDraw

It asks and tells; it changes nothing that is in force. A drawing is one transaction with the items that came out of it,
so the random control share is what its row says, whatever happens to the worker in between.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil
from pathlib import Path

from suffice.control.jobs.base import LOOK_BACK, JobReport, JobWriter, rows_since
from suffice.control.people.candidates import Candidates
from suffice.review.items import ControlDraw, day_number
from suffice.review.select import MOST_WAITING, Cap, Demand, ReviewCandidate, count_due, item_of, open_now, share_out
from suffice.rollout.assign import assign_audit
from suffice.sanitize import plural
from suffice.settings import Review as ReviewRules
from suffice.settings import Route, Settings
from suffice.signals.query import class_of
from suffice.store.database.views import LogReader, find_event, open_reader
from suffice.store.people.reviews import NOTHING_ASKED, Reviews, read_reviews
from suffice.store.routes.in_force import InForce, read_decided
from suffice.store.routes.windows import newest_outlook, place_before, read_open_label_requests
from suffice.store.rows.events import Event
from suffice.types import Request


@dataclass(slots=True, kw_only=True)
class ReviewJob:
    """Asks people about runs of every governed route.

    salt  secret of the deployment: the lottery of the control share is another one than that of audits
    now   Unix time: days, deadlines and caps are people's, not the log's
    """

    settings: Settings
    path: Path
    author: str
    salt: str
    now: Callable[[], float]
    name: str = "review"
    _routes: dict[str, Candidates] = field(default_factory=dict)
    _reviews: Reviews = NOTHING_ASKED

    def forget(self) -> None:
        self._routes.clear()
        self._reviews = NOTHING_ASKED

    def run(self, desk: JobWriter) -> Sequence[JobReport]:
        routes = {
            name: route for name, route in self.settings.routes.items() if route.mode != "off" and route.review.per_day
        }
        if not routes or not self.settings.review.per_day or not self.path.is_file():
            return ()
        with open_reader(self.path) as connection:
            self._reviews = read_reviews(connection, self._reviews)
            decided = read_decided(connection)
            for name, route in routes.items():
                with desk.timed(name):
                    if name not in self._routes:
                        self._routes[name] = self._built(name, route, connection)
                    self._routes[name].asked = self._reviews.queue.places
                    self._routes[name].below = below(decided.of(name), connection, name, route)
            last, now_s, reports = self._read(connection, desk), self.now(), list[JobReport]()
            granted = self._granted(routes, now_s)
            for name, route in routes.items():
                with desk.timed(name):
                    reports.append(self._asked(name, route, connection, desk, last, granted[name], now_s))
        return reports

    def _granted(self, routes: Mapping[str, Route], now_s: float) -> dict[str, tuple[int, int]]:
        day = day_number(now_s)
        asked = self._reviews.queue.asked_on(day)
        room = open_now(self.settings.review.per_day, sum(map(sum, asked.values())), now_s=now_s)
        demands = [self._demand(name, route, *asked.get(name, (0, 0)), now_s) for name, route in routes.items()]
        return share_out(room, demands, day=day)

    def _demand(self, name: str, route: Route, n_chosen: int, n_drawn: int, now_s: float) -> Demand:
        here, cap = self._routes[name], cap_of(route.review)
        drawings = self._reviews.queue.drawings.get(name, ())
        last_at_s = drawings[-1].drawn_at_s if drawings else None
        return Demand(
            route=name,
            n_chosen=n_chosen,
            n_drawn=n_drawn,
            control_share=cap.control_share,
            drawable=min(here.urn.n, count_due(cap, drawn=n_drawn, last_at_s=last_at_s, now_s=now_s)),
            priorities=here.waiting.priorities(open_now(cap.n_chosen, n_chosen, now_s=now_s)),
        )

    def _built(self, name: str, route: Route, connection: LogReader) -> Candidates:
        """What has happened since the route's last drawing, or in its latest 20,000 requests, and labels wanted."""
        cap, drawings = cap_of(route.review), self._reviews.queue.drawings.get(name, ())
        looked_back = place_before(connection, name, LOOK_BACK)
        since = max(drawings[-1].until_seq, looked_back) if drawings else looked_back
        made = Candidates(
            name=name,
            most_drawn=max(1, 2 * ceil(cap.n_control / max(1, cap.drawings))),
            since_seq=since,
            point=self._point,
            asked=self._reviews.queue.places,
        )
        # Requests from before that place may end behind it: those that are still open are found on the way.
        made.seq = looked_back
        for wanted in read_open_label_requests(connection, name, most=MOST_WAITING):
            made.want(wanted)
        return made

    def _point(self, episode_id: str) -> float:
        return assign_audit(episode_id, share=1.0, salt=f"{self.salt} review").point

    def _read(self, connection: LogReader, desk: JobWriter) -> int:
        last = min((one.seq for one in self._routes.values()), default=0)
        for stored in rows_since(connection, last, desk):
            last = stored.seq
            for one in self._routes.values():
                one.feed(stored)
        return last

    def _asked(
        self,
        name: str,
        route: Route,
        connection: LogReader,
        desk: JobWriter,
        last: int,
        granted: tuple[int, int],
        now_s: float,
    ) -> JobReport:
        here, rules, (n_chosen, n_drawn) = self._routes[name], route.review, granted
        drawing, drawn = self._draw(here, n_drawn, now_s, last)
        taken = {one.episode_id for one in drawn}
        chosen = [one for one in here.waiting.choose(n_chosen) if one.episode_id not in taken]
        chosen = [_completed(one, connection) for one in chosen]
        if drawing is None and not chosen:
            return JobReport(said="", route=name, read_to_seq=last)
        events: list[Event] = [] if drawing is None else [drawing]
        events += [
            item_of(one, rules, now_s=now_s, author=self.author, drawing=drawing if one in drawn else None)
            for one in (*drawn, *chosen)
        ]
        desk.write(events)
        if drawing is not None:
            here.drawn(last)
        self._reviews = read_reviews(self.path, self._reviews)
        of = "" if drawing is None else f", {len(drawn)} of them drawn from {drawing.n_candidates:,}"
        return JobReport(said=f"{plural(len(drawn) + len(chosen), 'run')} to look at{of}", route=name, read_to_seq=last)

    def _draw(
        self, here: Candidates, n: int, now_s: float, last: int
    ) -> tuple[ControlDraw | None, list[ReviewCandidate]]:
        """Draw the control share from what has ended since the last drawing."""
        n_candidates = here.urn.n
        if not n:
            return None, []
        drawn = here.urn.draw(n)
        drawings = self._reviews.queue.drawings.get(here.name, ())
        drawing = ControlDraw(
            route=here.name,
            number=len(drawings) + 1,
            day=day_number(now_s),
            since_seq=here.since_seq,
            until_seq=last,
            n_candidates=n_candidates,
            drawn=tuple(one.episode_id for one in drawn),
            drawn_at_s=now_s,
            author=self.author,
        )
        return drawing, drawn


def cap_of(rules: ReviewRules) -> Cap:
    return Cap(per_day=rules.per_day, control_share=rules.control_share)


def below(held: InForce, connection: LogReader, name: str, route: Route) -> dict[str, str]:
    """Classes of questions that stopping harms more than the route's budget, and how that is known."""
    reasons = {
        query_class: f"the class {query_class or 'without a name'!r} is held back by its guard-rail"
        for query_class, _ in held.classes
    }
    outlook = newest_outlook(connection, name)
    for account in () if outlook is None else outlook.classes:
        drop = account.em_drop
        if account.query_class is None or not account.known or drop is None or drop.low is None:
            continue
        if drop.low > route.max_em_drop:
            reasons.setdefault(
                account.query_class,
                (
                    f"the class {account.query_class or 'without a name'!r} loses at least {100 * drop.low:.1f} points,"
                    f" and the route's budget is {100 * route.max_em_drop:g}"
                ),
            )
    return reasons


def _completed(one: ReviewCandidate, connection: LogReader) -> ReviewCandidate:
    """A wanted label does not say which question it is about: the request does."""
    if one.question_key:
        return one
    request = find_event(connection, Request, one.episode_id)
    if request is None:
        return one
    return replace(one, question_key=request.question_key, query_class=class_of(request.query))
