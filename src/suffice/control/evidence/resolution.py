"""What the control loop decided at one place of the log: events and artefacts, written together or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from suffice.errors import SufficeError
from suffice.store.rows.control_events import EnforcementPaused, EpochBegan, LabelWanted, PolicyPublished
from suffice.store.rows.events import Event
from suffice.types import Publication


class ReplayMismatch(SufficeError):
    """The log says otherwise than what follows from it; a new epoch is the only honest answer."""


@dataclass(frozen=True, slots=True)
class Resolution:
    """Decisions that belong together."""

    events: tuple[Event, ...]
    artefacts: Mapping[str, str] = field(default_factory=dict)  # by address

    @property
    def said(self) -> str:
        """What it comes to, in a sentence for a history."""
        n_wanted = sum(isinstance(event, LabelWanted) for event in self.events)
        said = [sentence for event in self.events if (sentence := _sentence(event))]
        return "; ".join([*said, *([f"{n_wanted} labels wanted"] if n_wanted else [])])


def essence(made: Publication) -> tuple[object, ...]:
    """What a publication puts in force, and where: a replay of the log must come to the same."""
    return made.at, made.fit, made.level, made.share, made.classes


def _sentence(event: Event) -> str:
    if isinstance(event, PolicyPublished):
        return f"level {event.publication.level} published ({event.publication.reason})"
    if isinstance(event, EpochBegan):
        return f"epoch {event.epoch.number} begins ({event.epoch.reason})"
    if isinstance(event, EnforcementPaused):
        return f"enforcement paused ({event.pause.reason})"
    return ""
