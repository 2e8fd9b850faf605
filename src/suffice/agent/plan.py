"""What the agent of a route may vary, and its plans in words.

Settings have names: "growth=1.4" is the spacing of probes, "wave=2" the number of samples requested at once.

They change what a run costs and what is observed of it, never what the model is asked.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import msgspec

from suffice.settings import Route

AGENT: Final = "agent"  # name of the experiment under which its draws are logged
FULL: Final = "full"  # the arm that stops nothing
SPACINGS: Final = (1.3, 1.6)  # growth of the distance between checkpoints: coarser ones probe less
WAVES: Final = (1, 2, 8)  # samples requested at once


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedDraw:
    settings: str  # "": the route's own; otherwise named as above
    share: float  # P(draw), in (0, 1]
    ceiling: int | None  # the highest level used; 0: nothing is stopped, None: no limit
    arm: str = ""  # effort or budget that is this level, as outcomes name it; "": early stopping


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassPlan:
    query_class: str
    draws: tuple[PlannedDraw, ...]  # their shares sum to 1
    saving: float  # expected part of the full runs' tokens
    em_drop: float  # expected, a fraction
    n_audits: int  # behind these expectations, discounted by age


@dataclass(frozen=True, slots=True, kw_only=True)
class Regret:
    """Reward per request of something else above the agent's, in EM; below 0 the agent is better."""

    mean: float
    low: float
    high: float
    n_audits: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentPlan:
    """What the agent of a route does from here on, inside what is certified, and why."""

    route: str
    number: int  # from 1, on the route
    epoch: int  # of its evidence; void in a later one
    at: int  # requests of the route at the decision
    classes: tuple[ClassPlan, ...]  # others are served at the published level, with the route's own settings
    token_price: float  # EM that a mean full run's tokens are worth
    reason: str  # what it learned, what it does and why, in a sentence
    author: str
    alert: str = ""  # where stopping costs more than full runs; "": nowhere
    idle: Regret | None = None  # of doing nothing; None: too few audits
    best_fixed: Regret | None = None  # of the best fixed level and settings in hindsight; None: too few audits

    def of_class(self, query_class: str) -> ClassPlan | None:
        return next((one for one in self.classes if one.query_class == query_class), None)


def alternatives(route: Route) -> tuple[str, ...]:
    """Return the names of all settings that the agent may draw; the first, "", is the route's own.

    Waves trade tokens for seconds, so they are varied only where the owner has priced seconds.
    """
    if route.agent == "off" or not route.is_learned:
        return ("",)
    if route.kind == "samples" and route.latency_price:
        waves = [wave for wave in WAVES if wave != route.wave and wave <= route.samples]
        return ("", *(f"wave={wave}" for wave in waves))
    if route.kind == "reasoning" and route.probe is not None:
        return ("", *(f"growth={growth:g}" for growth in SPACINGS if growth > route.steps.growth))
    return ("",)


def with_settings(route: Route, name: str) -> Route:
    """Return the route with the settings of this name. Raises ValueError for an unknown name."""
    what, _, value = name.partition("=")
    if what == "growth":
        steps = msgspec.structs.replace(route.steps, growth=float(value))
        return msgspec.structs.replace(route, steps=steps)
    if what == "effort":
        return msgspec.structs.replace(route, effort=value)
    if what == "wave":
        return msgspec.structs.replace(route, wave=int(value))
    if name:
        raise ValueError(f'settings: got {name!r}; allowed: "growth=NUMBER", "wave=NUMBER"')
    return route


def describe_ceiling(draw: PlannedDraw) -> str:
    if draw.arm:
        return draw.arm
    return "up to the certified level" if draw.ceiling is None else f"up to level {draw.ceiling}"


def describe_class_plan(plan: ClassPlan) -> str:
    """Say in one line what a class gets, such as "math: 92 % up to the certified level, 8 % growth=1.6 to level 12"."""
    parts = []
    for one in plan.draws:
        stops = "in full" if one.ceiling == 0 else f"{one.settings} {describe_ceiling(one)}".strip()
        parts.append(stops if one.share == 1 else f"{100 * one.share:.0f} % {stops}")
    saves = f"saves {plan.saving:.0%}, loses {100 * plan.em_drop:.2f} points"
    return f"{plan.query_class or 'no class'}: {', '.join(parts)}; {saves}"


def describe_plan(plan: AgentPlan) -> Iterator[tuple[str, str]]:
    """Yield names and values: what each class gets, the token price, and the regret so far."""
    for one in plan.classes:
        name, _, what = describe_class_plan(one).partition(": ")
        yield f"class {name}" if one.query_class else "agent", what
    yield "token price", f"a mean full run's tokens are worth {100 * plan.token_price:.2g} points of EM"
    for name, regret in (("over doing nothing", plan.idle), ("over the best fixed", plan.best_fixed)):
        if regret is not None:
            yield name, describe_regret(regret)


def describe_regret(regret: Regret) -> str:
    """Say what the agent earned against something else, such as "+2.10 points of EM a request (1.80 to 2.40)"."""
    earned = -100 * regret.mean
    low = -100 * regret.high
    high = -100 * regret.low
    return f"{earned:+.2f} points of EM a request ({low:+.2f} to {high:+.2f}, by {regret.n_audits:,} audits)"
