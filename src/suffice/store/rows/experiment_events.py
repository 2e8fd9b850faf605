"""What people decide about experiments, as rows of the log: one frozen record a kind.

    ExperimentStarted   it runs from here on, as it is defined in this row
    ExperimentChanged   its weights or its share of the layer are others from here on
    ExperimentStopped   it has ended, and why

What a request drew stands in the request's own row. Keys are made of what was decided: of two people who start the same
experiment at once, one has started it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from suffice.rollout.experiment import RunningExperiment
from suffice.store.rows.route_event import OfNoEpisode


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentStart:
    """An experiment as it runs from here on."""

    experiment: RunningExperiment
    revision: int  # of this run: 0 is the start
    author: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentEnd:
    """An experiment that a person has ended."""

    experiment: str  # its name
    run: int
    author: str
    reason: str
    said: tuple[str, ...] = ()  # what it showed then, in sentences


class _OfSeveralRoutes(OfNoEpisode):
    """A row about an experiment, which may have several routes."""

    __slots__ = ()

    @property
    def route(self) -> str | None:
        """None: the definition names its routes."""
        return None


@dataclass(frozen=True, slots=True)
class ExperimentStarted(_OfSeveralRoutes):
    """Requests draw arms from here on."""

    kind: ClassVar[Literal["experiment_started"]] = "experiment_started"
    begun: ExperimentStart

    @property
    def key(self) -> str:
        """What may exist once: a run of that name."""
        return f"{self.begun.experiment.name}:{self.begun.experiment.run}"


@dataclass(frozen=True, slots=True)
class ExperimentChanged(_OfSeveralRoutes):
    """Weights or share are others from here on; what was drawn before keeps the odds that it was drawn with."""

    kind: ClassVar[Literal["experiment_changed"]] = "experiment_changed"
    begun: ExperimentStart

    @property
    def key(self) -> str:
        """What may exist once: a revision of a run."""
        return f"{self.begun.experiment.name}:{self.begun.experiment.run}:{self.begun.revision}"


@dataclass(frozen=True, slots=True)
class ExperimentStopped(_OfSeveralRoutes):
    """Requests draw no arm of it any more."""

    kind: ClassVar[Literal["experiment_stopped"]] = "experiment_stopped"
    ended: ExperimentEnd

    @property
    def key(self) -> str:
        """What may exist once: the end of a run."""
        return f"{self.ended.experiment}:{self.ended.run}"
