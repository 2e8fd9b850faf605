"""The levels that query classes get below the route's own."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from suffice.agent.mixture import mixture_of
from suffice.arrays import Floats
from suffice.control.loop.epoch import EpochState
from suffice.control.loop.safety_checks import LiveGuards, SatisfactionFloor


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassLevels:
    """A class is held below the route's level by its guardrail, by ratings, by people's overrides or by the agent."""

    guards: LiveGuards
    floor: SatisfactionFloor
    state: EpochState

    def below(self, level: int) -> tuple[tuple[str, int], ...]:
        """Return the classes that guardrails or ratings hold below a level, with their levels; sorted."""
        held = dict(self.guards.held(level))
        held |= {name: min(most, held.get(name, level)) for name, most in self.floor.classes.items()}
        return tuple(sorted((name, own) for name, own in held.items() if own < level))

    def possible(self, name: str, level: int) -> tuple[int, ...]:
        """Return the levels that a class may get in all at a level of the route."""
        most = dict(self.below(level)).get(name, level)
        own = dict(mixture_of(self.state.ceilings, self.state.plan, level=level)).get(name, (level,))
        return tuple(min(most, one) for one in own)

    def shares(self, name: str | None, level: int, *, n_levels: int) -> Floats:
        """Return P(a request of the class is served at each level), shape (M,); None: a class that runs in full."""
        served, plan = np.zeros(n_levels), self.state.plan
        drawn = None if plan is None or name is None else plan.of_class(name)
        held = dict(self.below(level))
        own = 0 if name is None else min(held.get(name, level), self.state.ceilings.get(name, level))
        for ceiling, share in [(None, 1.0)] if drawn is None else [(one.ceiling, one.share) for one in drawn.draws]:
            served[own if ceiling is None else min(own, ceiling)] += share
        return served
