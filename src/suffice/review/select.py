"""Selects runs for human review: the most informative ones, and a few drawn at random.

Runs picked on purpose are not representative: their labels serve certificates and training, and only the random sample
estimates the average. A day's cap opens gradually, so that a busy morning leaves room for the evening. Pure.
"""

from __future__ import annotations

import hashlib
import heapq
from bisect import insort
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import ceil, floor
from typing import Final, TypeAlias

from suffice.review.items import DAY_S, ControlDraw, ReviewItem, ReviewReason, ReviewSubject, Shows, day_number
from suffice.settings import Review as ReviewRules
from suffice.signals.query import class_of
from suffice.types import Outcome, Request

WEIGHTS: Final[Mapping[ReviewReason, int]] = {
    "person": 6,  # a person waits for it
    "disagreement": 5,  # unlabelled, it counts as a loss
    "class_below": 4,  # one class loses more than the others
    "drift": 3,  # does the new regime behave as the old one?
    "control": 2,  # the only unbiased ones
    "uncertain": 1,
}
MOST_DRAWINGS: Final = 24  # a day; each stretch of the log is drawn from once
MOST_WAITING: Final = 1_000  # candidates awaiting room
LEAST_UNCERTAIN: Final = 0.5  # share of the steps before a stop with another answer


@dataclass(frozen=True, slots=True, kw_only=True)
class ReviewCandidate(ReviewSubject):
    urgency: float = 0.0  # within its kind, in [0, 1)

    @property
    def priority(self) -> float:
        return WEIGHTS[self.why] + self.urgency


def n_control(rules: ReviewRules) -> int:
    """Return the items drawn at random per day; at least one, if the cap allows any."""
    return min(rules.per_day, max(1, round(rules.per_day * rules.control_share))) if rules.control_share else 0


def n_drawings(rules: ReviewRules) -> int:
    """Return how often per day runs are drawn."""
    return min(MOST_DRAWINGS, n_control(rules))


def open_now(most: int, used: int, *, now_s: float) -> int:
    """Items that may be queued now of the day's cap `most` (UTC), which opens gradually; `used` are queued already."""
    passed = (now_s % DAY_S) / DAY_S
    return max(0, min(most, ceil(most * passed)) - used)


def drawing_window(now_s: float, drawings: int) -> int:
    return floor(now_s / (DAY_S / drawings)) if drawings else 0


def count_due(rules: ReviewRules, *, drawn: int, last_at_s: float | None, now_s: float) -> int:
    """Runs that the control share draws now; `drawn` today so far, the last time at `last_at_s`."""
    drawings, most = n_drawings(rules), n_control(rules)
    if not drawings:
        return 0
    if last_at_s is not None and drawing_window(last_at_s, drawings) >= drawing_window(now_s, drawings):
        return 0
    # A backlog of quiet stretches is not made up at once: a draw takes at most twice the allowance of its own stretch.
    return min(open_now(most, drawn, now_s=now_s), 2 * ceil(most / drawings))


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    route: str
    n_chosen: int  # today, picked on purpose
    n_drawn: int  # … and at random
    drawable: int  # runs that its control share may draw now
    priorities: Sequence[float]  # of the runs that may be picked now, the most urgent first
    control_share: float


def share_out(room: int, demands: Collection[Demand], *, day: int) -> dict[str, tuple[int, int]]:
    """Divide the deployment's remaining cap `room`, at least 0: how many runs each route may pick and draw.

    Runs are granted one by one to the route with the fewest items today (max-min fairness); ties go to the most urgent
    run, then by a hash of the day and the name. Within a route, draws keep to the control share while there are runs.
    """
    granted = {one.route: (0, 0) for one in demands}
    turns = [turn for one in demands if (turn := _next_turn(one, 0, 0, day)) is not None]
    heapq.heapify(turns)
    while room > 0 and turns:
        *_, one, n_chosen, n_drawn = heapq.heappop(turns)
        granted[one.route], room = (n_chosen, n_drawn), room - 1
        following = _next_turn(one, n_chosen, n_drawn, day)
        if following is not None:
            heapq.heappush(turns, following)
    return granted


_Turn: TypeAlias = tuple[int, float, bytes, str, Demand, int, int]


