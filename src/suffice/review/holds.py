"""All that people hold and have to decide on one route: a fold over overrides, incidents, pauses and their ends.

    Override, OverrideEnd, Incident, IncidentDecision, Pause, Resumption ──▶ RouteHolds.after ──▶ RouteHolds

Pure. A pause of the control loop without an incident row (a log of an earlier version) is an incident all the same; a
person's pause is none: whoever wrote it knows why.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, TypeAlias

from suffice.review.incident import Case, Incident, IncidentDecision, of_pause
from suffice.review.override import InEffect, Override, OverrideEnd, in_effect
from suffice.types import Pause, Resumption

Held: TypeAlias = Override | OverrideEnd | Incident | IncidentDecision | Pause | Resumption


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteHolds:
    overrides: tuple[Override, ...] = ()  # that nobody has ended, whether or not their time has come; oldest first
    ended: tuple[tuple[Override, OverrideEnd], ...] = ()  # that a person ended
    cases: tuple[Case, ...] = ()  # oldest first
    n_overrides: int = 0  # numbers that are taken
    n_by_hand: int = 0  # incidents that people opened
    pause: Pause | None = None  # that has not ended

    def in_effect(self, now_s: float) -> InEffect:
        return in_effect(self.overrides, now_s)

    def override(self, number: int) -> Override | None:
        """An override that nobody has ended; None: there is none of that number."""
        return next((one for one in self.overrides if one.number == number), None)

    def case(self, incident: str) -> Case | None:
        return next((one for one in self.cases if one.incident.incident == incident), None)

    @property
    def open_cases(self) -> tuple[Case, ...]:
        return tuple(one for one in self.cases if one.is_open)

    def accepted(self, now_s: float) -> IncidentDecision | None:
        """The decision by which a critical EM is accepted at that time; None: it is not."""
        found = [
            one.decision
            for one in self.cases
            if one.decision is not None
            and one.decision.decision == "accept"
            and one.decision.until_s is not None
            and now_s < one.decision.until_s
        ]
        return found[-1] if found else None

    def after(self, record: Held, at_s: float) -> RouteHolds:
        """What holds after one more row.

        at_s  Unix time at which the log took it: a pause does not say when it began
        """
        if isinstance(record, Override):
            if record.number <= self.n_overrides:
                return self
            return replace(self, overrides=(*self.overrides, record), n_overrides=record.number)
        if isinstance(record, OverrideEnd):
            return self._ended(record)
        if isinstance(record, Incident):
            return self._opened(record)
        if isinstance(record, IncidentDecision):
            return self._decided(record)
        if isinstance(record, Pause):
            known = self if record.cause == "person" else self._opened(of_pause(record, opened_at_s=at_s))
            return replace(known, pause=record)
        return self._resumed(record)

    def _ended(self, end: OverrideEnd) -> RouteHolds:
        found = self.override(end.number)
        if found is None:
            return self
        left = tuple(one for one in self.overrides if one is not found)
        return replace(self, overrides=left, ended=(*self.ended, (found, end)))

    def _opened(self, incident: Incident) -> RouteHolds:
        n_by_hand = self.n_by_hand + (incident.cause == "person")
        if self.case(incident.incident) is None:
            return replace(self, cases=(*self.cases, Case(incident=incident)), n_by_hand=n_by_hand)
        cases = tuple(
            replace(one, incident=incident) if one.incident.incident == incident.incident and incident.evidence else one
            for one in self.cases
        )
        return replace(self, cases=cases)

    def _decided(self, decision: IncidentDecision) -> RouteHolds:
        cases = tuple(
            replace(one, decision=decision)
            if one.incident.incident == decision.incident and one.decision is None
            else one
            for one in self.cases
        )
        return replace(self, cases=cases)

    def _resumed(self, end: Resumption) -> RouteHolds:
        cases = tuple(
            replace(one, resumed=end)
            if one.is_open and one.incident.pause is not None and one.incident.pause <= end.number
            else one
            for one in self.cases
        )
        pause = self.pause if self.pause is not None and self.pause.number > end.number else None
        return replace(self, cases=cases, pause=pause)


NO_HOLDS: Final = RouteHolds()
