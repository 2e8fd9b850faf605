"""Candidates for review: which of a route's runs are worth a person's look.

    requests, outcomes, labels, labels wanted, epochs ──▶ Candidates.feed ──▶ CandidateQueue (picked), Urn (all runs)

A fold that chooses nothing: what is asked is decided in `review.select`, when there is room.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Final

from suffice.control.evidence.run_join import remember
from suffice.review.select import LEAST_UNCERTAIN, CandidateQueue, ReviewCandidate, Urn, of_run, uncertainty
from suffice.signals.query import class_of
from suffice.store.database.log import StoredEvent
from suffice.store.rows.records import FeedbackEvent
from suffice.types import Epoch, Feedback, LabelRequest, Outcome, Request

DRIFT_RUNS: Final = 100  # the first of a new world that are candidates
REVIEWABLE: Final = ("done", "stopped", "truncated")  # ends that show what a client got


@dataclass(slots=True, kw_only=True)
class Candidates:
    """One route's runs since its last drawing.

    most_drawn  runs that one drawing can take at most
    since_seq   runs whose outcome stands behind this place are in the urn
    point       of the lottery, uniform in [0, 1), by episode
    asked       episodes that somebody was asked about
    """

    name: str
    most_drawn: int
    since_seq: int
    point: Callable[[str], float]
    asked: Collection[str]
    below: dict[str, str] = field(default_factory=dict)  # classes that stopping harms, and how that is known
    waiting: CandidateQueue = field(default_factory=CandidateQueue)
    urn: Urn = field(init=False)
    seq: int = 0  # place of the last row that was read
    _open: dict[str, Request] = field(default_factory=dict)
    _n_new: int = 0  # runs of a new world that are candidates still
    _new_because: str = ""

    def __post_init__(self) -> None:
        self.urn = Urn(self.most_drawn)

    def feed(self, stored: StoredEvent) -> None:
        """Take the next row of the log in; one that was read before changes nothing."""
        if stored.seq <= self.seq:
            return
        self.seq, event = stored.seq, stored.event
        if isinstance(event, Request):
            if event.route == self.name and event.ungoverned is None:
                self._asked_for(event)
        elif isinstance(event, Outcome):
            request = self._open.pop(event.episode_id, None)
            if request is not None and event.end_reason in REVIEWABLE:
                self._ended(request, event)
        elif isinstance(event, FeedbackEvent):
            self._said(event.feedback)
        elif isinstance(event, LabelRequest) and event.route == self.name:
            self.want(event)
        elif isinstance(event, Epoch) and event.route == self.name:
            # A cold start is no drift, and neither is another promise, which begins without a burst.
            self._n_new = DRIFT_RUNS if event.number > 1 and event.burst else 0
            self._new_because = f"one of the first runs since epoch {event.number} began: {event.reason}"

    def _asked_for(self, request: Request) -> None:
        remember(self._open, request.episode_id, request)

    def _said(self, given: Feedback) -> None:
        """A run that somebody judged needs no reviewer."""
        if given.episode_id is not None and (given.correct is not None or given.gold is not None):
            self.waiting.drop(given.episode_id)

    def drawn(self, until_seq: int) -> None:
        """A drawing has emptied the urn: runs from here on are in the next one."""
        self.since_seq, self.urn = until_seq, Urn(self.most_drawn)

    def want(self, wanted: LabelRequest) -> None:
        """An audit disagrees at a level in play."""
        if wanted.episode_id not in self.asked:
            self.waiting.add(
                ReviewCandidate(
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

    def _ended(self, request: Request, outcome: Outcome) -> None:
        name = request.episode_id
        if self.seq > self.since_seq:
            self.urn.add(self.point(name), of_run(request, outcome, "control", "drawn at random from all runs"))
        if name in self.asked:
            return
        query_class = class_of(request.query)
        if query_class in self.below:
            self.waiting.add(of_run(request, outcome, "class_below", self.below[query_class]))
        if self._n_new:
            self._n_new -= 1
            self.waiting.add(of_run(request, outcome, "drift", self._new_because))
        if outcome.stopped and outcome.stop_step is not None:
            before = [step.answer for step in outcome.steps if step.index <= (outcome.stop_step or 0)]
            share = uncertainty(before, outcome.answer)
            if share >= LEAST_UNCERTAIN:
                because = f"it was stopped although {share:.0%} of its trial answers were others than the one delivered"
                self.waiting.add(of_run(request, outcome, "uncertain", because, urgency=min(share, 0.999)))
