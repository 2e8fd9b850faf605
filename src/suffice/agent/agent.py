"""The agent of one route: from runs and audits to the levels and settings of every query class.

An audit shows what every level would have cost and lost under the settings that it ran with, so levels need no
exploration. Settings that no audit can replay (probe spacing, wave size) are drawn for audits and other requests alike,
so that the certificate covers the mix that is served. Pure: evidence comes in as arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import erf, exp, pi, sqrt
from typing import Final, Literal

import numpy as np

from suffice.agent.plan import Regret
from suffice.arrays import Bools, Floats, Ints

# ---- How often each allowed action is drawn in one query class


@dataclass(frozen=True, slots=True, kw_only=True)
class ChoiceBounds:
    explore_share: float = 0.1  # of live requests, at most
    explore_cost: float = 0.01  # expected loss of value per request for exploration, in full runs' tokens, at most
    least_gain: float = 0.01  # of a full run's tokens: a smaller improvement does not change the best action
    caution: float = 0.5  # standard errors subtracted from a value before it is compared


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ClassShares:
    best: int
    shares: tuple[float, ...]  # of every action; they sum to 1
    regret: float  # expected loss of value per request through exploration, in EM


def expected_improvement(gap: float, error: float) -> float:
    """Expected gain per request if an action that seems `gap` worse is known exactly: E[max(0, N(-gap, error))]."""
    if error <= 0:
        return 0.0
    z = -gap / error
    return error * (exp(-z * z / 2) / sqrt(2 * pi) + z * (1 + erf(z / sqrt(2))) / 2)


def choose(
    value: Floats,
    error: Floats,
    spread: Floats,
    *,
    allowed: Bools,
    hopes: Floats,
    incumbent: int,
    token_price: float,
    horizon: float,
    bounds: ChoiceBounds,
) -> ClassShares:
    """Return the shares of one class.

    value    expected reward of each action, in EM
    error    standard error of each value; 0 for the full run, which is action 0 and always allowed
    spread   standard deviation of one run's reward, in EM
    hopes    expected gain from trying an action that is not allowed for now; 0: it is not tried
    horizon  requests of the class over which what is learned stays true
    """
    careful = np.where(allowed, value - bounds.caution * error, -np.inf)
    best = int(np.argmax(careful))
    if allowed[incumbent] and careful[best] < careful[incumbent] + bounds.least_gain * token_price:
        best = incumbent
    others = [a for a in range(1, len(value)) if a != best and (allowed[a] or hopes[a] > 0)]
    gaps = {a: max(0.0, float(value[best] - value[a])) for a in others}
    shares = np.zeros(len(value))
    for a, gap in gaps.items():
        runs = (spread[a] / error[a]) ** 2 if error[a] > 0 else 0.0  # as many again halve its variance
        if horizon * max(float(hopes[a]), expected_improvement(gap, float(error[a]))) > runs * gap:
            shares[a] = 1 / (len(others) + 1 + gap / max(float(error[a]), 1e-9) * sqrt(len(others)))
    cost = sum(shares[a] * gap for a, gap in gaps.items())
    most_cost = bounds.explore_cost * token_price
    scale = min(1.0, bounds.explore_share / max(shares.sum(), 1e-12), most_cost / max(cost, 1e-12))
    shares *= scale
    shares[best] = 1 - shares.sum()
    return ClassShares(best=best, shares=tuple(shares.tolist()), regret=float(scale * cost))


# ---- Watches what stopping saves, as certificates watch what it loses: where it no longer pays, it goes out of use

CostChange = Literal["stops_paying", "costs_more", "pays_again"]

BETS: Final = np.array((0.15, 0.35, 0.7))  # parts of the largest bet that cannot lose everything
THRESHOLD: Final = 20_000.0  # runs to a false alarm
RECOVERY: Final = 20.0  # runs to a false return, at exactly half of the promised saving
REST: Final = 25  # runs before a second return is considered; four times as many before each later one
_MOST: Final = 1e12  # keeps sums finite


@dataclass(frozen=True, slots=True, kw_only=True)
class CostEvent:
    change: CostChange
    query_class: int
    action: int  # settings, and on routes with several arms one of them under them
    promised: float  # saving for which it was activated, a fraction of the full run


class CostGuard:
    """promised, inactive, is_dear: shape (classes, actions); promised is nan where nothing was activated."""

    def __init__(self, n_classes: int, n_actions: int) -> None:
        self.promised = np.full((n_classes, n_actions), np.nan)
        self.inactive = np.zeros((n_classes, n_actions), dtype=bool)
        self.is_dear = np.zeros((n_classes, n_actions), dtype=bool)  # an alert was raised
        self._inactive_at = np.full((n_classes, n_actions), -np.inf)  # number of the run that proved it
        self._n_returns = np.zeros((n_classes, n_actions), dtype=np.int64)
        self._rest = np.zeros((n_classes, n_actions))  # runs until a return is considered
        self._sums = np.zeros((3, n_classes, n_actions, len(BETS)))

    def activate(self, c: int, action: int, saving: float) -> None:
        """Note the saving for which stopping is in use; the largest one counts until it is broken."""
        self.promised[c, action] = np.fmax(self.promised[c, action], saving)

    def add_run(self, c: int, action: int, cost: float, *, at: float = np.inf) -> list[CostEvent]:
        """Add the cost of a run, a fraction of the full run; return what it proves.

        at  number of the run: audits are added late, and one from before stopping became inactive proves no return
        """
        promised = float(self.promised[c, action])
        if np.isnan(promised):
            return []
        saving, half = float(np.clip(1 - cost, -1, 1)), max(0.0, promised / 2)
        changes: list[CostChange] = []
        paying, saves, recovered = self._sums[:, c, action]
        if _bet(saves, -saving, 1.0) >= THRESHOLD and not self.is_dear[c, action]:
            changes.append("costs_more")
            self.is_dear[c, action] = True
        if not self.inactive[c, action] and _bet(paying, half - saving, 1 - half) >= THRESHOLD:
            changes.append("stops_paying")
            self.inactive[c, action], self._inactive_at[c, action] = True, at
        elif at < self._inactive_at[c, action]:
            pass
        elif self._rest[c, action] > 0:
            self._rest[c, action] -= 1
        elif self.inactive[c, action] and _bet(recovered, saving - half, 1 + half) >= RECOVERY:
            changes.append("pays_again")
            self.inactive[c, action], self.promised[c, action] = False, np.nan
            self.is_dear[c, action], saves[:] = False, 0
        if changes and changes[-1] != "costs_more":
            paying[:] = recovered[:] = 0
            self._note_change(c, action, changes[-1])
        return [CostEvent(change=change, query_class=c, action=action, promised=promised) for change in changes]

    def _note_change(self, c: int, action: int, change: CostChange) -> None:
        """What audits find cheap may be dear when served, so each return is harder than the last."""
        if change == "pays_again":
            self._n_returns[c, action] += 1
        elif self._n_returns[c, action]:
            self._rest[c, action] = REST * 4.0 ** (self._n_returns[c, action] - 1)


def _bet(sums: np.ndarray, gain: float, largest_loss: float) -> float:
    """Bet on a positive mean of `gain`, which is never below -largest_loss; return the detector's mean sum."""
    sums[:] = np.minimum((sums + 1) * (1 + BETS / largest_loss * gain), _MOST)
    return float(sums.mean())


