"""The agent of a route in the control loop: evidence of one epoch in, plans as rows of the log out.

A plan only lowers levels of query classes below what is certified, and draws settings that change no answer; the
mixture that results is tested (`certification.mixtures`). Plans are rows: a replay of the log reads them and need not
reproduce them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Final

import numpy as np

from suffice.agent.agent import Agent, AgentBounds, AgentChoice, ChoiceBounds, ClassChoice, CostEvent, RegretLog
from suffice.agent.plan import AGENT, FULL, AgentPlan, ClassPlan, PlannedDraw, Regret, alternatives, describe_ceiling
from suffice.arrays import Bools, Floats
from suffice.assurance.runs import ENDED
from suffice.assurance.saving import spent_tokens
from suffice.assurance.thoughts import KEPT
from suffice.certification.certifier import Certifier
from suffice.control.evidence.audits import Audit
from suffice.learn.costs import PRIOR_STOPS, stop_excess
from suffice.settings import Route
from suffice.signals.query import class_of
from suffice.store.routes.deployments import RouteDeployment
from suffice.types import Outcome, Request

MOST_CLASSES: Final = 16  # that get a plan of their own: the first ones
MONTH_S: Final = 30 * 86_400.0
STEADY: Final = 20_000.0  # requests over which what is learned stays true, at most
REPEATED: Final = 5_000  # requests after which an unchanged plan is written again, with newer figures
MOVED: Final = 0.05  # a smaller change of a share is not written
FORGET: Final = 0.98  # weight of earlier finishes when one more is measured


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditCosts:
    """Tokens of an audit's full run, and those at each level, shape (levels,); `stops`: which levels end it early.

    nan: a paired call shows one arm, and nothing of the other levels.
    """

    audit: Audit
    full_tokens: float
    tokens: Floats
    stops: Bools


class LiveAgent:
    def __init__(self, route: Route, *, max_em_drop: float, n_levels: int) -> None:
        self.route, self.settings = route, alternatives(route)
        bounds = AgentBounds(
            max_em_drop=max_em_drop,
            token_price=1.0 if route.token_price else None,
            latency_price=route.latency_price,
            choice=ChoiceBounds(explore_cost=route.explore_cost),
        )
        self._arms = route.arms if route.is_paired else ()
        n_arms = max(1, len(self._arms))
        self.agent = Agent(MOST_CLASSES, len(self.settings), n_levels, bounds, n_arms=n_arms)
        self.choice: AgentChoice | None = None
        self._regret = RegretLog(len(self.settings), n_levels)
        self._classes: dict[str, int] = {}
        self._n_runs = np.zeros(MOST_CLASSES)
        self._finish = np.zeros((2, MOST_CLASSES))  # measured finishes, and tokens above the full run's answer
        self._answers = np.zeros((2, MOST_CLASSES))  # full runs, and tokens of their answers
        self._excess = np.zeros((2, MOST_CLASSES))  # live stops, and their tokens above what audits say
        self._received_s: tuple[float, float] | None = None  # of the first run and the last
        self._full: tuple[float, float] = 0.0, 0.0  # full runs, and their tokens
        self._proven: list[int] = []
        self._events: list[tuple[int, CostEvent]] = []  # by request
        self._added_at = [0] * MOST_CLASSES  # the request of the latest audit that was added again
        self._version = -1  # of the certifier, whose levels are known
        self._costs: list[AuditCosts] = []  # of the certifier's audits, in its order
        self._unjudged: list[int] = []  # places of those whose outcomes do not count yet
        self._given: dict[str, int] = {}  # levels that audits without an outcome would have been served at, by episode

    # ---- evidence --------------------------------------------------------------------------------

    def read(self, certifier: Certifier, audits: Sequence[Audit]) -> None:
        """Add the certifier's new audits at the levels of its version, and their outcomes once they count."""
        outcomes = certifier.outcomes()
        if outcomes is None:
            return
        n_known = 0
        if certifier.version != self._version:
            n_known, self._version = len(self._costs), certifier.version
            self._costs, self._unjudged = [], []
            self._relearn(certifier.n_levels)
        first = len(self._costs)
        replayed = certifier.epoch.replayed_costs(first)
        if replayed is not None:
            for place, audit, tokens, stops, full in zip(count(first), audits[first:], *replayed, strict=False):
                costs = AuditCosts(audit=audit, full_tokens=float(full), tokens=tokens, stops=stops)
                self._costs.append(costs)
                self._unjudged.append(place)
                self.add_audit(costs, again=place < n_known)
        mature, z = outcomes
        for place in self._unjudged:
            if mature[place]:
                self.add_losses(self._costs[place], z[place].astype(np.float64))
        self._unjudged = [place for place in self._unjudged if not mature[place]]

    def forget(self, n: int) -> None:
        """Drop the oldest audits, which the certifier has dropped."""
        self._costs = self._costs[n:]
        self._unjudged = [place - n for place in self._unjudged if place >= n]

    def _relearn(self, n_levels: int) -> None:
        self.agent.relearn(n_levels)
        self._added_at = [0] * MOST_CLASSES
        self._given = {}
        self._regret = RegretLog(len(self.settings), n_levels)
        self.choice = None

    def forget_losses(self, level: int) -> None:
        self.agent.values.forget_losses(level)

    def add_run(self, request: Request, outcome: Outcome, level: int, *, at: int) -> None:
        """Add request `at`, served at `level` of the version in use; only one that a stop could end is read."""
        if request.mode != "enforce" or request.audit or request.delivery > 1:
            return
        c = self._class(request)
        if c is None or outcome.usage is None or outcome.end_reason not in ENDED:
            return
        arm = _drawn(request)
        setting = 0 if arm is None else self._place(arm)
        level = 0 if arm == FULL else level
        self._n_runs[c] += 1
        if self._has_finish and level and self._answers[0, c]:
            excess = stop_excess(outcome, _mean(self._answers[:, c]) + _mean(self._finish[:, c]))
            if excess is not None:
                self._excess[:, c] = KEPT * self._excess[:, c] + (1, excess)
        if setting is not None:
            tokens = spent_tokens(outcome.usage, outcome.overhead)
            self.agent.add_run(c, setting, level, tokens=tokens, seconds=outcome.duration_s, at=at)

    def add_audit(self, costs: AuditCosts, *, again: bool = False) -> None:
        """Add an audit that has returned; `again`: it was added before, under the levels of another version."""
        request, outcome = costs.audit.episode.request, costs.audit.outcome
        c, arm = self._class(request), _drawn(request)
        if c is None:
            return
        self._n_runs[c] += not again
        tokens, answer = costs.tokens, finish_tokens(outcome)
        if self._has_finish and not again:
            self._answers[:, c] = KEPT * self._answers[:, c] + (1, _answer_tokens(outcome))
            if answer is not None:
                self._finish[:, c] = FORGET * self._finish[:, c] + (1, answer - _answer_tokens(outcome))
        if self._has_finish:
            excess = _mean(self._finish[:, c])
            if answer is not None and not again:  # what a finish cost long ago says nothing of today's
                excess = answer - _answer_tokens(outcome)
            tokens = tokens + excess * costs.stops
        setting = 0 if arm is None else self._place(arm)
        if setting is None or (arm or "").startswith("wave="):  # costs are replayed with the route's own wave
            return
        if self.choice is not None and not again:
            self._given[costs.audit.id] = _level_given(self.choice.classes[c], setting, arm)
        is_watched = not again and (answer is not None or not self._has_finish)
        self.agent.add_audit(
            c,
            setting,
            full_tokens=costs.full_tokens,
            tokens=tokens,
            stops=costs.stops if self._has_finish else None,
            n_requests=self._n_passed(c, costs.audit.at) if again else 1.0,
            is_watched=is_watched,
            at=costs.audit.at,
        )
        self._full = self._full[0] + 1, self._full[1] + costs.full_tokens

    def _n_passed(self, c: int, at: int) -> float:
        """About how many requests of the class came since its audit before."""
        before, self._added_at[c] = self._added_at[c], at
        return max(1.0, (at - before) * float(self._n_runs[c] / self._n_runs.sum())) if before else 1.0

    def add_losses(self, costs: AuditCosts, z: Floats) -> None:
        """Add the EM drop of an audit at each level, once it counts: +1, 0, -1 or nan, shape (levels,)."""
        request = costs.audit.episode.request
        c, arm = self._class(request), _drawn(request)
        if c is None:
            return
        self.agent.add_losses(c, z)
        setting, level = 0 if arm is None else self._place(arm), self._given.pop(costs.audit.id, None)
        if level is None or setting is None or not self._full[0]:
            return
        saved = (costs.full_tokens - costs.tokens) * costs.stops / (self._full[1] / self._full[0])
        gain, n_known = self.agent.token_price * saved - z, int((~np.isnan(z[1:])).sum())
        gain = np.nan_to_num(gain) * ((len(z) - 1) / max(1, n_known))
        self._regret.add(setting, self._observed_share(request, setting), min(level, len(z) - 1), gain)

    def _observed_share(self, request: Request, setting: int) -> float:
        """P(an audit shows these settings): the route's own also where full runs were drawn."""
        drawn = next((one for one in request.arms if one.experiment == AGENT), None)
        if drawn is None:
            return 1.0
        return sum(p for arm, p in ((drawn.arm, drawn.propensity), *drawn.others) if self._place(arm) == setting)

    # ---- decisions -------------------------------------------------------------------------------

    def look(
        self, n: int, level_of: Callable[[str], int], admits: Callable[[Mapping[str, int]], bool] = lambda _: True
    ) -> None:
        """Decide anew at request `n`.

        level_of  gives the highest level that a class may use, by its name
        admits    whether classes may get these levels together; if not, all get the highest, or full runs
        """
        n_full, total = self._full
        if self.route.token_price and n_full:
            self.agent.token_price = self.route.token_price * total / n_full / 1_000
        proven = [0] * MOST_CLASSES
        for name, c in self._classes.items():
            proven[c] = level_of(name)
        self.agent.expect_stop_excess(self._excess[1] / (self._excess[0] + PRIOR_STOPS))
        self.choice = self.agent.look(
            proven,
            horizon=self._horizon(),
            admits=lambda levels: admits({name: levels[c] for name, c in self._classes.items()}),
        )
        self._proven = proven
        self._events += [(n, event) for event in self.choice.events]
        for event in self.choice.events:
            if event.change == "stops_paying":  # for the time being: whether it pays again, audits are to tell
                self._excess[:, event.query_class] = 0.0

    @property
    def _has_finish(self) -> bool:
        """Whether a stop asks for an answer, whose cost no full run shows."""
        return self.route.kind == "reasoning" and not self.route.is_paired

    @property
    def most_proven(self) -> int:
        """The highest level that any class may use."""
        return max(self._proven, default=0)

    def over_best_fixed(self) -> Regret | None:
        """What the best fixed level and settings would have earned above the agent; None: too few audits."""
        return self._regret.of_best_fixed(self.most_proven)

    def plan(self, held: RouteDeployment, *, at: int, author: str) -> AgentPlan | None:
        """Return the plan if it differs from the active one, or that one's figures are old."""
        epoch, before = held.epoch, held.plan
        if self.choice is None or epoch is None or not any(self._proven):
            return None
        classes = tuple(self._class_plan(name, c) for name, c in sorted(self._classes.items()))
        if before is not None and _same(before.classes, classes) and at < before.at + REPEATED:
            return None
        since = before.at if before is not None else 0
        events, self._events = [event for n, event in self._events if n > since], []
        return AgentPlan(
            route=epoch.route,
            number=held.n_plans + 1,
            epoch=epoch.number,
            at=at,
            classes=classes,
            token_price=self.agent.token_price,
            reason="; ".join([*self._learned(events), *_changes(before, classes)]) or self._expectation(classes),
            author=author,
            alert="; ".join(self._alerts()),
            idle=self._regret.of_idle(),
            best_fixed=self.over_best_fixed(),
        )

    def _draws(self, c: int) -> tuple[PlannedDraw, ...]:
        assert self.choice is not None
        made, most = self.choice.classes[c], self._proven[c]
        full, *shares = made.shares
        arms = ("", *self._arms) if self._arms else ()
        draws = [
            PlannedDraw(
                settings=name,
                share=share,
                ceiling=None if level >= most else level,
                arm=arms[min(level, most)] if arms else "",
            )
            for name, share, level in zip(self.settings, shares, made.levels, strict=True)
            if share > 0
        ]
        if full > 0:
            draws.append(PlannedDraw(settings=FULL if draws else "", share=full, ceiling=0))
        return tuple(draws)

    def _class_plan(self, name: str, c: int) -> ClassPlan:
        assert self.choice is not None
        made, values = self.choice.classes[c], self.agent.values
        at = np.arange(len(made.levels)), np.array(made.levels)
        shares = np.array(made.shares[1:])
        saving, loss = 1 - values.cost[c][at], values.loss[c][at[1]]
        return ClassPlan(
            query_class=name,
            draws=self._draws(c),
            saving=round(float(shares @ saving), 4),
            em_drop=round(float(shares @ loss), 5),
            n_audits=round(values.n_audits(c)),
        )

    def _learned(self, events: list[CostEvent]) -> Iterator[str]:
        for event in events:
            name, what = self._name(event.query_class), self._action(event.action)
            if event.change == "stops_paying":
                yield f"class {name}: {what} saves less than half of the {event.promised:.0%} it promised"
            elif event.change == "pays_again":
                yield f"class {name}: {what} pays again"

    def _action(self, action: int) -> str:
        if self._arms:
            return self._arms[action % len(self._arms)]
        settings = self.settings[action]
        return f"stopping with {settings}" if settings else "stopping"

    def _alerts(self) -> Iterator[str]:
        for c in np.flatnonzero(self.agent.guard.is_dear.any(axis=1)).tolist():
            yield f"class {self._name(c)}: a stopped run costs more than a full run"

    def _expectation(self, classes: tuple[ClassPlan, ...]) -> str:
        shares = self._n_runs / max(1.0, self._n_runs.sum())
        saving, drop = (
            sum(shares[self._classes[one.query_class]] * getattr(one, what) for one in classes)
            for what in ("saving", "em_drop")
        )
        return f"the route's own audits say that it saves {saving:.0%} of the tokens and loses {100 * drop:.2f} points"

    # ---- names and places --------------------------------------------------------------------------

    def _class(self, request: Request) -> int | None:
        name = class_of(request.query)
        if name not in self._classes:
            if len(self._classes) == MOST_CLASSES:
                return None
            self._classes[name] = len(self._classes)
        first = request.received_at_s if self._received_s is None else self._received_s[0]
        self._received_s = first, request.received_at_s
        return self._classes[name]

    def _name(self, c: int) -> str:
        return list(self._classes)[c] or "(none)"

    def _place(self, settings: str) -> int | None:
        if settings == FULL:
            return 0
        return self.settings.index(settings) if settings in self.settings else None

    def _horizon(self) -> list[float]:
        first, last = self._received_s or (0.0, 0.0)
        part = MONTH_S / max(1.0, last - first)  # of a month that has been seen
        return [float(n) for n in np.minimum(STEADY, part * self._n_runs)]


