"""The agent of one route: from runs and audits to the shares with which every action of every query class is drawn.

An action is a stopping level together with the settings that no audit can replay (wave size, probe spacing, effort).
Audits show the loss and the cost of every level under the settings that they ran with, so they are the exploration:
they try the settings, and a live request gets the best action that is proved. Live exploration remains for what audits
leave unclear, within the owner's cap. Pure: evidence and draws come in as arguments, the state is plain data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import exp
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from suffice.agent.choice import ChoiceBounds, choose, expected_improvement
from suffice.agent.cost_guard import CostEvent, CostGuard
from suffice.agent.values import ActionValues

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

PRICE_STEP: Final = 0.2  # of the logarithm of the token price: a lost answer lowers the price by about a sixth
RETURN: Final = 0.3  # chance that an action that stopped paying pays again, for the share of audits that try it
LEAST_TRIAL: Final = 0.1  # least share of a group of settings among audits


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    name: str
    group: int = 0  # of settings: an audit shows all actions of the group that it ran with


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentBounds:
    max_em_drop: float = 0.02
    token_price: float | None = None  # EM that a mean full run's tokens are worth; None: the price of the EM budget
    price_range: tuple[float, float] = (0.01, 0.3)  # of that price
    latency_price: float = 0.0  # EM that a second is worth
    half_life: float = 3_000.0  # requests of a class after which an observation counts half
    choice: ChoiceBounds = field(default_factory=ChoiceBounds)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassPlan:
    best: int
    shares: tuple[float, ...]  # of every action for a live request
    trials: tuple[float, ...]  # of every group of settings for an audit
    value: float  # expected reward of the shares above that of the full run, in EM
    regret: float  # expected loss of value through exploration, in EM


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentPlan:
    classes: Mapping[str, ClassPlan]
    token_price: float
    events: tuple[CostEvent, ...]  # since the last look


class Agent:
    """Actions in the order of their caution; 0 is the full run."""

    def __init__(self, classes: Sequence[str], actions: Sequence[Action], bounds: AgentBounds) -> None:
        self.classes, self.actions, self.bounds = tuple(classes), tuple(actions), bounds
        self._at = {name: at for at, name in enumerate(self.classes)}
        shape = len(self.classes), len(self.actions)
        self._values = ActionValues(*shape, half_life=bounds.half_life, prior_loss=bounds.max_em_drop / 2)
        self._guard = CostGuard(*shape)
        self._best = [0] * len(self.classes)
        self._price = bounds.token_price or (bounds.price_range[0] * bounds.price_range[1]) ** 0.5
        self._events: list[CostEvent] = []
        groups = np.array([action.group for action in self.actions[1:]])
        self._of_group = [1 + np.flatnonzero(groups == group) for group in range(groups.max() + 1)]

    def add_run(self, query_class: str, action: int, *, tokens: float, seconds: float = 0.0) -> None:
        """Add a live run."""
        c = self._at[query_class]
        self._values.age(c)
        if action == 0:
            self._values.add_full(c, tokens)
        self._observe(c, action, tokens, seconds)

    def add_audit(self, query_class: str, *, full_tokens: float, tokens: Mapping[int, float]) -> None:
        """Add an audit: the full run, and what each action of its settings would have used."""
        c = self._at[query_class]
        self._values.age(c)
        self._values.add_full(c, full_tokens)
        for action, used in tokens.items():
            self._observe(c, action, used, 0.0)

    def add_losses(self, query_class: str, z: Mapping[int, float]) -> None:
        """Add the EM drop of each action in an audit, once it is known: +1 lost, -1 gained, 0 neither."""
        c = self._at[query_class]
        for action, lost in z.items():
            self._values.add_loss(c, action, lost)
        if self.bounds.token_price is None and self._best[c] in z:
            low, high = self.bounds.price_range
            step = exp(PRICE_STEP * (self.bounds.max_em_drop - z[self._best[c]]))
            self._price = min(high, max(low, self._price * step))

    def look(self, proven: Bools, *, horizon: Sequence[float]) -> AgentPlan:
        """Plan until the next look.

        proven   actions whose EM drop is certified, shape (classes, actions)
        horizon  requests of each class over which what is learned stays true
        """
        values, price = self._values, self._price
        value = -price * values.cost - values.loss - self.bounds.latency_price * values.seconds
        error, spread = values.error(price), price * values.spread
        allowed = proven & ~self._guard.inactive
        allowed[:, 0] = True
        plans = {}
        for c, name in enumerate(self.classes):
            choice = choose(
                value[c], error[c], spread[c], allowed[c], self._best[c],
                token_price=price, horizon=horizon[c], bounds=self.bounds.choice,
            )  # fmt: skip
            self._best[c] = choice.best
            for action in np.flatnonzero(choice.shares).tolist():
                self._guard.activate(c, action, float(1 - values.cost[c, action]))
            gain = float(np.dot(choice.shares, value[c] - value[c, 0]))
            trials = self._trials(c, value[c], error[c], choice.best)
            plans[name] = ClassPlan(
                best=choice.best, shares=choice.shares, trials=trials, value=gain, regret=choice.regret
            )
        events, self._events = tuple(self._events), []
        return AgentPlan(classes=plans, token_price=price, events=events)

    def _observe(self, c: int, action: int, tokens: float, seconds: float) -> None:
        cost = self._values.add_run(c, action, tokens, seconds)
        if cost is None or action == 0:
            return
        for event in self._guard.add_run(c, action, cost):
            self._events.append(event)
            if event.kind != "costs_more":
                self._values.forget(c, self._of_group[self.actions[action].group])

    def _trials(self, c: int, value: Floats, error: Floats, best: int) -> tuple[float, ...]:
        """Audits try the groups of settings by what could be learned from each."""
        worth = np.zeros(len(self._of_group))
        for a, action in enumerate(self.actions[1:], start=1):
            gap = max(0.0, float(value[best] - value[a]))
            gain = expected_improvement(gap, float(error[a]))
            if self._guard.inactive[c, a]:  # it may have become as good again as it was
                lost = self._guard.promised[c, a] - 1 + self._values.cost[c, best]
                gain = max(gain, RETURN * self._price * lost)
            worth[action.group] = max(worth[action.group], gain)
        shares = worth / worth.sum() if worth.sum() else np.full(len(self._of_group), 1 / len(self._of_group))
        shares = LEAST_TRIAL / len(self._of_group) + (1 - LEAST_TRIAL) * shares
        return tuple(shares.tolist())

    def plain(self) -> dict[str, Any]:
        return {
            "values": self._values.plain(),
            "guard": self._guard.plain(),
            "best": list(self._best),
            "price": self._price,
        }

    def restore(self, plain: Mapping[str, Any]) -> None:
        self._values.restore(plain["values"])
        self._guard.restore(plain["guard"])
        self._best, self._price = list(plain["best"]), float(plain["price"])
