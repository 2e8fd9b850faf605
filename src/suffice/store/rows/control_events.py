"""What the control loop and people decide, as rows of the log: one frozen record a kind.

    PolicyPublished        a version at a level is in force on a route
    EpochBegan             a route's evidence counts from here on, and its requests run in full for a while
    AlarmRaised            why an epoch ended
    EnforcementPaused, EnforcementResumed   a person has to decide, and has decided
    LabelWanted            a label of this episode is worth asking for
    JobRan                 history of the jobs that do all this

Keys are made of what was decided, not of who wrote it: two workers that decide the same write one row, and of
two that decide different things at the same place the first one stands.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from suffice.store.rows.route_event import OfNoEpisode
from suffice.types import Alarm, Epoch, JobRun, LabelRequest, Pause, Publication, Resumption


@dataclass(frozen=True, slots=True)
class PolicyPublished(OfNoEpisode):
    """A version at a level is in force on a route from here on."""

    kind: ClassVar[Literal["policy_published"]] = "policy_published"
    publication: Publication

    @property
    def key(self) -> str:
        """What may exist once: a route's publication of that number."""
        return f"{self.publication.route}:{self.publication.number}"

    @property
    def route(self) -> str | None:
        """The route's name."""
        return self.publication.route


@dataclass(frozen=True, slots=True)
class EpochBegan(OfNoEpisode):
    """What a route knew before belongs to another world; its next requests run in full."""

    kind: ClassVar[Literal["epoch_began"]] = "epoch_began"
    epoch: Epoch

    @property
    def key(self) -> str:
        """What may exist once: a route's epoch of that number."""
        return f"{self.epoch.route}:{self.epoch.number}"

    @property
    def route(self) -> str | None:
        """The route's name."""
        return self.epoch.route


@dataclass(frozen=True, slots=True)
class AlarmRaised(OfNoEpisode):
    """Something says that a route's certificate no longer fits its traffic."""

    kind: ClassVar[Literal["alarm_raised"]] = "alarm_raised"
    alarm: Alarm

    @property
    def key(self) -> str:
        """What may exist once: an epoch ends by one alarm."""
        return f"{self.alarm.route}:{self.alarm.epoch}"

    @property
    def route(self) -> str | None:
        """The route's name."""
        return self.alarm.route


@dataclass(frozen=True, slots=True)
class EnforcementPaused(OfNoEpisode):
    """Enforcement rests on a route until a person decides."""

    kind: ClassVar[Literal["enforcement_paused"]] = "enforcement_paused"
    pause: Pause

    @property
    def key(self) -> str:
        """What may exist once: a route's pause of that number."""
        return f"{self.pause.route}:{self.pause.number}"

    @property
    def route(self) -> str | None:
        """The route's name."""
        return self.pause.route


@dataclass(frozen=True, slots=True)
class EnforcementResumed(OfNoEpisode):
    """A person decided that enforcement goes on."""

    kind: ClassVar[Literal["enforcement_resumed"]] = "enforcement_resumed"
    resumption: Resumption

    @property
    def key(self) -> str:
        """What may exist once: the end of a route's pause of that number."""
        return f"{self.resumption.route}:{self.resumption.number}"

    @property
    def route(self) -> str | None:
        """The route's name."""
        return self.resumption.route


@dataclass(frozen=True, slots=True)
class LabelWanted:
    """A label of this episode is worth asking for."""

    kind: ClassVar[Literal["label_wanted"]] = "label_wanted"
    request: LabelRequest

    @property
    def key(self) -> str:
        """What may exist once: the episode."""
        return self.request.episode_id

    @property
    def episode_id(self) -> str | None:
        """The episode that this row belongs to."""
        return self.request.episode_id

    @property
    def route(self) -> str | None:
        """The route's name."""
        return self.request.route


@dataclass(frozen=True, slots=True)
class JobRan(OfNoEpisode):
    """A job did something, failed, or was asked for by a person."""

    kind: ClassVar[Literal["job_ran"]] = "job_ran"
    run: JobRun

    @property
    def key(self) -> str:
        """What may exist once: the run."""
        return self.run.run_id

    @property
    def route(self) -> str | None:
        """The route's name; None: it was about all routes."""
        return self.run.route or None