PRICE_STEP: Final = 0.2  # of the logarithm of the token price: a lost answer lowers the price by about a sixth
PRICE_RANGE: Final = (0.01, 0.3)  # EM that a mean full run's tokens may be worth where the EM budget sets the price
RETURN: Final = 0.3  # chance that what stopped paying pays again: how often it is tried


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentBounds:
    max_em_drop: float = 0.02  # fraction
    token_price: float | None = None  # EM that a mean full run's tokens are worth; None: the dual of the EM budget
    latency_price: float = 0.0  # EM that a second is worth
    half_lives: tuple[float, float] = (500.0, 3_000.0)  # requests of a class after which a cost or loss counts half
    choice: ChoiceBounds = field(default_factory=ChoiceBounds)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassChoice:
    """The decision for one class.

    best    place in `shares` of what seems best
    shares  P(draw) of the full run and of each setting, shape (1 + settings,)
    levels  level under each setting, shape (settings,)
    """

    best: int
    shares: tuple[float, ...]
    levels: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentChoice:
    classes: tuple[ClassChoice, ...]
    events: tuple[CostEvent, ...]  # since the last look


class Agent:
    """Levels in the order of their caution; level 0 is the full run, setting 0 the route's own.

    n_arms  1: what makes one level dear makes all dear. More: each level is an arm of its own, watched for itself
    """

    def __init__(self, n_classes: int, n_settings: int, n_levels: int, bounds: AgentBounds, *, n_arms: int = 1) -> None:
        self.bounds = bounds
        self.shape = (n_classes, n_settings, n_levels)
        self.n_arms = n_arms
        self.guard = CostGuard(n_classes, n_settings * n_arms)
        self.token_price = bounds.token_price or PRICE_RANGE[1]  # EM that a mean full run's tokens are worth
        self._best = [0] * n_classes
        self._events: list[CostEvent] = []
        self.relearn(n_levels)

    def relearn(self, n_levels: int) -> None:
        """Forget what is known of the levels, because those of another version are in use from now on."""
        self.shape = (*self.shape[:2], n_levels)
        prior_loss = self.bounds.max_em_drop / 2
        self.values = ActionValues(*self.shape, half_lives=self.bounds.half_lives, prior_loss=prior_loss)
        # the highest: no limit below what is proved
        self._levels: Ints = np.full(self.shape[:2], n_levels - 1)
        self._served: Ints = np.zeros(self.shape[:2], dtype=np.int64)  # as chosen at the last look

    def add_run(
        self, c: int, setting: int, level: int, *, tokens: float, seconds: float = 0.0, at: float = np.inf
    ) -> None:
        """Add a run, the request `at`, that was served at this level."""
        self.values.age(c)
        if level == 0:
            self.values.add_full(c, tokens)
            return
        cost = self.values.add_run(c, setting, level, tokens, seconds)
        if cost is not None:
            self._watch(c, setting, level, cost, at)

    def add_audit(
        self,
        c: int,
        setting: int,
        *,
        full_tokens: float,
        tokens: Floats,
        stops: Bools | None = None,
        n_requests: float = 1.0,
        is_watched: bool = True,
        at: float = np.inf,
    ) -> None:
        """Add an audit, the request `at`: its full run, and what each level would have used, shape (levels,).

        stops       which levels end it early; None: costs are known as they are, see `expect_stop_excess`
        n_requests  of the class since the last one that was added
        is_watched  False: a stop's answer was not generated, so these tokens do not tell whether stopping pays
        """
        self.values.age(c, n_requests)
        self.values.add_full(c, full_tokens)
        cost = self.values.add_audit(c, setting, tokens, np.zeros(len(tokens), np.bool_) if stops is None else stops)
        watched = {int(self._served[c, setting])}
        if self.n_arms > 1:  # what is out of use is called in audits alone
            watched.update(np.flatnonzero(self._inactive(c)[setting]).tolist())
        for level in sorted(watched - {0}):
            if is_watched and not np.isnan(cost[level]):
                self._watch(c, setting, level, float(cost[level]), at)

    def expect_stop_excess(self, tokens: Floats) -> None:
        """Expect each stop of a class to cost so many tokens more than audits say, also of earlier ones, (classes,)."""
        moved = self.values.expect_stop_excess(tokens)
        self.guard.promised -= np.maximum(moved, 0.0)[:, np.newaxis]  # a look raises it to what is expected now

    def add_losses(self, c: int, z: Floats) -> None:
        """Add the EM drop at each level in an audit, once it is known, shape (levels,): +1, 0, -1 or nan."""
        self.values.add_losses(c, z)
        best = self._best[c]
        lost = z[self._served[c, best - 1]]
        if self.bounds.token_price is None and best and not np.isnan(lost):
            step = exp(PRICE_STEP * (self.bounds.max_em_drop - lost))
            self.token_price = min(PRICE_RANGE[1], max(PRICE_RANGE[0], self.token_price * step))

    def look(
        self,
        proven: Sequence[int],
        *,
        horizon: Sequence[float],
        admits: Callable[[Sequence[int]], bool] = lambda _: True,
    ) -> AgentChoice:
        """Decide until the next look.

        proven   the highest level that each class may use
        horizon  requests of each class over which what is learned stays true
        admits   whether classes may get these levels together; a single one and full runs always may
        """
        values, price = self.values, self.token_price
        relative = values.relative_tokens
        of_cost = (price * relative)[:, np.newaxis, np.newaxis]
        value = -of_cost * values.cost - values.loss[:, np.newaxis] - self.bounds.latency_price * values.seconds
        error = np.sqrt((of_cost * values.cost_error()) ** 2 + values.loss_error()[:, np.newaxis] ** 2)
        spread = of_cost * values.spread
        most_levels = [min(most, self.shape[2] - 1) for most in proven]
        chosen = [self._choose_levels(c, value[c], error[c], most, price) for c, most in enumerate(most_levels)]
        if not admits([int(levels[0]) for levels in chosen]):
            chosen = self._admitted(
                value[:, 0] - self.bounds.choice.caution * error[:, 0], most_levels, horizon, admits
            )
        classes = []
        for c, (most, levels) in enumerate(zip(proven, chosen, strict=True)):
            at = np.arange(len(levels)), levels
            stops = levels > 0
            choice = choose(
                np.concatenate([[value[c, 0, 0]], value[c][at]]),
                np.concatenate([[0.0], error[c][at]]),
                np.concatenate([[0.0], spread[c][at]]),
                allowed=np.concatenate([[True], stops & ~self._inactive(c)[at]]),
                hopes=np.concatenate([[0.0], self._hopes(c, price * float(relative[c]))[at] * stops]),
                incumbent=self._best[c],
                token_price=price,
                horizon=horizon[c],
                bounds=self.bounds.choice,
            )
            self._best[c] = choice.best
            self._served[c] = np.where(levels > 0, levels, self._served[c])
            shares = choice.shares
            if not most:  # full runs try all settings at no cost
                shares = (0.0, *[1 / len(levels)] * len(levels))
            for setting in np.flatnonzero(stops * shares[1:]).tolist():
                level = int(levels[setting])
                self.guard.activate(c, self._action(setting, level), float(1 - values.cost[c, setting, level]))
            classes.append(ClassChoice(best=choice.best, shares=shares, levels=tuple(levels.tolist())))
        events, self._events = tuple(self._events), []
        return AgentChoice(classes=tuple(classes), events=events)

    def _choose_levels(self, c: int, value: Floats, error: Floats, most: int, price: float) -> Ints:
        """The best proved level under each setting; the highest, or the last one, unless another is clearly better.

        Where everything is inactive, the last level stays, at which it is tried.
        """
        off = self._inactive(c)[:, : most + 1]
        careful = np.where(off, -np.inf, value[:, : most + 1] - self.bounds.choice.caution * error[:, : most + 1])
        rows = np.arange(len(value))
        best = np.argmax(careful, axis=1)
        held = np.minimum(self._levels[c], most)
        better = careful[rows, best] > careful[rows, held] + self.bounds.choice.least_gain * price
        chosen = np.where(better & ~off[:, 1:].all(axis=1), best, held)
        if most:
            self._levels[c] = np.where(chosen < most, chosen, self._levels[c])
            self._levels[c, (chosen == most) & better] = self.shape[2] - 1
        return np.asarray(chosen)

    def _admitted(
        self,
        careful: Floats,
        most_levels: Sequence[int],
        horizon: Sequence[float],
        admits: Callable[[Sequence[int]], bool],
    ) -> list[Ints]:
        """The best single level with full runs where these are better, then each better level that is admitted with it.

        careful  lower values, shape (classes, levels)
        """
        classes, n = range(len(careful)), np.array(horizon)
        off = [self._inactive(c)[0] | (np.arange(self.shape[2]) > most) for c, most in enumerate(most_levels)]
        careful = np.where(np.stack(off), careful[:, :1] - 1, careful)  # as if it lost every answer
        highest = range(1, max(most_levels) + 1)
        single = [np.where(careful[:, level] > careful[:, 0], level, 0) for level in highest]
        levels: list[int] = max(single, key=lambda one: float(n @ careful[classes, one])).tolist()
        gains = n[:, np.newaxis] * (careful - careful[classes, levels][:, np.newaxis])
        for place in np.argsort(-gains, axis=None).tolist():
            c, level = divmod(place, self.shape[2])
            if gains[c, level] <= 0:
                break
            changed = [*levels[:c], level, *levels[c + 1 :]]
            if careful[c, level] > careful[c, levels[c]] and admits(changed):
                levels = changed
        return [np.array([level]) for level in levels]

    def _action(self, setting: int, level: int) -> int:
        """The place in the guard of a level above 0."""
        return setting * self.n_arms + min(level, self.n_arms) - 1

    def _by_level(self, actions: Floats | Bools) -> Floats:
        """What the guard has of a class by action, shape (settings, levels); 0 for the full run."""
        arms = np.minimum(np.arange(1, self.shape[2]), self.n_arms) - 1
        return np.pad(actions.reshape(self.shape[1], self.n_arms)[:, arms], ((0, 0), (1, 0)))

    def _inactive(self, c: int) -> Bools:
        return self._by_level(self.guard.inactive[c]).astype(bool)

    def _hopes(self, c: int, price: float) -> Floats:
        """What each inactive action would gain if it paid again as promised, times the chance of that."""
        promised = np.nan_to_num(self.guard.promised[c])
        return self._by_level(np.where(self.guard.inactive[c], RETURN * price * promised, 0.0))

    def _watch(self, c: int, setting: int, level: int, cost: float, at: float) -> None:
        for event in self.guard.add_run(c, self._action(setting, level), cost, at=at):
            self._events.append(event)
            if event.change != "costs_more":
                levels = np.arange(self.shape[2]) if self.n_arms == 1 else np.array([level])
                self.values.replace(c, setting, levels, event.promised if event.change == "pays_again" else 0.0)