def _drawn(request: Request) -> str | None:
    """The settings that the agent drew for a request; None: nothing was drawn."""
    return next((one.arm for one in request.arms if one.experiment == AGENT), None)


def _level_given(choice: ClassChoice, setting: int, arm: str | None) -> int:
    """The level of a request that drew this arm, or None because there was one choice only."""
    is_full = arm == FULL if arm is not None else not choice.best
    return 0 if is_full else choice.levels[setting]


def finish_tokens(outcome: Outcome) -> float | None:
    """Tokens of the finish that an audit measured; None: it measured none."""
    if outcome.finish_step is None or outcome.finish_answer is None:
        return None
    return float(outcome.overhead.probe_tokens - sum(step.probe_tokens for step in outcome.steps))


def _mean(sums: Floats) -> float:
    n, total = sums.tolist()
    return total / n if n else 0.0


def _answer_tokens(outcome: Outcome) -> float:
    return 0.0 if outcome.usage is None else outcome.usage.completion_tokens - outcome.usage.reasoning_tokens


def _same(before: tuple[ClassPlan, ...], after: tuple[ClassPlan, ...]) -> bool:
    """Whether two plans draw alike."""
    known = {one.query_class: _table(one) for one in before}
    for one in after:
        old, new = known.get(one.query_class, _table(None)), _table(one)
        if any(abs(old.get(what, 0.0) - new.get(what, 0.0)) > MOVED for what in {*old, *new}):
            return False
    return True


def _table(plan: ClassPlan | None) -> dict[tuple[str, int | None, str], float]:
    if plan is None:
        return {("", None, ""): 1.0}
    return {(one.settings, one.ceiling, one.arm): one.share for one in plan.draws}


def _changes(before: AgentPlan | None, classes: tuple[ClassPlan, ...]) -> Iterator[str]:
    for one in classes:
        old = before.of_class(one.query_class) if before is not None else None
        if old is None and before is None and len(one.draws) == 1 and one.draws[0].ceiling is None:
            continue
        if old is not None and _same((old,), (one,)):
            continue
        best = max(one.draws, key=lambda draw: draw.share)
        name = one.query_class or "(none)"
        if best.ceiling == 0:
            yield f"class {name} runs in full"
        else:
            under = f" with {best.settings}" if best.settings else ""
            tries = f", and tries {len(one.draws) - 1} more settings" if len(one.draws) > 1 else ""
            does = f"{'is asked with' if best.arm else 'stops'} {describe_ceiling(best)}"
            yield f"class {name} {does}{under}: it saves {one.saving:.0%}{tries}"
