"""What people hold and decide on a route, as rows of the log: overrides, incidents and their decisions.

    OverrideSet, OverrideEnded        a route or a class is held back for a while, and is not any more
    IncidentOpened, IncidentDecided   something is wrong, and what a person decided

Keys are made of what was decided: of two people who decide the same thing at once, the first one's row stands.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from suffice.review.holds import Incident, IncidentDecision, Override, OverrideEnd
from suffice.store.rows.route_event import OfNoEpisode


@dataclass(frozen=True, slots=True)
class OverrideSet(OfNoEpisode):
    """A person holds something on a route until a date."""

    kind: ClassVar[Literal["override_set"]] = "override_set"
    override: Override

    @property
    def key(self) -> str:
        """What may exist once: a route's override of that number."""
        return f"{self.override.route}:{self.override.number}"

    @property
    def route(self) -> str | None:
        """The route's name."""
        return self.override.route


@dataclass(frozen=True, slots=True)
class OverrideEnded(OfNoEpisode):
    """A person ended an override before its time."""

    kind: ClassVar[Literal["override_ended"]] = "override_ended"
    end: OverrideEnd

    @property
    def key(self) -> str:
        """What may exist once: the end of a route's override of that number."""
        return f"{self.end.route}:{self.end.number}"

    @property
    def route(self) -> str | None:
        """The route's name."""
        return self.end.route


@dataclass(frozen=True, slots=True)
class IncidentOpened(OfNoEpisode):
    """Something is wrong on a route, and a person has to decide."""

    kind: ClassVar[Literal["incident_opened"]] = "incident_opened"
    incident: Incident

    @property
    def key(self) -> str:
        """What may exist once: an incident of that name."""
        return self.incident.incident

    @property
    def route(self) -> str | None:
        """The route's name."""
        return self.incident.route


@dataclass(frozen=True, slots=True)
class IncidentDecided(OfNoEpisode):
    """A person decided what becomes of an incident."""

    kind: ClassVar[Literal["incident_decided"]] = "incident_decided"
    decision: IncidentDecision

    @property
    def key(self) -> str:
        """What may exist once: an incident is decided once."""
        return self.decision.incident

    @property
    def route(self) -> str | None:
        """The route's name."""
        return self.decision.route
