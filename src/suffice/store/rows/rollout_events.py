"""What becomes of versions on their way to traffic, as rows of the log: one frozen record a kind.

    RolloutBegun    a version is tried on a route from here on, in shadow at first
    RolloutMoved    one step forward, a pause, or back
    RolloutUndone   a version that serves all is taken back; what it replaced serves again

The version itself is kept beside the log, signed, under its address. Keys are made of what was decided: of two who move
a rollout at once, one has moved it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from suffice.rollout.evidence import Rules
from suffice.rollout.stages import State, Transition
from suffice.store.rows.route_event import OfNoEpisode


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutStart:
    """A rollout at its start."""

    state: State
    number: int  # of the route's rollouts: 1 is the first
    author: str
    reason: str
    rules: Rules = field(default_factory=Rules)  # that it keeps to its end, whatever the settings say later


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutUndo:
    """The end of a version that had reached everybody."""

    rollout: str
    route: str
    author: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutMove:
    """A transition, and the route that it is about."""

    route: str
    author: str  # a person, or the worker that took the step on evidence
    reason: str
    transition: Transition


@dataclass(frozen=True, slots=True)
class RolloutBegun(OfNoEpisode):
    """A version is tried on a route from here on."""

    kind: ClassVar[Literal["rollout_begun"]] = "rollout_begun"
    beginning: RolloutStart

    @property
    def key(self) -> str:
        """What may exist once: a route's rollout of that number."""
        return f"{self.beginning.state.route}:{self.beginning.number}"

    @property
    def route(self) -> str | None:
        """The route's name."""
        return self.beginning.state.route


@dataclass(frozen=True, slots=True)
class RolloutMoved(OfNoEpisode):
    """A rollout has taken a step."""

    kind: ClassVar[Literal["rollout_moved"]] = "rollout_moved"
    moved: RolloutMove

    @property
    def key(self) -> str:
        """What may exist once: a rollout's transition of that number."""
        return f"{self.moved.transition.rollout}:{self.moved.transition.number}"

    @property
    def route(self) -> str | None:
        """The route's name."""
        return self.moved.route


@dataclass(frozen=True, slots=True)
class RolloutUndone(OfNoEpisode):
    """A version that served all is taken back."""

    kind: ClassVar[Literal["rollout_undone"]] = "rollout_undone"
    undoing: RolloutUndo

    @property
    def key(self) -> str:
        """What may exist once: the rollout."""
        return self.undoing.rollout

    @property
    def route(self) -> str | None:
        """The route's name."""
        return self.undoing.route