def _next_turn(one: Demand, n_chosen: int, n_drawn: int, day: int) -> _Turn | None:
    """A route's next run: its place in the order, and what the route has then; None: it wants no more."""
    may_choose, may_draw = n_chosen < len(one.priorities), n_drawn < one.drawable
    if not may_choose and not may_draw:
        return None
    n_queued = one.n_chosen + one.n_drawn + n_chosen + n_drawn
    draws = may_draw and (not may_choose or one.n_drawn + n_drawn < one.control_share * (n_queued + 1))
    priority = float(WEIGHTS["control"]) if draws else one.priorities[n_chosen]
    order = hashlib.blake2b(f"{day} {one.route}".encode(), digest_size=8).digest()
    return n_queued, -priority, order, one.route, one, n_chosen + (not draws), n_drawn + draws


@dataclass(slots=True)
class CandidateQueue:
    _best: dict[str, ReviewCandidate] = field(default_factory=dict)

    def add(self, candidate: ReviewCandidate) -> None:
        known = self._best.get(candidate.episode_id)
        if known is not None and known.priority >= candidate.priority:
            return
        self._best[candidate.episode_id] = candidate
        if len(self._best) > 2 * MOST_WAITING:  # rarely, because it is expensive
            self._best = {one.episode_id: one for one in self._first(MOST_WAITING)}

    def drop(self, episode_id: str) -> None:
        self._best.pop(episode_id, None)

    def __len__(self) -> int:
        return len(self._best)

    def priorities(self, n: int) -> list[float]:
        return [one.priority for one in self._first(n)]

    def choose(self, n: int) -> list[ReviewCandidate]:
        result = self._first(n)
        for one in result:
            del self._best[one.episode_id]
        return result

    def _first(self, n: int) -> list[ReviewCandidate]:
        return heapq.nsmallest(min(n, MOST_WAITING), self._best.values(), key=_order)


def _order(one: ReviewCandidate) -> tuple[float, float, str]:
    return -one.priority, float("inf") if one.deadline_s is None else one.deadline_s, one.episode_id


@dataclass(slots=True)
class Urn:
    """All runs of one stretch of the log; those with the smallest points are drawn.

    Points are uniform and independent, so drawing k of n runs gives each odds of k/n. Only the `most` smallest stay.
    """

    most: int
    n: int = 0
    _lowest: list[tuple[float, int, ReviewCandidate]] = field(default_factory=list)  # point, number of the run

    def add(self, point: float, candidate: ReviewCandidate) -> None:
        """Add a run; `point` is uniform in [0, 1), the same for the same run on every machine."""
        self.n += 1
        insort(self._lowest, (point, self.n, candidate))
        del self._lowest[self.most :]

    def draw(self, k: int) -> list[ReviewCandidate]:
        drawn = [candidate for _, _, candidate in self._lowest[:k]]
        self.n, self._lowest = 0, []
        return drawn


def uncertainty(answers: Iterable[str | None], delivered: str | None) -> float:
    """Share of the trial answers up to a stop that differ from the delivered one, [0, 1]; 0 without any."""
    trials = list(answers)
    return sum(one != delivered for one in trials) / len(trials) if trials else 0.0


def of_run(
    request: Request, outcome: Outcome, why: ReviewReason, because: str, *, urgency: float = 0.0
) -> ReviewCandidate:
    shows, full, early = answers_of(outcome)
    return ReviewCandidate(
        episode_id=request.episode_id,
        route=request.route,
        why=why,
        because=because,
        shows=shows,
        full_answer=full,
        early_answer=early,
        urgency=urgency,
        question_key=request.question_key,
        query_class=class_of(request.query),
        tenant=request.tenant,
    )


def answers_of(outcome: Outcome) -> tuple[Shows, str | None, str | None]:
    if outcome.stopped:
        return "early", None, outcome.answer
    if outcome.stop_step is not None and outcome.would_answer != outcome.answer:
        return "both", outcome.answer, outcome.would_answer
    return "full", outcome.answer, None


def item_of(
    one: ReviewCandidate, rules: ReviewRules, *, now_s: float, author: str, drawing: ControlDraw | None = None
) -> ReviewItem:
    candidate = asdict(one)
    del candidate["urgency"]
    return ReviewItem(
        **candidate,
        priority=one.priority,
        day=day_number(now_s),
        n_reviewers=rules.reviewers,
        requested_at_s=now_s,
        author=author,
        lease_s=rules.lease_s,
        open_until_s=now_s + rules.open_days * DAY_S,
        propensity=None if drawing is None else drawing.propensity,
        drawing=None if drawing is None else drawing.number,
    )
