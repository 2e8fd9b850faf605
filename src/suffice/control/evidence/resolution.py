"""What the control loop decided at one place of the log: events and artefacts, written together or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from suffice.errors import SufficeError
from suffice.store.rows.events import Event
from suffice.types import Epoch, LabelRequest, Pause, Publication


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
        n_wanted = sum(isinstance(event, LabelRequest) for event in self.events)
        said = [sentence for event in self.events if (sentence := _sentence(event))]
        return "; ".join([*said, *([f"{n_wanted} labels wanted"] if n_wanted else [])])


def essence(made: Publication) -> tuple[object, ...]:
    """What a publication puts in force, and where: a replay of the log must come to the same."""
    return made.at, made.fit, made.level, made.share, made.classes


def _sentence(event: Event) -> str:
    if isinstance(event, Publication):
        return f"level {event.level} published ({event.reason})"
    if isinstance(event, Epoch):
        return f"epoch {event.number} begins ({event.reason})"
    if isinstance(event, Pause):
        return f"enforcement paused ({event.reason})"
    return ""
