"""Ten environments whose truth is known, and what an agent, fixed actions and doing nothing earn in them.

Three query classes and twelve actions: four stopping levels under three settings. A bolder level costs and loses more;
the settings change the cost alone. A request in ten is an audit, in full; it shows what every level under its settings
would have cost and lost. A level is proved by a test that is valid at every look, over all classes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from math import log

import numpy as np
from numpy.typing import NDArray

from suffice.agent.agent import Action, Agent, AgentBounds
from suffice.assurance.certify import certified_level, log_wealth, Counts
from suffice.assurance.drift import ShiryaevRoberts

Floats = NDArray[np.float64]

LEVELS, SETTINGS, CLASSES = 4, 3, ("easy", "plain", "hard")
ACTIONS = (Action(name="full"), *(Action(name=f"level {level} with {s}", group=s) for level in range(1, LEVELS + 1) for s in range(SETTINGS)))
MAX_EM_DROP, TOKEN_PRICE, BASE_EM = 0.02, 0.1, 0.7
AUDIT_SHARE, BURST, LOOK, WINDOW = 0.1, 1_200, 100, 1_500
N = 20_000

LEVEL_COST = np.array([1.0, 0.75, 0.58, 0.45, 0.36])
LEVEL_LOSS = np.array([0.0, 0.001, 0.003, 0.008, 0.03])
SETTING_COST = np.array([[0.00, 0.06, 0.12], [0.08, 0.00, 0.10], [0.12, 0.08, 0.00]])  # by class
CLASS_COST = np.array([0.85, 1.0, 1.15])  # of the stopped part
CLASS_LOSS = np.array([0.5, 1.0, 1.6])
FULL_TOKENS = np.array([400.0, 900.0, 1_600.0])


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """What holds for one request."""

    share: Floats  # (C,)
    cost: Floats  # (C, levels, settings), of the class's full run
    loss: Floats  # (C, levels)
    full: Floats  # (C,) tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    name: str
    at: Callable[[int], Truth]
    drifts: bool = False
    delay: int = 0  # requests until an audit's outcome is known
    unlabelled: float = 0.0  # part of the lost audits that never get a label; they count as lost
    poisoned: float = 0.0  # part of the lost audits that somebody calls right
    n: int = N


def steady(t: int = 0) -> Truth:  # noqa: ARG001
    cost = np.clip(LEVEL_COST[None, :, None] * CLASS_COST[:, None, None] + SETTING_COST[:, None, :], 0.1, 1.3)
    cost[:, 0, :] = 1.0
    loss = LEVEL_LOSS[None, :] * CLASS_LOSS[:, None]
    return Truth(share=np.array([0.4, 0.4, 0.2]), cost=cost, loss=loss, full=FULL_TOKENS)


def changed(t: int, *, cost: Floats | None = None, loss: Floats | None = None, share: Floats | None = None, full: float = 1.0) -> Truth:
    base = steady(t)
    new = base.cost if cost is None else base.cost + cost
    new = new.copy()
    new[:, 0, :] = 1.0
    return Truth(
        share=base.share if share is None else share,
        cost=np.clip(new, 0.05, 3.0),
        loss=base.loss if loss is None else np.clip(base.loss + loss, 0, 1),
        full=base.full * full,
    )


def price_drift(t: int) -> Truth:
    """The cheapest setting becomes the dearest, slowly; another one takes its place."""
    move = np.array([0.5, -0.15, 0.2]) * min(1.0, t / (0.8 * N))
    return changed(t, cost=np.broadcast_to(move, (3, LEVELS + 1, SETTINGS)))


def drop_drift(t: int) -> Truth:
    """From the middle on, bold levels lose more and more."""
    return changed(t, loss=np.array([0, 0.002, 0.01, 0.03, 0.08])[None, :] * max(0.0, min(1.0, (t - 8_000) / 8_000)))


def cost_jump(t: int) -> Truth:
    """The setting that is best for two classes costs more than the full run for a while."""
    jump = np.array([0.9, 0.9, 0.0]) if 8_000 <= t < 12_000 else np.zeros(3)
    return changed(t, cost=np.broadcast_to(jump, (3, LEVELS + 1, SETTINGS)))


def seasons(t: int) -> Truth:
    """Costs of two settings swap every 5,000 requests, and the class mix with them."""
    odd = (t // 5_000) % 2
    move = np.array([0.3, -0.1, 0.0]) if odd else np.array([-0.1, 0.3, 0.0])
    share = np.array([0.2, 0.4, 0.4]) if odd else np.array([0.5, 0.4, 0.1])
    return changed(t, cost=np.broadcast_to(move, (3, LEVELS + 1, SETTINGS)), share=share)


def apart(t: int) -> Truth:
    """Stopping pays in one class only: elsewhere it costs more than the full run."""
    move = np.array([0.0, 0.6, 0.7])[:, None, None]
    return changed(t, cost=np.broadcast_to(move, (3, LEVELS + 1, SETTINGS)))


ENVIRONMENTS = (
    Environment(name="steady", at=steady),
    Environment(name="drifting costs", at=price_drift, drifts=True),
    Environment(name="drifting drops", at=drop_drift, drifts=True),
    Environment(name="a jump in cost", at=cost_jump, drifts=True),
    Environment(name="seasons", at=seasons, drifts=True),
    Environment(name="delayed", at=steady, delay=1_500),
    Environment(name="censored", at=steady, unlabelled=0.4),
    Environment(name="poisoned", at=steady, poisoned=0.3),
    Environment(name="classes apart", at=apart),
    Environment(name="cold start", at=steady, n=4_000),
)


@dataclass(slots=True, kw_only=True)
class Life:
    """What one policy earned: expected reward and EM drop of each request, without noise."""

    reward: Floats
    drop: Floats
    tokens: Floats  # of the mean full run
    active: list[str] = field(default_factory=list)
    events: list[tuple[int, str]] = field(default_factory=list)


def reward_of(truth: Truth, c: int, level: int, setting: int) -> tuple[float, float, float]:
    tokens = truth.cost[c, level, setting] * truth.full[c] / (truth.share @ truth.full)
    drop = truth.loss[c, level] if level else 0.0
    return BASE_EM - drop - TOKEN_PRICE * tokens, drop, tokens


def run_fixed(env: Environment, level: int, setting: int, seed: int = 0) -> Life:
    rng = np.random.default_rng(seed)
    rows = []
    for t in range(env.n):
        truth = env.at(t)
        c = int(rng.choice(3, p=truth.share)) if False else None
        expected = sum(truth.share[k] * np.array(reward_of(truth, k, level, setting)) for k in range(3))
        rows.append(expected)
    table = np.array(rows)
    return Life(reward=table[:, 0], drop=table[:, 1], tokens=table[:, 2])


def level_of(action: int) -> tuple[int, int]:
    return (0, 0) if action == 0 else ((action - 1) // SETTINGS + 1, (action - 1) % SETTINGS)


class Certifier:
    """Which levels are proved: the latest WINDOW audits, all classes together; an alarm makes everything start anew."""

    def __init__(self) -> None:
        self.rows: deque[Floats] = deque(maxlen=WINDOW)
        self.level, self.n_since = 0, 0
        self.alarm = ShiryaevRoberts(MAX_EM_DROP, threshold=500)

    def add(self, z: Floats) -> None:
        self.rows.append(z)
        self.n_since += 1
        if self.level and self.alarm.add(int(z[self.level])):
            self.rows.clear()
            self.alarm.reset()
            self.level = self.n_since = 0

    def look(self) -> int:
        if len(self.rows) < 100:
            self.level = 0
        else:
            z = np.array(self.rows)
            gained, lost = (z < 0).sum(0), (z > 0).sum(0)
            wealth = log_wealth(Counts(gained, len(z) - gained - lost, lost), max_em_drop=MAX_EM_DROP)
            self.level = certified_level(wealth, delta=0.05)
        return self.level


def run_agent(env: Environment, seed: int = 0, bounds: AgentBounds | None = None) -> Life:
    rng = np.random.default_rng(seed)
    agent = Agent(CLASSES, ACTIONS, bounds or AgentBounds(max_em_drop=MAX_EM_DROP, token_price=TOKEN_PRICE))
    certifier = Certifier()
    life = Life(reward=np.zeros(env.n), drop=np.zeros(env.n), tokens=np.zeros(env.n))
    waiting: deque[tuple[int, int, Floats, dict[int, float], float]] = deque()
    plan = agent.look(np.zeros((3, len(ACTIONS)), dtype=bool), horizon=[0.0] * 3)
    seen = np.zeros(3)
    for t in range(env.n):
        truth = env.at(t)
        c = int(rng.choice(3, p=truth.share))
        seen[c] += 1
        chosen = plan.classes[CLASSES[c]]
        noise = float(rng.lognormal(-0.08, 0.4))
        audit = rng.random() < AUDIT_SHARE or certifier.n_since < 600
        if audit:
            s = int(rng.choice(SETTINGS, p=chosen.trials))
            u = rng.random()
            z = np.array([float(u < truth.loss[c, level]) for level in range(LEVELS + 1)])
            z[0] = 0
            shown = z.copy()
            if z.any() and rng.random() < env.poisoned:
                shown[:] = 0
            full = float(truth.full[c] * noise)
            tokens = {1 + (level - 1) * SETTINGS + s: float(truth.cost[c, level, s] * full * rng.lognormal(-0.02, 0.2)) for level in range(1, LEVELS + 1)}
            waiting.append((t + env.delay, c, shown, tokens, full))
            level, setting = 0, 0
        else:
            action = int(np.searchsorted(np.cumsum(chosen.shares), rng.random() * 0.999999))
            level, setting = level_of(action)
            used = float(truth.cost[c, level, setting] * truth.full[c] * noise)
            if action:
                agent.add_run(CLASSES[c], action, tokens=used)
            else:
                agent.add_audit(CLASSES[c], full_tokens=used, tokens={}, z={})
        life.reward[t], life.drop[t], life.tokens[t] = reward_of(truth, c, level, setting)
        while waiting and waiting[0][0] <= t:
            _, k, z, tokens, full = waiting.popleft()
            certifier.add(z)
            outcomes = {1 + (lv - 1) * SETTINGS + s: float(z[lv]) for lv in range(1, LEVELS + 1) for s in range(SETTINGS)}
            agent.add_audit(CLASSES[k], full_tokens=full, tokens=tokens, z=outcomes)
        if t % LOOK == LOOK - 1:
            proved = certifier.look()
            allowed = np.array([level_of(a)[0] <= proved for a in range(len(ACTIONS))])
            share = seen / seen.sum()
            plan = agent.look(np.tile(allowed, (3, 1)), horizon=[5_000 * x for x in share])
            life.active.append("/".join(str(p.best) for p in plan.classes.values()))
            life.events += [(t, f"{e.kind} {CLASSES[e.query_class]} {ACTIONS[e.action].name}") for e in plan.events]
    return life