# ---- What stopping costs and loses in each query class: discounted means with their standard errors
#
# A cost is a fraction of the class's mean full run, so a class whose questions become longer does not change its costs.
# Old observations fade with a half-life in requests of the class: estimates follow drift and never become certain.

PRIOR_RUNS: Final = 2.0  # pseudo-observations of something untried: it costs as much as the full run
PRIOR_SPREAD: Final = 0.5
PRIOR_AUDITS: Final = 50.0  # pseudo-audits behind the prior loss of a level
CLASS_AUDITS: Final = 150.0  # those behind the level's loss in a class: classes differ by about a point
RECENT: Final = 0.9  # weight of the latest runs of a level when one more is added
LEAST_RECENT: Final = 5.0  # of them, by weight
CHANGED: Final = 5.0  # standard errors of a mean of the latest runs that tell another cost


class ActionValues:
    """Costs of shape (classes, settings, levels) and losses of shape (classes, levels); level 0 is the full run."""

    def __init__(
        self, n_classes: int, n_settings: int, n_levels: int, *, half_lives: tuple[float, float], prior_loss: float
    ) -> None:
        """half_lives: of costs and of losses, in requests of a class."""
        self._half_lives, self._prior_loss = half_lives, prior_loss
        # number, cost, its square, stops of audits, seconds
        self._runs = np.zeros((5, n_classes, n_settings, n_levels))
        self._recent = np.zeros((4, n_classes, n_settings, n_levels))  # the same without seconds, of the latest runs
        self._losses = np.zeros((2, n_classes, n_levels))  # audits, EM drops
        self._full = np.zeros((2, n_classes))  # full runs, their tokens
        self._excess = np.zeros(n_classes)  # tokens of a stop above what audits say

    def age(self, c: int, n_requests: float = 1.0) -> None:
        """Let requests of the class pass: what is known of the class loses its part of a half-life."""
        costs, losses = (0.5 ** (n_requests / half_life) for half_life in self._half_lives)
        self._runs[:, c] *= costs
        self._full[:, c] *= costs
        self._losses[:, c] *= losses

    def add_full(self, c: int, tokens: float) -> None:
        self._full[:, c] += (1, tokens)

    def add_run(self, c: int, setting: int, level: int, tokens: float, seconds: float) -> float | None:
        """Add one run; return its cost, or None while no full run of the class is known."""
        if not self._full[0, c]:
            return None
        cost = tokens / float(self.full_tokens[c])
        self._runs[:, c, setting, level] += (1, cost, cost**2, 0, seconds)
        self._compare(c, setting, np.array([level]), np.array([cost]), np.zeros(1))
        return cost

    def add_audit(self, c: int, setting: int, tokens: Floats, stops: Bools) -> Floats:
        """Add what each level would have used, shape (levels,), nan where that is unknown; return the costs."""
        cost = (tokens + self._excess[c] * stops) / self.full_tokens[c]
        self._runs[:4, c, setting] += np.nan_to_num([~np.isnan(cost), cost, cost**2, stops])
        known = np.flatnonzero(~np.isnan(cost[1:])) + 1
        self._compare(c, setting, known, cost[known], stops[known])
        return np.asarray(cost)

    def expect_stop_excess(self, tokens: Floats) -> Floats:
        """Shift the costs that audits told, as if it had been known then; return by how much a stop's, (classes,)."""
        moved = np.nan_to_num((tokens - self._excess) / self.full_tokens)
        self._excess = np.where(self._full[0] > 0, tokens, self._excess)
        for sums in (self._runs, self._recent):
            more = moved[:, np.newaxis, np.newaxis] * sums[3]
            sums[2] += more * (2 * sums[1] + more) / np.maximum(sums[0], 1e-9)  # the variance stays
            sums[1] += more
        return moved

    def _compare(self, c: int, setting: int, levels: Ints, cost: Floats, stops: Floats | Bools) -> None:
        """Where the latest runs of a level cost something else than those before, forget those before."""
        recent, runs = self._recent[:, c, setting], self._runs[:, c, setting]
        recent[:, levels] = RECENT * recent[:, levels] + np.array([np.ones(len(levels)), cost, cost**2, stops])
        n, mean = recent[0, levels], recent[1, levels] / recent[0, levels]
        n_before = np.maximum(runs[0, levels] - n, 1e-9)
        before = (runs[1:3, levels] - recent[1:3, levels]) / n_before
        error = np.sqrt(np.maximum(before[1] - before[0] ** 2, 1e-6) * ((1 - RECENT) / (1 + RECENT) + 1 / n_before))
        changed = (n >= LEAST_RECENT) & (n_before >= 2 * LEAST_RECENT) & (np.abs(mean - before[0]) > CHANGED * error)
        for level in levels[changed].tolist():
            runs[4, level] *= recent[0, level] / runs[0, level]
            runs[:4, level] = recent[:, level]

    def add_losses(self, c: int, z: Floats) -> None:
        """Add an audit's EM drop at each level: +1 an answer was lost, -1 one was gained, 0 neither, nan: unknown."""
        self._losses[:, c] += np.nan_to_num([~np.isnan(z), z])

    def replace(self, c: int, setting: int, levels: Ints, saving: float) -> None:
        """Replace the costs of levels, which have changed, by a few runs with this saving."""
        n, cost = PRIOR_RUNS, 1 - saving
        self._runs[:, c, setting, levels] = np.array([n, n * cost, n * cost**2, 0.0, 0.0])[:, np.newaxis]
        self._recent[:, c, setting, levels] = 0.0

    def forget_losses(self, level: int) -> None:
        """Forget what a level loses, because its evidence begins anew."""
        self._losses[:, :, level] = 0.0

    def n_audits(self, c: int) -> float:
        return float(self._losses[0, c].max())

    @property
    def full_tokens(self) -> Floats:
        """Mean tokens of a full run, shape (classes,); nan where none is known."""
        with np.errstate(invalid="ignore"):
            return np.asarray(self._full[1] / self._full[0])

    @property
    def relative_tokens(self) -> Floats:
        """Mean tokens of a class's full run over that of all classes, shape (classes,); 1 where unknown."""
        n, total = self._full
        mean = total.sum() / n.sum() if n.sum() else 1.0
        return np.asarray(np.where(n > 0, total / np.maximum(n, 1e-12) / mean, 1.0))

    @property
    def cost(self) -> Floats:
        n, total = self._runs[:2]
        cost = (total + PRIOR_RUNS) / (n + PRIOR_RUNS)
        cost[..., 0] = 1.0
        return np.asarray(cost)

    @property
    def spread(self) -> Floats:
        """Standard deviation of one run's cost."""
        n, total, square, *_ = self._runs
        prior = PRIOR_RUNS * (1 + PRIOR_SPREAD**2)
        variance = (square + prior) / (n + PRIOR_RUNS) - ((total + PRIOR_RUNS) / (n + PRIOR_RUNS)) ** 2
        return np.asarray(np.sqrt(np.maximum(variance, 1e-6)))

    @property
    def seconds(self) -> Floats:
        return np.asarray(self._runs[4] / np.maximum(self._runs[0], 1.0))

    @property
    def loss(self) -> Floats:
        """Means of a class are drawn to those of all classes, and these to the prior loss."""
        n, lost = self._losses
        pooled = (lost.sum(axis=0) + PRIOR_AUDITS * self._prior_loss) / (n.sum(axis=0) + PRIOR_AUDITS)
        loss = (lost + CLASS_AUDITS * pooled) / (n + CLASS_AUDITS)
        loss[:, 0] = 0.0
        return np.asarray(loss)

    def cost_error(self) -> Floats:
        """Standard error of each cost; 0 for the full run."""
        error = self.spread / np.sqrt(self._runs[0] + PRIOR_RUNS)
        error[..., 0] = 0.0
        return np.asarray(error)

    def loss_error(self) -> Floats:
        """Standard error of each loss; 0 for the full run."""
        rate = np.clip(np.abs(self.loss), 0.5 / PRIOR_AUDITS, 0.5)
        error = np.sqrt(rate * (1 - rate) / (self._losses[0] + CLASS_AUDITS))
        error[:, 0] = 0.0
        return np.asarray(error)


