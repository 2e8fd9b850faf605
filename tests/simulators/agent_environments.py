"""Ten environments whose truth is known, and what the agent, fixed actions and doing nothing earn in them.

Three query classes and twelve actions: four stopping levels, each under three settings. A bolder level costs less and
loses more; settings change the cost alone. A request in ten is an audit, in full; it shows what every level under its
settings would have cost and lost. A level is proved by a test that is valid at every look, over all classes together.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from suffice.agent.agent import Agent, AgentBounds, AgentChoice, ClassChoice
from suffice.arrays import Floats
from suffice.assurance.certify import Counts, certified_level, log_wealth
from suffice.assurance.drift import ShiryaevRoberts

CLASSES, N_LEVELS, N_SETTINGS = ("easy", "plain", "hard"), 4, 3
PLACES = [(0, 0), *((level, setting) for level in range(1, N_LEVELS + 1) for setting in range(N_SETTINGS))]
MAX_EM_DROP, TOKEN_PRICE, BASE_EM = 0.02, 0.1, 0.7
AUDIT_SHARE, BURST, LOOK, WINDOW, ALARM = 0.1, 600, 100, 1_500, 500

LEVEL_COST = np.array([1.0, 0.75, 0.58, 0.45, 0.36])  # of a full run
LEVEL_LOSS = np.array([0.0, 0.001, 0.003, 0.008, 0.03])
SETTING_COST = np.array([[0.00, 0.06, 0.12], [0.08, 0.00, 0.10], [0.12, 0.08, 0.00]])  # by class
CLASS_COST, CLASS_LOSS = np.array([0.85, 1.0, 1.15]), np.array([0.5, 1.0, 1.6])
FULL_TOKENS = np.array([400.0, 900.0, 1_600.0])


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    share: Floats  # (C,) of requests
    cost: Floats  # (C, levels, settings), of the class's full run
    loss: Floats  # (C, levels)
    full: Floats  # (C,) tokens

    def earned(self, level: int, setting: int) -> Floats:
        """Expected reward, EM drop and tokens (of a mean full run) of an action in each class, shape (C, 3)."""
        tokens = self.cost[:, level, setting] * self.full / (self.share @ self.full)
        drop = self.loss[:, level]
        return np.column_stack([BASE_EM - drop - TOKEN_PRICE * tokens, drop, tokens])


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    name: str
    at: Callable[[float], Truth]  # from the part of the life that is over
    drifts: bool = False
    delay: int = 0  # requests until an audit's outcome is known
    unlabelled: float = 0.0  # part of the audits without a label; a disagreement without one counts as lost
    poisoned: float = 0.0  # part of the lost audits that somebody calls right
    n: int = 20_000


def truth(
    *,
    by_setting: tuple[float, float, float] = (0.0, 0.0, 0.0),
    by_class: tuple[float, float, float] = (0.0, 0.0, 0.0),
    loss: Floats | float = 0.0,
    share: tuple[float, float, float] = (0.4, 0.4, 0.2),
) -> Truth:
    cost = LEVEL_COST[None, :, None] * CLASS_COST[:, None, None] + SETTING_COST[:, None, :]
    cost = np.clip(cost + np.array(by_setting) + np.array(by_class)[:, None, None], 0.05, 3.0)
    cost[:, 0, :] = 1.0
    risk = np.clip(LEVEL_LOSS * CLASS_LOSS[:, None] + loss, 0, 1)
    risk[:, 0] = 0.0
    return Truth(share=np.array(share), cost=cost, loss=risk, full=FULL_TOKENS)


def steady(_: float) -> Truth:
    return truth()


def drifting_costs(part: float) -> Truth:
    """The cheapest settings become the dearest, and the dearest the cheapest."""
    return truth(by_setting=(0.7 * part - 0.2, 0.3 * part, 0.5 - 0.7 * part))


def drifting_drops(part: float) -> Truth:
    """From a third on, bold levels lose more and more."""
    return truth(loss=np.array([0.0, 0.0, 0.003, 0.05, 0.15]) * min(1.0, max(0.0, 3 * part - 1)))


def dear_spell(part: float) -> Truth:
    """For a fifth of the time, two of three settings cost more than the full run."""
    return truth(by_setting=(0.9, 0.9, 0.0) if 0.4 <= part < 0.6 else (0.0, 0.0, 0.3))


def seasons(part: float) -> Truth:
    """The costs of two settings and the class mix change four times."""
    if int(4 * part) % 2:
        return truth(by_setting=(0.45, -0.1, 0.2), share=(0.2, 0.4, 0.4))
    return truth(by_setting=(-0.1, 0.45, 0.2), share=(0.5, 0.4, 0.1))


def classes_apart(_: float) -> Truth:
    """Stopping pays in one class; in the others it costs more than the full run."""
    return truth(by_class=(0.0, 0.6, 0.7))


def dear_stops(part: float) -> Truth:
    """For a fifth of the time, a stopped run costs more than a full run, whatever its settings."""
    return truth(by_setting=(0.9, 0.9, 0.9) if 0.4 <= part < 0.6 else (0.0, 0.0, 0.0))


ENVIRONMENTS = (
    Environment(name="steady", at=steady),
    Environment(name="drifting costs", at=drifting_costs, drifts=True),
    Environment(name="drifting drops", at=drifting_drops, drifts=True),
    Environment(name="dear spell", at=dear_spell, drifts=True),
    Environment(name="seasons", at=seasons, drifts=True),
    Environment(name="delayed", at=steady, delay=1_500),
    Environment(name="censored", at=steady, unlabelled=0.4),
    Environment(name="poisoned", at=steady, poisoned=0.3),
    Environment(name="classes apart", at=classes_apart),
    Environment(name="cold start", at=steady, n=5_000),
)


@dataclass(slots=True, kw_only=True)
class Life:
    """What one policy earned: expected reward, EM drop and tokens of each request, without noise."""

    reward: Floats
    drop: Floats
    tokens: Floats  # of a mean full run
    best: list[tuple[int, ...]] = field(default_factory=list)  # by look and class
    events: list[tuple[int, str, str, int]] = field(default_factory=list)


def run_fixed(env: Environment, action: int) -> Life:
    rows = []
    for begin in range(0, env.n, LOOK):
        now = env.at(begin / env.n)
        rows.append(now.share @ now.earned(*PLACES[action]))
    reward, drop, tokens = np.repeat(np.array(rows), LOOK, axis=0).T
    return Life(reward=reward, drop=drop, tokens=tokens)


def best_fixed(env: Environment) -> tuple[int, Life]:
    """The best action in hindsight among those that keep the EM budget on average."""
    lives = {action: run_fixed(env, action) for action in range(len(PLACES))}
    kept = {action: life for action, life in lives.items() if life.drop.mean() <= MAX_EM_DROP}
    best = max(kept, key=lambda action: kept[action].reward.mean())
    return best, kept[best]


class Certifier:
    """Proves levels by the latest audits; an alarm takes all proofs back, and a burst of full runs follows."""

    def __init__(self) -> None:
        self.level, self.n_to_burst = 0, BURST
        self._rows: deque[Floats] = deque(maxlen=WINDOW)
        self._alarm = ShiryaevRoberts(MAX_EM_DROP)

    def add(self, z: Floats) -> None:
        self._rows.append(z)
        if self.level and (self._alarm.add(int(z[self.level])) or self._alarm.mean >= ALARM):
            self._rows.clear()
            self._alarm.reset()
            self.level, self.n_to_burst = 0, BURST

    def look(self) -> int:
        if self._rows:
            z = np.array(self._rows)
            gained, lost = (z < 0).sum(0), (z > 0).sum(0)
            wealth = log_wealth(Counts(gained, len(z) - gained - lost, lost), max_em_drop=MAX_EM_DROP)
            self.level = certified_level(wealth, delta=0.05)
        return self.level


class Clairvoyant:
    """Knows the truth, and takes the best action that is proved: no agent can earn more with the same audits."""

    def __init__(self, env: Environment) -> None:
        self._env, self._n = env, 0

    def look(self, proven: Sequence[int], *, horizon: object) -> AgentChoice:
        now = self._env.at(self._n / self._env.n)
        self._n += LOOK
        actions = np.array(PLACES)
        earned = np.stack([now.earned(*place)[:, 0] for place in PLACES])  # (actions, C)
        classes = []
        for c, most in enumerate(proven):
            level, setting = PLACES[int(np.argmax(np.where(actions[:, 0] <= most, earned[:, c], -np.inf)))]
            best = setting + 1 if level else 0
            shares = tuple(np.eye(N_SETTINGS + 1)[best].tolist())
            classes.append(ClassChoice(best=best, shares=shares, levels=(level,) * N_SETTINGS))
        return AgentChoice(classes=tuple(classes), events=())

    def add_audit(self, *_: object, **__: object) -> None: ...

    def add_run(self, *_: object, **__: object) -> None: ...

    def add_losses(self, *_: object) -> None: ...


def run_agent(env: Environment, seed: int, agent: Agent | Clairvoyant | None = None) -> Life:
    rng = np.random.default_rng(seed)
    if agent is None:
        bounds = AgentBounds(max_em_drop=MAX_EM_DROP, token_price=TOKEN_PRICE)
        agent = Agent(len(CLASSES), N_SETTINGS, N_LEVELS + 1, bounds)
    certifier, waiting = Certifier(), deque[tuple[int, int, Floats]]()
    life = Life(reward=np.zeros(env.n), drop=np.zeros(env.n), tokens=np.zeros(env.n))
    for begin in range(0, env.n, LOOK):
        now = env.at(begin / env.n)
        proven = [certifier.look()] * len(CLASSES)
        plan = agent.look(proven, horizon=(5_000 * now.share).tolist())
        life.best.append(tuple(one.best for one in plan.classes))
        life.events += [(begin, event.change, CLASSES[event.query_class], event.action) for event in plan.events]
        drawn = rng.choice(len(CLASSES), p=now.share, size=LOOK)
        length, own, chance = rng.lognormal(-0.08, 0.4, LOOK), rng.lognormal(-0.02, 0.2, LOOK), rng.random((4, LOOK))
        for i, c in enumerate(drawn.tolist()):
            here = plan.classes[c]
            full = float(now.full[c] * length[i])
            arm = min(int(np.searchsorted(np.cumsum(here.shares), chance[1, i])), N_SETTINGS)
            setting = max(0, arm - 1)
            level = here.levels[setting] if arm else 0
            if certifier.n_to_burst > 0 or chance[0, i] < AUDIT_SHARE:
                certifier.n_to_burst -= 1
                z = (chance[2, i] < now.loss[c]).astype(float)
                if z.any() and chance[3, i] < env.poisoned:
                    z[:] = 0.0
                agent.add_audit(c, setting, full_tokens=full, tokens=now.cost[c, :, setting] * own[i] * full)
                waiting.append((begin + i + env.delay, c, z))
                level = 0
            else:
                used = full * (now.cost[c, level, setting] * own[i] if level else 1.0)
                agent.add_run(c, setting, level, tokens=float(used))
            life.reward[begin + i], life.drop[begin + i], life.tokens[begin + i] = now.earned(level, setting)[c]
        while waiting and waiting[0][0] < begin + LOOK:
            _, c, z = waiting.popleft()
            if rng.random() < env.unlabelled:
                z = np.maximum(z, (rng.random() < 0.002) * (z >= 0))  # a harmless disagreement counts as lost, too
            certifier.add(z)
            agent.add_losses(c, z)
    return life
