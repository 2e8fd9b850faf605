"""The kill switch was pulled or released, as a row of the log."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from suffice.store.rows.route_event import OfNoEpisode


@dataclass(frozen=True, slots=True, kw_only=True)
class KillSwitchState:
    """The kill switch, as a gateway saw it change."""

    on: bool
    reason: str  # as its file says, with who pulled it
    stamp: int  # when that file was written, ns of its own clock; 0: the environment of a gateway said it


@dataclass(frozen=True, slots=True)
class KillSwitched(OfNoEpisode):
    """The switch was pulled or released; gateways that see the same write one row."""

    kind: ClassVar[Literal["kill_switched"]] = "kill_switched"
    switching: KillSwitchState

    @property
    def key(self) -> str:
        """What may exist once: a change."""
        return f"{self.switching.stamp}:{'on' if self.switching.on else 'off'}"

    @property
    def route(self) -> str | None:
        """None: it is about all routes."""
        return None
