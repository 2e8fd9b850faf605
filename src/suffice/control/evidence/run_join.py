"""Joins a run's request, outcome and labels in any order, in bounded memory: a forgotten run joins nothing."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple, TypeVar

import numpy as np

from suffice.assurance.certify import Windows
from suffice.assurance.runs import is_audit
from suffice.certification.certificate import PendingAudits, pending_audits
from suffice.control.evidence.audits import audited_at
from suffice.store.database.views import StoredLabel
from suffice.types import Episode, Feedback, Outcome, Request

MOST_OPEN: Final = 200_000  # requests without an outcome that are remembered
MOST_LATE: Final = 2_000  # requests that may begin while a run continues, before the order of starts skips it
MOST_RUNS: Final = 50_000  # whose delivered answer is remembered, and whose repeats are found
MOST_WAITING: Final = 10_000  # names that labels wait under
MOST_DELAYS: Final = 500  # latest label delays from which a time-out is learnt
SHARE: Final = 0.95  # of them within the time-out, before its margin
MARGIN: Final = 1.25

V = TypeVar("V")


def remember(kept: dict[str, V], name: str, value: V, most: int = MOST_OPEN) -> None:
    kept[name] = value
    if len(kept) > most:
        del kept[next(iter(kept))]


@dataclass(slots=True)
class OpenRun:
    request: Request
    number: int  # among the requests of its route
    episode: Episode | None = None  # once it has ended


@dataclass(slots=True)
class StartOrder:
    """The requests of one epoch in the order of their starts, kept until `take_ended` if `keeps_ended`."""

    keeps_ended: bool = False
    _open: dict[str, OpenRun] = field(default_factory=dict)
    _line: dict[str, OpenRun] = field(default_factory=dict)

    def began(self, request: Request, number: int) -> None:
        run = OpenRun(request, number)
        remember(self._open, request.episode_id, run)
        if self.keeps_ended:
            self._line[request.episode_id] = run

    def ended(self, outcome: Outcome) -> OpenRun | None:
        """Note the end of a run; None: it did not begin in this epoch."""
        run = self._open.pop(outcome.episode_id, None)
        if run is not None:
            run.episode = Episode(request=run.request, outcome=outcome)
        return run

    def take_ended(self, now: int) -> Iterator[Episode]:
        """Yield runs in the order of starts, up to the first still running; MOST_LATE later starts skip that one."""
        while self._line:
            name, run = next(iter(self._line.items()))
            if run.episode is None and run.number + MOST_LATE > now:
                return
            del self._line[name]
            if run.episode is not None:
                yield run.episode


@dataclass(slots=True)
class RepeatedDeliveries:
    """Finds repeats that a second replica took for a first delivery, at the same moment: one draw counts once."""

    repeats: dict[str, None] = field(default_factory=dict)  # their episodes
    _units: dict[str, None] = field(default_factory=dict)

    def numbered(self, request: Request) -> Request:
        if request.delivery > 1 or not request.unit:
            return request
        if request.unit in self._units:
            remember(self.repeats, request.episode_id, None, MOST_RUNS)
            return replace(request, delivery=2)
        remember(self._units, request.unit, None, MOST_RUNS)
        return request


@dataclass(slots=True)
class UnreturnedAudits:
    """Audits that have begun and not returned: until then they count as lost, or easy audits would count first.

    most  of them whose return is awaited; one that is older than these stays lost, as it would if it never returned
    """

    most: int = MOST_OPEN
    observes: bool = False  # whether the latest request was in observe mode
    _begun: dict[str, tuple[int, float]] = field(default_factory=dict)  # number, and share when drawn, by episode
    _lost: list[tuple[int, float]] = field(default_factory=list)

    def began(self, request: Request, number: int, *, probes: bool, windows: Windows, most: float = 1.0) -> None:
        """Note a request at its start, if it is an audit; `windows` note the share at which it was drawn.

        most  share that windows note: in doubt the share depends on outcomes, so its audits begin no window
        """
        if request.delivery > 1:
            return  # a repeat runs in full, whatever the draw of the first delivery
        share = audited_at(request, probes=probes)
        self.observes = request.mode == "observe"
        windows.note(float(number), share if self.observes else min(share, most))
        if is_audit(request, probes=probes):
            self._begun[request.episode_id] = number, share
            if len(self._begun) > self.most:
                self._lost.append(self._begun.pop(next(iter(self._begun))))

    def ended(self, episode_id: str) -> None:
        self._begun.pop(episode_id, None)

    def pairs(self, earlier: Iterable[tuple[int, float]] = ()) -> tuple[tuple[int, float], ...]:
        """Number and share of each of these audits, after those that an earlier epoch left pending."""
        return (*earlier, *self._lost, *self._begun.values())

    def with_earlier(self, earlier: Iterable[tuple[int, float]] = ()) -> PendingAudits:
        return pending_audits(self.pairs(earlier))


@dataclass(slots=True)
class LabelJoin:
    """Finds the run of a label by episode or response id; an id that two answers share identifies neither."""

    most: int = MOST_RUNS  # latest runs that labels find
    answers: dict[str, str | None] = field(default_factory=dict)  # delivered, by episode
    weights: dict[str, float] = field(default_factory=dict)  # of runs that stand for more than one
    _episodes: dict[str, str | None] = field(default_factory=dict)  # by response id
    _waiting: dict[str, list[StoredLabel]] = field(default_factory=dict)

    def ended(self, outcome: Outcome, weight: float = 1.0) -> list[StoredLabel]:
        """Note the end of a run; return the labels that were waiting for it."""
        name, response = outcome.episode_id, outcome.response_id
        if weight != 1:
            remember(self.weights, name, weight, self.most)
        remember(self.answers, name, outcome.answer, self.most)
        waiting = self._waiting.pop(name, [])
        if response is not None:
            known = self._episodes.get(response, name)
            remember(self._episodes, response, name if known == name else None, self.most)
            if self._episodes[response] == name:
                waiting += self._waiting.pop(_by_response(response), [])
        return sorted(waiting, key=lambda label: label.seq)

    def find_episode(self, label: StoredLabel) -> str | None:
        """The ended episode of a label; None: the label waits, or its run is ambiguous."""
        name = self._name(label.feedback)
        if name is not None and name in self.answers:
            return name
        response = label.feedback.response_id
        under = name or (_by_response(response) if response is not None else "")
        if response is None or response not in self._episodes or name is not None:
            remember(self._waiting, under, [*self._waiting.get(under, ()), label], MOST_WAITING)
        return None

    def _name(self, given: Feedback) -> str | None:
        if given.episode_id is not None:
            return given.episode_id
        return self._episodes.get(given.response_id) if given.response_id is not None else None


def _by_response(response: str) -> str:
    return f"response {response}"


@dataclass(slots=True)
class LabelDelay:
    """The usual delay of a label: as configured, else learnt from those that arrived.

    The loop's time is the number of requests, so delays are converted by the log's times of requests; where its clock
    stepped back they do not move.
    """

    fixed_s: float | None = None  # as configured; None: learnt
    _delays_s: deque[float] = field(default_factory=lambda: deque(maxlen=MOST_DELAYS))
    _at_s: list[float] = field(default_factory=list)  # ascending
    _n: list[int] = field(default_factory=list)  # requests of the route at that time

    def note_look(self, at_s: float, n: int) -> None:
        self._at_s.append(max(at_s, self._at_s[-1]) if self._at_s else at_s)
        self._n.append(n)

    def note_label(self, delay_s: float) -> None:
        self._delays_s.append(max(0.0, delay_s))

    @property
    def timeout_s(self) -> float:
        """Seconds within which a label normally arrives; 0 before the first."""
        if self.fixed_s is not None:
            return self.fixed_s
        return MARGIN * float(np.quantile(np.array(self._delays_s), SHARE)) if self._delays_s else 0.0

    def timeout_requests(self, *, since: int) -> float:
        """The time-out in requests; `since` is the request at which the epoch began."""
        if not self._n:
            return 0.0
        before = bisect_right(self._at_s, self._at_s[-1] - self.timeout_s)
        return float(self._n[-1] - (self._n[before - 1] if before else since))


# --------------------------------------------------------------------------- audits that died with their gateway


class Gap(NamedTuple):
    """Requests, by number, that no claim is about: those that began while a run was open that died."""

    first: int
    last: int


@dataclass(slots=True)
class GatewayDeaths:
    """At most one death in `every` requests makes a gap, or a client that can end gateways could hide its losses."""

    gap: Gap | None = None  # the latest

    def note(self, number: int, *, now: int, every: float) -> Gap | None:
        """Note that audit `number` died, by the time of request `now`; None: it counts as lost."""
        gap = self.gap
        if gap is None or (number > gap.last and now >= gap.last + every):
            self.gap = Gap(number, now)
        elif number <= gap.last:  # it was open when the first one died
            self.gap = Gap(min(number, gap.first), gap.last)
        else:
            return None
        return self.gap
