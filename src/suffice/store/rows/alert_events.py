"""What was told to people outside of the log, and what is told that no other row says, as rows of the log.

    AlertSent      a sink was told of an event, or began to listen; it is told of what stands behind that place
    FailOpenHigh   many runs of a route failed open within an hour

A sink that was told holds no words of anybody: they stand in the row that it was told of.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from suffice.store.rows.route_event import OfNoEpisode


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertDelivery:
    """One notice that a sink took."""

    sink: str  # log, webhook or email
    read_to_seq: int  # place in the log of the event that it was told of: it knows all that stands before
    of: str  # kind of the notice; "": it began to listen here
    same: str  # what makes two notices the same; "": it began to listen here
    about_s: float  # Unix time at which the log took the event
    over: int = 0  # place in the log of an alert that it was told is over; 0: it was told of an event


@dataclass(frozen=True, slots=True)
class AlertSent(OfNoEpisode):
    """A sink was told of an event."""

    kind: ClassVar[Literal["alert_sent"]] = "alert_sent"
    telling: AlertDelivery

    @property
    def key(self) -> str:
        """What may exist once: a notice of a place, or of an end told there, to a sink. Sorted by text in order."""
        place = f"{self.telling.sink}:{self.telling.read_to_seq:015}"
        return f"{place}:over:{self.telling.over:015}" if self.telling.over else place

    @property
    def route(self) -> str | None:
        """None: the row that it was told of says it."""
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedOpen:
    """How often Suffice failed open on a route within an hour."""

    route: str
    hour: int  # since 1970
    n_runs: int
    n_degraded: int  # of them, in which it failed open somewhere: they ran in full


@dataclass(frozen=True, slots=True)
class FailOpenHigh(OfNoEpisode):
    """Many runs of a route failed open within an hour."""

    kind: ClassVar[Literal["fail_open_high"]] = "fail_open_high"
    failed: FailedOpen

    @property
    def key(self) -> str:
        """What may exist once: a route's hour."""
        return f"{self.failed.route}:{self.failed.hour:09}"

    @property
    def route(self) -> str | None:
        """The route's name."""
        return self.failed.route
