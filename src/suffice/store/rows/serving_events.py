"""What a gateway served when it could not serve what the log says, as rows of the log.

    VersionRefused  a version that is in force cannot be loaded: the last good one stays, or all runs in full
    LogMissed       a gateway had no log that it could read for a while, and says afterwards what it served

It refuses to know who is told of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from suffice.store.rows.route_event import OfNoEpisode


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionRefusal:
    """A version that is in force and that a gateway cannot serve."""

    route: str
    number: int  # of the publication; 0: a rollout has brought it to everybody
    fit: str  # address of the version
    reason: str  # why, as a sentence
    serves: str  # what the route is served by instead, in words


@dataclass(frozen=True, slots=True)
class VersionRefused(OfNoEpisode):
    """A version cannot be loaded; gateways that see the same write one row."""

    kind: ClassVar[Literal["version_refused"]] = "version_refused"
    refusal: VersionRefusal

    @property
    def key(self) -> str:
        """What may exist once: the refusal of a publication, or of what a rollout has brought."""
        return f"{self.refusal.route}:{self.refusal.number or self.refusal.fit}"

    @property
    def route(self) -> str | None:
        """The route's name."""
        return self.refusal.route


@dataclass(frozen=True, slots=True, kw_only=True)
class LogOutage:
    """A time in which a gateway had no log."""

    gateway: str  # which, by a name that no other has
    since_s: float  # Unix time
    until_s: float  # Unix time
    reason: str  # why the log could not be read
    after: str  # what was served meanwhile, in words
    n_rows: int  # that waited, and were written afterwards
    n_dropped: int  # that found no place to wait


@dataclass(frozen=True, slots=True)
class LogMissed(OfNoEpisode):
    """A gateway served without its log, and has it again."""

    kind: ClassVar[Literal["log_missed"]] = "log_missed"
    missing: LogOutage

    @property
    def key(self) -> str:
        """What may exist once: a gateway's time without a log."""
        return f"{self.missing.gateway}:{self.missing.since_s:.3f}"

    @property
    def route(self) -> str | None:
        """None: it is about all routes."""
        return None
