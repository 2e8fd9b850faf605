"""Overrides, pauses and incidents of a route, as a pure fold over events."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, TypeAlias, get_args

from suffice.types import Epoch, EvidenceSummary, Pause, Publication, Resumption

OverrideKind: TypeAlias = Literal[
    "pin",  # serve this level, or this earlier publication
    "cap",  # no level above this one
    "observe",  # every request runs in full
    "budget",  # a smaller EM budget than the settings'
]
DAY_S: Final = 86_400.0
MOST_DAYS: Final = 30
_ALMOST: Final = 1e-12  # tolerance for a guarantee that was written and read again


@dataclass(frozen=True, slots=True, kw_only=True)
class Override:
    route: str
    number: int  # of the route's overrides, from 1
    kind: OverrideKind
    reason: str
    author: str
    set_at_s: float  # Unix time
    expires_at_s: float  # Unix time, at most 30 days later
    query_class: str | None = None  # None: the whole route
    level: int | None = None  # pin, cap
    max_em_drop: float | None = None  # budget: a fraction
    pinned: Publication | None = None  # pin: what is served; None: the active publication, at `level`
    incident: str = ""  # the incident that led to it; "": none
    before: str = ""  # the state before, in words
    after: str = ""  # the state after, in words


@dataclass(frozen=True, slots=True, kw_only=True)
class OverrideEnd:
    route: str
    number: int
    reason: str
    author: str
    ended_at_s: float  # Unix time
    before: str = ""  # the state before, in words
    after: str = ""  # the state after, in words


@dataclass(frozen=True, slots=True, kw_only=True)
class ActiveOverrides:
    observe: str | None = None  # why every request runs in full; None: not so
    ceiling: int | None = None  # the highest level allowed; None: no cap
    classes: Mapping[str, int] = field(default_factory=dict)  # ceilings of classes; 0: they run in full
    pin: Override | None = None  # the latest for the whole route
    max_em_drop: float | None = None  # the smallest; None: the settings' own
    until_s: float | None = None  # when the first of them ends; None: there are none

    def ceiling_of(self, query_class: str) -> int | None:
        """The highest level for a query class; None: no limit."""
        return lowest(self.ceiling, self.classes.get(query_class))

    def budget(self, max_em_drop: float) -> float:
        return max_em_drop if self.max_em_drop is None else min(max_em_drop, self.max_em_drop)


NO_OVERRIDES: Final = ActiveOverrides()


def lowest(*levels: int | None) -> int | None:
    return min((level for level in levels if level is not None), default=None)


def unexpired(overrides: Iterable[Override], now_s: float) -> list[Override]:
    return sorted((one for one in overrides if now_s < one.expires_at_s), key=lambda one: one.number)


def in_effect(overrides: Iterable[Override], now_s: float) -> ActiveOverrides:
    live = unexpired(overrides, now_s)
    if not live:
        return NO_OVERRIDES
    whole = [one for one in live if one.query_class is None]
    latest = {one.kind: one for one in whole}
    observe, pin = latest.get("observe"), latest.get("pin")
    classes: dict[str, int] = {}
    for one in live:
        if one.query_class is not None:
            most = lowest(classes.get(one.query_class), 0 if one.kind == "observe" else one.level)
            classes |= {} if most is None else {one.query_class: most}
    caps = [one.level for one in whole if one.kind == "cap"]
    return ActiveOverrides(
        observe=None if observe is None else f"override {observe.number} by {observe.author}: {observe.reason}",
        ceiling=lowest(*caps, None if pin is None else pin.level, None if observe is None else 0),
        classes=classes,
        pin=pin,
        max_em_drop=min((one.max_em_drop or 1.0 for one in live if one.kind == "budget"), default=None),
        until_s=min(one.expires_at_s for one in live),
    )


def proves(evidence: EvidenceSummary, *, max_em_drop: float, confidence: float) -> bool:
    """Whether evidence proves at least this guarantee; evidence that does not say what it proves, proves none."""
    if evidence.max_em_drop is None or evidence.confidence is None:
        return False
    return evidence.max_em_drop <= max_em_drop + _ALMOST and evidence.confidence >= confidence - _ALMOST


def pin_problem(
    made: Publication, *, epoch: Epoch | None, max_em_drop: float, confidence: float, setup: str | None
) -> str | None:
    """Why a publication may not be served here and now; None: it may. An unknown `setup` is not compared."""
    evidence = made.evidence
    if not made.certified or made.level < 1:
        return f"publication {made.number} certifies no level"
    if epoch is None or made.epoch != epoch.number:
        now = "no epoch has begun" if epoch is None else f"epoch {epoch.number} began since: {epoch.reason}"
        return f"publication {made.number} is of epoch {made.epoch}, and {now}"
    if evidence.max_em_drop is None or evidence.confidence is None:
        return f"publication {made.number} does not say what it proves"
    if not proves(evidence, max_em_drop=max_em_drop, confidence=confidence):
        return (
            f"publication {made.number} proves a drop below {100 * evidence.max_em_drop:g} points at"
            f" {evidence.confidence:.0%}, and the route promises {100 * max_em_drop:g} points at {confidence:.0%}"
        )
    if setup and made.setup != setup:
        return f"publication {made.number} was gathered on other settings of the route ({made.setup})"
    return None


def override_problem(one: Override) -> str | None:
    """What is wrong with an override on any route, as a sentence; None: nothing."""
    if not one.reason.strip() or not one.author.strip():
        return "an override needs an author and a reason"
    lasts_s = one.expires_at_s - one.set_at_s
    if not 0 < lasts_s <= MOST_DAYS * DAY_S:
        return f"expires in {lasts_s / DAY_S:g} days; more than 0 and at most {MOST_DAYS} days from now"
    if one.kind in ("cap", "pin") and (one.level is None or one.level < 0):
        return f"{one.kind}: got level {one.level}; at least 0, which never stops"
    if one.kind == "budget" and (one.max_em_drop is None or not 0 < one.max_em_drop < 1):
        return f"budget: got {one.max_em_drop}; a fraction above 0 and below 1 (1 point of EM = 0.01)"
    if one.query_class is not None and one.kind in ("pin", "budget"):
        return f"{one.kind}: is about a whole route; for a class of questions use cap or observe"
    return None


def describe_override(one: Override) -> str:
    where = "" if one.query_class is None else f" for the class {one.query_class!r}"
    if one.kind == "observe":
        return f"everything runs in full{where}"
    if one.kind == "budget":
        return f"an EM budget of {100 * (one.max_em_drop or 0):g} points"
    if one.kind == "cap":
        return f"level {one.level} at most{where}"
    return f"level {one.level}" if one.pinned is None else f"publication {one.pinned.number}, level {one.level}"


IncidentCause: TypeAlias = Literal["critical_em", "sample_ratio", "person"]
DecisionKind: TypeAlias = Literal[
    "resume",  # certified levels act again
    "tighten",  # they do, under a smaller EM budget or level cap
    "roll_back",  # an earlier publication acts
    "accept",  # it continues as it is, and the cause opens no incident until a date
]
DECISIONS: Final[tuple[DecisionKind, ...]] = get_args(DecisionKind)


@dataclass(frozen=True, slots=True, kw_only=True)
class Incident:
    incident: str  # its name: `ROUTE:p3` for the route's third pause, `ROUTE:m1` by hand
    route: str
    cause: IncidentCause
    summary: str  # one sentence
    evidence: tuple[str, ...]  # one sentence each
    pause: int | None  # number of its pause; None: enforcement continues
    opened_at_s: float  # Unix time
    author: str  # a worker, or a person


@dataclass(frozen=True, slots=True, kw_only=True)
class IncidentDecision:
    incident: str
    route: str
    decision: DecisionKind
    reason: str
    author: str
    decided_at_s: float  # Unix time
    override: int | None = None  # number of the override that implements it; None: none
    until_s: float | None = None  # accept: Unix time until which it opens no incident again
    before: str = ""  # the state before, in words
    after: str = ""  # the state after, in words


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    incident: Incident
    decision: IncidentDecision | None = None
    resumed: Resumption | None = None  # its pause ended by `suffice resume`; None: it did not

    @property
    def name(self) -> str:
        return self.incident.incident

    @property
    def is_open(self) -> bool:
        return self.decision is None and self.resumed is None


def incident_of_pause(pause: Pause, *, opened_at_s: float, evidence: tuple[str, ...] = ()) -> Incident:
    return Incident(
        incident=f"{pause.route}:p{pause.number}",
        route=pause.route,
        cause=pause.cause,
        summary=pause.reason,
        evidence=evidence,
        pause=pause.number,
        opened_at_s=opened_at_s,
        author=pause.author,
    )


HoldEvent: TypeAlias = Override | OverrideEnd | Incident | IncidentDecision | Pause | Resumption


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteHolds:
    overrides: tuple[Override, ...] = ()  # not ended by a person, expired or not; oldest first
    ended: tuple[tuple[Override, OverrideEnd], ...] = ()  # ended by a person
    cases: tuple[Case, ...] = ()  # oldest first
    n_overrides: int = 0  # overrides so far
    n_manual: int = 0  # incidents that people opened
    pause: Pause | None = None  # not ended

    def in_effect(self, now_s: float) -> ActiveOverrides:
        return in_effect(self.overrides, now_s)

    def override(self, number: int) -> Override | None:
        return next((one for one in self.overrides if one.number == number), None)

    def case(self, incident: str) -> Case | None:
        return next((one for one in self.cases if one.name == incident), None)

    @property
    def open_cases(self) -> tuple[Case, ...]:
        return tuple(one for one in self.cases if one.is_open)

    def accepted(self, now_s: float) -> IncidentDecision | None:
        """The decision that accepts a critical EM at that time; None: there is none."""
        decisions = [one.decision for one in reversed(self.cases) if one.decision is not None]
        return next((one for one in decisions if one.until_s is not None and now_s < one.until_s), None)

    def after(self, record: HoldEvent, at_s: float) -> RouteHolds:
        """The state after one more row, which the log received at `at_s`, because a pause holds no time."""
        if isinstance(record, Override):
            if record.number <= self.n_overrides:
                return self
            return replace(self, overrides=(*self.overrides, record), n_overrides=record.number)
        if isinstance(record, OverrideEnd):
            return self._ended(record)
        if isinstance(record, Incident):
            return self._opened(record)
        if isinstance(record, IncidentDecision):
            return self._change(lambda one: one.name == record.incident and one.decision is None, decision=record)
        if isinstance(record, Pause):
            known = self if record.cause == "person" else self._opened(incident_of_pause(record, opened_at_s=at_s))
            return replace(known, pause=record)
        return self._resumed(record)

    def _ended(self, end: OverrideEnd) -> RouteHolds:
        if (override := self.override(end.number)) is None:
            return self
        left = tuple(one for one in self.overrides if one is not override)
        return replace(self, overrides=left, ended=(*self.ended, (override, end)))

    def _opened(self, incident: Incident) -> RouteHolds:
        n_manual = self.n_manual + (incident.cause == "person")
        if self.case(incident.incident) is None:
            return replace(self, cases=(*self.cases, Case(incident=incident)), n_manual=n_manual)
        return self._change(lambda one: bool(incident.evidence) and one.name == incident.incident, incident=incident)

    def _resumed(self, end: Resumption) -> RouteHolds:
        known = self._change(
            lambda one: one.is_open and one.incident.pause is not None and one.incident.pause <= end.number, resumed=end
        )
        pause = self.pause if self.pause is not None and self.pause.number > end.number else None
        return replace(known, pause=pause)

    def _change(self, applies: Callable[[Case], bool], **changes: Any) -> RouteHolds:
        return replace(self, cases=tuple(replace(one, **changes) if applies(one) else one for one in self.cases))


NO_HOLDS: Final = RouteHolds()