# ---- What the agent has earned, against doing nothing and against every fixed action, from audits


class RegretLog:
    def __init__(self, n_settings: int, n_levels: int) -> None:
        self._n = 0
        self._sums = np.zeros((2, n_settings, n_levels))  # of the difference to the agent, and of its square

    def add(self, setting: int, share: float, level: int, gain: Floats) -> None:
        """Add an audit.

        setting, share  the settings that it ran with, and the share with which they were drawn
        level           what the agent would have served
        gain            reward of each level above that of the full run, in EM, shape (levels,)
        """
        difference = np.full(self._sums.shape[1:], -gain[level])
        difference[setting] += gain / share
        self._n += 1
        self._sums += (difference, difference**2)

    def of_idle(self) -> Regret | None:
        """Compare with doing nothing; None before the second audit. The gain of level 0 is 0 under any settings."""
        return self._of(0, 0, z=1.96)

    def of_best_fixed(self, most: int) -> Regret | None:
        """Compare with the settings and the level up to `most` that would have earned most, by one interval for all."""
        if self._n < 2:
            return None
        setting, level = np.unravel_index(np.argmax(self._sums[0, :, : most + 1]), (len(self._sums[0]), most + 1))
        return self._of(int(setting), int(level), z=2.9)  # about 95 % for the largest of a dozen

    def _of(self, setting: int, level: int, *, z: float) -> Regret | None:
        if self._n < 2:
            return None
        total, square = self._sums[:, setting, level].tolist()
        mean = total / self._n
        error = sqrt(max(0.0, square / self._n - mean**2) / (self._n - 1))
        return Regret(mean=mean, low=mean - z * error, high=mean + z * error, n_audits=self._n)
