"""Audits that died with their gateway: which requests their death takes out of the evidence, see the assurance page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

DEATH_ENDS: Final = ("shutdown", "lost")  # of every run that a gateway had open when it ended


class Gap(NamedTuple):
    """Requests, by number, that no claim is about: those that began while a run was open that died."""

    first: int
    last: int


@dataclass(slots=True)
class GatewayDeaths:
    """At most one death in `every` requests makes a gap, or a client that can end gateways could hide its losses."""

    gap: Gap | None = None  # the latest

    def note(self, number: int, *, now: int, every: float) -> Gap | None:
        """Note that audit `number` died, by the time of request `now`; None: it counts as lost."""
        gap = self.gap
        if gap is None or (number > gap.last and now >= gap.last + every):
            self.gap = Gap(number, now)
        elif number <= gap.last:  # it was open when the first one died
            self.gap = Gap(min(number, gap.first), gap.last)
        else:
            return None
        return self.gap
