"""What is chosen before the call: how much the model may think, written in the upstream's own fields.

Pure. It knows routes, drivers and the client's body, and refuses to know sockets and runs. It never
overrides what the client said itself, and it is asked only where the route may act.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from suffice.settings import FinishMethod, Probe, Route, Upstream
from suffice.upstream.drivers import DRIVERS, chosen_by_client


@dataclass(frozen=True, slots=True, kw_only=True)
class Ahead:
    """Fields to be added to a request."""

    fields: Mapping[str, Any]
    budget_tokens: int | None = None  # of thought, which the engine was told to keep
    has_effort: bool = False  # a level of effort is among the fields

    @property
    def name(self) -> str:
        """The fields by their names, to remember whether an upstream takes them; "": none."""
        return ",".join(sorted(self.fields))

    def arm(self, route: Route) -> str:
        """The effort or budget among them, as outcomes name it; "": neither is asked for."""
        if self.has_effort:
            return f"effort={route.effort}"
        return "" if self.budget_tokens is None else f"budget_tokens={self.budget_tokens}"

    @property
    def site(self) -> str:
        """The place where Suffice failed when the upstream refuses them."""
        return "effort" if self.has_effort else "budget" if self.budget_tokens is not None else "native"


NOTHING = Ahead(fields={})


def choose(
    route: Route,
    upstream: Upstream,
    body: Mapping[str, Any],
    *,
    methods: tuple[FinishMethod, ...],
    policy_budget_tokens: int | None,
) -> Ahead:
    """The fields for one request.

    methods               ways to finish that the upstream offers; the first being `native` arms the engine
    policy_budget_tokens  a policy that is nothing but a budget leaves it to an engine that can keep one
    """
    facts, closing = DRIVERS[upstream.driver], (route.probe or Probe()).closing
    fields: dict[str, Any] = {}
    native = methods[:1] == ("native",)
    if native and facts.has_control:
        fields |= {"reasoning_control": True, "reasoning_budget_message": closing}
    if chosen_by_client(body):
        return Ahead(fields=fields)
    budgets = [n for n in (route.budget_tokens, policy_budget_tokens if native else None) if n is not None]
    budget = min(budgets, default=None) if facts.budget is not None else None
    if budget is not None and facts.budget is not None:
        fields |= facts.budget(budget, closing)
    effort = facts.effort(route.effort) if route.effort is not None and budget is None else None
    return Ahead(fields=fields | (effort or {}), budget_tokens=budget, has_effort=effort is not None)


def effort_problem(route: Route, upstream: Upstream) -> str | None:
    """Why the upstream cannot be told what the route wants; None: it can."""
    facts = DRIVERS[upstream.driver]
    if route.budget_tokens is not None and facts.budget is None:
        return f"budget_tokens: driver {upstream.driver!r} has no field for a budget of thought"
    if route.effort is not None and facts.effort(route.effort) is None:
        return f"effort: driver {upstream.driver!r} has no field for {route.effort!r}; allowed: none"
    return None
