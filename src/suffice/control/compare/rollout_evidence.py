"""Gathers the evidence of a rollout, row by row.

A run belongs to the step of the rollout in which it began. Only audits on which the versions differ are kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from suffice.assurance.certify import Windows
from suffice.assurance.money import undrawn_tokens
from suffice.assurance.runs import ENDED, Match, measure_run
from suffice.assurance.sampling import BAD_ENDS
from suffice.assurance.satisfaction import satisfaction_of_people
from suffice.assurance.strata import Cell
from suffice.certification.certificate import PendingAudits
from suffice.control.evidence.audits import Audit, is_evidence
from suffice.control.evidence.run_join import LabelJoin, StartOrder, UnreturnedAudits, remember
from suffice.rollout.evidence import ArmName, RolloutEvidence, UnitRun, Z
from suffice.rollout.results import ArmEvidence
from suffice.rollout.stages import State
from suffice.signals.query import class_of
from suffice.store.database.log import StoredEvent
from suffice.store.database.views import StoredLabel
from suffice.store.routes.rollouts import RolloutRun
from suffice.store.rows.events import FeedbackEvent, RequestCount, RolloutMove
from suffice.types import Episode, Outcome, Request

ReplayedPair: TypeAlias = Mapping[str, ArmEvidence]  # "candidate" and "in force"
# Audits, and the level of the candidate that could have served each, to their pairs; None: there is none.
Replay: TypeAlias = Callable[[Sequence[Audit], Sequence[int]], Sequence[ReplayedPair | None]]
Watch: TypeAlias = Callable[[Sequence[Audit]], set[str]]  # returns the episodes whose labels can still change a result
Judge: TypeAlias = Callable[[Sequence[Audit], Mapping[str, ReplayedPair], set[str]], Mapping[str, ReplayedPair]]


@dataclass(slots=True)
class _LiveRun:
    unit: str
    arm: ArmName
    episode: Episode
    labels: tuple[StoredLabel, ...] = ()


@dataclass(slots=True)
class _LiveUnits:
    known: set[str] = field(default_factory=set)
    rated: set[str] = field(default_factory=set)
    runs: dict[str, _LiveRun] = field(default_factory=dict)  # by episode
    right: dict[str, tuple[str, ArmName, str, bool]] = field(default_factory=dict)  # by unit: episode, arm, class

    def mark(self, name: str, live: _LiveRun, match: Match) -> None:
        """Count a unit for EM by its first labelled run; a later label of that run replaces the earlier one."""
        known = self.right.get(live.unit)
        if known is not None and known[0] != name:
            return
        right = measure_run(live, match).correct
        if right is not None:
            self.right[live.unit] = name, live.arm, class_of(live.episode.request.query), right

    def cells(self) -> tuple[Cell, ...]:
        n = Counter((query_class, arm, right) for _, arm, query_class, right in self.right.values())
        return tuple(
            Cell(
                query_class=name,
                n_full=n[name, "control", True] + n[name, "control", False],
                n_full_right=n[name, "control", True],
                n_stopping=n[name, "candidate", True] + n[name, "candidate", False],
                n_stopping_right=n[name, "candidate", True],
            )
            for name in sorted({query_class for query_class, _, _ in n})
        )


@dataclass(slots=True)
class _Audits:
    new: dict[str, Audit] = field(default_factory=dict)  # not replayed yet
    levels: dict[str, int] = field(default_factory=dict)  # of the candidate, when each new one began
    differing: dict[str, ReplayedPair] = field(default_factory=dict)  # on which the versions differ
    watched: dict[str, Audit] = field(default_factory=dict)  # whose labels can still change a result


class EvidenceFold:
    """The evidence of one rollout from its first row on; for `probes` see `audits.audited_at`."""

    def __init__(self, *, held: RolloutRun, match: Match, probes: bool) -> None:
        self.held = held
        self.match = match
        self.probes = probes
        self.seq, self.n = held.seq, 0
        self.callers: set[str] = set()
        self.windows = Windows()
        self._state = held.first
        self._evidence = RolloutEvidence()
        self._starts = StartOrder()
        self._unreturned = UnreturnedAudits()
        self._labels = LabelJoin()
        self._states: dict[str, State] = {}  # of the rollout when a run began, by episode
        self._live, self._audits = _LiveUnits(), _Audits()

    @property
    def watched(self) -> dict[str, Audit]:
        return self._audits.watched

    @property
    def pending(self) -> PendingAudits:
        return self._unreturned.with_earlier()

    # ---- rows ------------------------------------------------------------------------------------

    def feed(self, stored: StoredEvent) -> None:
        if stored.seq <= self.seq:
            return
        self.seq, event = stored.seq, stored.event
        if isinstance(event, Request):
            self._begin_run(event)
        elif isinstance(event, Outcome):
            self._end_run(event, stored)
        elif isinstance(event, RequestCount):
            self._count_requests(event)
        elif isinstance(event, FeedbackEvent):
            label = StoredLabel(stored.seq, event.feedback, stored.at_s)
            name = self._labels.find_episode(label)
            if name is not None:
                self._note_label(name, label)
        elif isinstance(event, RolloutMove) and event.transition.rollout == self._state.rollout:
            self._state = self._state.after(event.transition)

    def _begin_run(self, request: Request) -> None:
        if request.sender:
            self.callers.add(request.sender)
        if request.route != self._state.route or request.ungoverned is not None:
            return
        self.n += 1
        self._evidence = self._evidence.with_request(class_of(request.query))
        self._starts.began(request, self.n)
        self._unreturned.began(request, self.n, probes=self.probes, windows=self.windows)
        remember(self._states, request.episode_id, self._state)

    def _count_requests(self, counted: RequestCount) -> None:
        self.callers.update(counted.senders)
        if counted.route != self._state.route:
            return
        if counted.audit_share is not None:
            self.windows.lower(self.n + 1.0, counted.audit_share)
        self.n += counted.n_governed
        for cell in counted.cells:
            if not cell.ungoverned:
                self._evidence = self._evidence.with_request(cell.query_class, cell.n)

    def _end_run(self, outcome: Outcome, stored: StoredEvent) -> None:
        run, state = self._starts.ended(outcome), self._states.pop(outcome.episode_id, self._state)
        self._unreturned.ended(outcome.episode_id)
        if run is None or run.episode is None:
            return
        request, at = run.request, run.number
        waiting = self._labels.ended(outcome)
        if is_evidence(request, outcome, probes=self.probes):
            audit = Audit(seq=stored.seq, at=at, ended_at_s=stored.at_s, episode=run.episode)
            self._audits.new[audit.id], self._audits.levels[audit.id] = audit, state.level
        experiment = f"rollout {self._state.rollout}"
        drawn = next((one for one in request.arms if one.experiment == experiment), None)
        # An audit runs in full and counts for no arm.
        if drawn is not None and not request.audit and state.counts(at, request.received_at_s, self.held.rules):
            arm: ArmName = "candidate" if drawn.arm == "candidate" else "control"
            if drawn.unit not in self._live.known:
                self._live.known.add(drawn.unit)
                self._evidence = self._evidence.with_run(arm, _unit_run(run.episode), self.held.rules)
            slim = Episode(request=request, outcome=replace(outcome, steps=()))
            self._live.runs[outcome.episode_id] = _LiveRun(drawn.unit, arm, slim)
        for label in waiting:
            self._note_label(outcome.episode_id, label)

    def _note_label(self, name: str, label: StoredLabel) -> None:
        for audits in (self._audits.new, self._audits.watched):
            if name in audits:
                audits[name] = audits[name].with_labels([label], self.n)
        live = self._live.runs.get(name)
        if live is None:
            return
        live.labels = (*live.labels, label)
        rating = satisfaction_of_people(label.feedback)
        if rating is not None and live.unit not in self._live.rated:  # ratings count in the order of the log
            self._live.rated.add(live.unit)
            self._evidence = self._evidence.with_rating(live.arm, rating)
        self._live.mark(name, live, self.match)

    # ---- evidence --------------------------------------------------------------------------------

    def evidence(self, replay: Replay, judge: Judge, watch: Watch = lambda _: set()) -> RolloutEvidence:
        """Sum up the evidence; `replay` and `judge` turn new audits into pairs, `watch` returns awaited episodes."""
        self._take(replay, watch)
        differing = self._audits.differing
        audits = [self._audits.watched[name] for name in differing]
        judged = judge(audits, differing, self.callers)
        evidence = replace(self._evidence, labelled=self._live.cells())
        for audit in audits:
            z = loss(judged.get(audit.id, differing[audit.id]))
            if z is not None:
                evidence = evidence.with_label(audit.query_class, z)
        return evidence

    def _take(self, replay: Replay, watch: Watch) -> None:
        audits, levels = list(self._audits.new.values()), list(self._audits.levels.values())
        self._audits.new, self._audits.levels = {}, {}
        awaited = watch(audits)
        for audit, pair in zip(audits, replay(audits, levels), strict=True):
            if audit.id in awaited:
                self._audits.watched[audit.id] = audit
            if pair is None:
                continue
            usage, z = audit.outcome.usage, loss(pair)
            full = usage.completion_tokens if usage is not None else 0
            self._evidence = self._evidence.with_audit(
                audit.query_class,
                z,
                full=full + undrawn_tokens(audit.episode.request, audit.outcome),
                active=pair["in force"].tokens,
                candidate=pair["candidate"].tokens,
            )
            if z is None:
                self._audits.watched[audit.id], self._audits.differing[audit.id] = audit, pair

    def unjudged(self) -> list[tuple[Audit, ReplayedPair]]:
        pairs = [(self._audits.watched[name], pair) for name, pair in self._audits.differing.items()]
        return [(audit, pair) for audit, pair in pairs if not audit.labels]


def _unit_run(episode: Episode) -> UnitRun:
    outcome = episode.outcome
    ended = outcome.end_reason in ENDED
    return UnitRun(
        query_class=class_of(episode.request.query),
        seconds=outcome.duration_s if ended else None,
        error=outcome.end_reason in BAD_ENDS,
        no_answer=ended and outcome.answer is None,
    )


def loss(pair: ReplayedPair) -> Z | None:
    """EM of the active version minus the candidate's, of which an unknown one is a loss; None: unlabelled."""
    candidate, active = pair["candidate"], pair["in force"]
    if not candidate.seen:
        return 1 if active.seen else 0
    if (
        candidate.answer == active.answer
        or not active.seen
        or (candidate.right is not None and candidate.right == active.right)
    ):
        return 0
    if candidate.right is None or active.right is None:
        return None
    return -1 if candidate.right else 1
