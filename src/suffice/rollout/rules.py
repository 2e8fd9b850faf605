"""The rules of a rollout, as they were when it began: how far each step goes, what may be lost, what must be seen.

Numbers and ranges are those of the table `[rollout]` (`settings.rollout`). A rollout keeps its own for good: a margin
that somebody moves after he has looked at the evidence proves nothing any more.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

from suffice.settings import Route
from suffice.settings.rollout import LiveRail, Rollout, check_rollout

RailName: TypeAlias = Literal["em", "latency", "errors", "no_answer", "satisfaction"]


class Rules(Rollout, frozen=True, kw_only=True, forbid_unknown_fields=False):
    """How a rollout goes; a later version's rules may have more. Raises ConfigError with what cannot be meant."""

    def __post_init__(self) -> None:
        """Refuse numbers that cannot be meant."""
        check_rollout("rollout", self)

    @property
    def n_steps(self) -> int:
        """Steps from shadow to full."""
        return len(self.shares) + 1

    def margin(self, rail: LiveRail) -> float:
        """What may be lost on a live guard-rail."""
        margins: dict[LiveRail, float] = {
            "latency": self.latency_margin,
            "errors": self.error_margin,
            "no_answer": self.no_answer_margin,
            "satisfaction": self.satisfaction_margin,
        }
        return margins[rail]


def rules_of(route: Route) -> Rules:
    """The rules by which a rollout would begin on a route now."""
    return Rules(**msgspec.structs.asdict(route.rollout))
