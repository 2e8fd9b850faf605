"""Incidents: something that a person has to decide, what it stands on, and what was decided.

    Incident (evidence) ──▶ enforcement rests ──▶ IncidentDecision: resume, tighten, roll back or accept ──▶ its effect

Pure: knows records; refuses to know logs and clocks. What a decision does is written beside it, in the same
transaction: the end of the pause, an override with its expiry.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, get_args

from suffice.types import Pause, Resumption

IncidentCause: TypeAlias = Literal["critical_em", "sample_ratio", "person"]
DecisionKind: TypeAlias = Literal[
    "resume",  # what is certified acts again
    "tighten",  # it does, under a smaller EM budget or below a level
    "roll_back",  # an earlier publication acts
    "accept",  # it goes on with what was found, which opens no incident again until a date
]
DECISIONS: Final[tuple[DecisionKind, ...]] = get_args(DecisionKind)


@dataclass(frozen=True, slots=True, kw_only=True)
class Incident:
    incident: str  # its name: `ROUTE:p3` for the route's third pause, `ROUTE:m1` by hand
    route: str
    cause: IncidentCause
    summary: str  # one sentence
    evidence: tuple[str, ...]  # what it stands on, a sentence each
    pause: int | None  # number of the pause that it came with; None: enforcement goes on
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
    override: int | None = None  # number of the override that carries it out; None: none does
    until_s: float | None = None  # accept: Unix time until which it opens no incident again
    before: str = ""  # what held before, in words
    after: str = ""  # what holds now, in words


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    incident: Incident
    decision: IncidentDecision | None = None
    resumed: Resumption | None = None  # its pause was ended by `suffice resume`; None: it was not

    @property
    def is_open(self) -> bool:
        return self.decision is None and self.resumed is None


def of_pause(pause: Pause, *, opened_at_s: float, evidence: tuple[str, ...] = ()) -> Incident:
    return Incident(
        incident=pause_name(pause.route, pause.number),
        route=pause.route,
        cause=pause.cause,
        summary=pause.reason,
        evidence=evidence,
        pause=pause.number,
        opened_at_s=opened_at_s,
        author=pause.author,
    )


def pause_name(route: str, number: int) -> str:
    return f"{route}:p{number}"


def name_by_hand(route: str, number: int) -> str:
    return f"{route}:m{number}"
