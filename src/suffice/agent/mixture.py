"""The levels that query classes may get below a route's level, from people's overrides and the agent's plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from suffice.agent.plan import AgentPlan

Mixture: TypeAlias = tuple[tuple[str, tuple[int, ...]], ...]  # (query class, the levels that it may get), sorted


def mixture_of(ceilings: Mapping[str, int], plan: AgentPlan | None, *, level: int) -> Mixture:
    """Return the classes that may get another level than `level`, with all levels that they may get, ascending.

    ceilings  of people's overrides, by query class
    """
    planned = {} if plan is None else {one.query_class: [draw.ceiling for draw in one.draws] for one in plan.classes}
    possible = dict[str, tuple[int, ...]]()
    for name in {*ceilings, *planned}:
        most = min(level, ceilings.get(name, level))
        own = {most if ceiling is None else min(most, ceiling) for ceiling in planned.get(name, [None])}
        if own != {level}:
            possible[name] = tuple(sorted(own))
    return tuple(sorted(possible.items()))
