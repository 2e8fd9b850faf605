"""Experiments and rollouts of the simulated month, on a route with an operator-written policy."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeVar

from suffice.control.compare.experiments import read_experiment
from suffice.errors import SufficeError
from suffice.rollout.evidence import rules_of
from suffice.rollout.experiment import units_of
from suffice.rollout.results import summarize_arm
from suffice.serving.route import BuiltRoute
from suffice.serving.variants import RolloutTrial, RunningVariants, Variants
from suffice.settings import Settings
from suffice.store.database.decisions import Decisions
from suffice.store.database.views import open_reader
from suffice.store.routes import experiments, rollouts
from suffice.telemetry import Metrics
from suffice.types import Episode, Outcome, Request
from suffice.wiring.routes import build_route
from suffice_demo.month_traffic import QUIZ, SHARE, end_run, full_run
from suffice_demo.replayed_runs import replay_run

ROUTE: Final = "quiz"
HASTY: Final = {"policy": "stable-answer", "streak": 3}
SOBER: Final = {"policy": "beta", "threshold": 0.95}
AUTHOR: Final = "ann"


@dataclass(slots=True, kw_only=True)
class MonthTrials:
    settings: Settings
    writer: Decisions
    secret: str  # signs versions
    salt: str  # of the month's draws
    rng: random.Random  # its own, so that its requests do not change the draws of other routes
    base: BuiltRoute = field(init=False)
    variants: Variants = field(init=False)
    full_tokens: list[int] = field(default_factory=list)
    _tables: dict[str, dict[str, Any]] = field(default_factory=dict)  # proposed policies by address
    _plan: Iterator[tuple[float, Callable[[], object]]] = field(init=False)
    _next: tuple[float, Callable[[], object]] | None = field(init=False)

    def __post_init__(self) -> None:
        route = self.settings.routes[ROUTE]
        self.base = build_route(ROUTE, route, None, self.settings.upstreams[route.upstream])
        self.variants = Variants(salt=self.salt, metrics=Metrics())
        self._plan = self._calendar()
        self._next = next(self._plan)

    def _calendar(self) -> Iterator[tuple[float, Callable[[], object]]]:
        yield 0.02, lambda: self._start("brisk", "is it worth the trouble at all?")
        yield 0.30, lambda: self._stop("brisk", "it is: five equal answers stay")
        yield 0.31, lambda: self._propose(HASTY, "three equal answers would save two samples more")
        yield 0.50, lambda: self._roll_back("it takes too long")
        yield 0.51, lambda: self._propose(SOBER, "stops where a majority is all but sure")
        yield 0.80, lambda: self._start("patience", "riddles: would one more answer be worth it?")

    def pass_time(self, part: float) -> None:
        while self._next is not None and part >= self._next[0]:
            succeed(self._next[1]())
            self._next = next(self._plan, None)
            self.follow()

    def follow(self) -> None:
        with open_reader(self.writer.path) as connection:
            runs, tried = rollouts.read_rollouts(connection), experiments.read_experiments(connection)
        now = rollouts.read_running_rollouts(runs).get(ROUTE)
        own = rollouts.own_version(self.base.settings).address
        serves = rollouts.read_serving_version(runs, ROUTE, own)
        self.variants.running = RunningVariants(
            experiments.read_running_experiments(tried),
            {} if now is None else {ROUTE: RolloutTrial(state=now.state, policy=self._tables[now.state.candidate])},
            {} if serves == own else {ROUTE: self._tables[serves]},
        )

    def ask(self, number: int, *, at_s: float) -> tuple[Request, Outcome, str]:
        trial = self.variants.running.trials.get(ROUTE)
        share = SHARE if trial is None else max(SHARE, trial.state.audit_share or 0.0)
        request, outcome, right = full_run(number, QUIZ, self.rng, route=ROUTE, share=share, at_s=at_s)
        request = replace(request, setup=self.base.setup)
        served, arms = self.variants.place(self.base, lambda: units_of("", request=request.unit))
        request = replace(request, mode=served.settings.mode, policy_version=served.serving.version, arms=arms)
        replayed = replay_run(
            Episode(request=request, outcome=outcome), served.serving.policy, wave=self.base.settings.wave
        )
        acts = served.acts and not request.audit
        because = "its policy has seen enough"
        return request, end_run(outcome, replayed, self.full_tokens, acts=acts, because=because), right

    def _start(self, name: str, reason: str) -> object:
        experiment = self.settings.experiments[name]
        return experiments.start_experiment(self.writer, name, experiment, author=AUTHOR, reason=reason)

    def _stop(self, name: str, reason: str) -> object:
        path = self.writer.path
        (run,) = (one for one in experiments.read_experiments(path) if one.runs and one.experiment.name == name)
        result = read_experiment(path, run, self.settings)
        sentences = tuple(sentence for arm in result.arms for sentence in summarize_arm(result, arm))
        return experiments.stop_experiment(self.writer, name, author=AUTHOR, reason=reason, summary=sentences)

    def _propose(self, table: dict[str, Any], reason: str) -> object:
        route, runs = self.base.settings, rollouts.read_rollouts(self.writer.path)
        own, now_s = rollouts.own_version(route), self.writer.now()
        lineage = rollouts.lineage_of(f"person:{AUTHOR}", reason, now_s)
        version = rollouts.proposed_version(runs, ROUTE, route, table, lineage)
        self._tables[version.address] = table
        return rollouts.start_candidate(
            self.writer,
            succeed(rollouts.own_candidate(runs, version, route=ROUTE, own=own)),
            author=AUTHOR,
            reason=reason,
            name=f"{ROUTE}-{len(runs) + 1}",
            rules=rules_of(route),
            secret=self.secret,
        )

    def _roll_back(self, reason: str) -> object:
        if ROUTE not in rollouts.read_running_rollouts(rollouts.read_rollouts(self.writer.path)):
            return None
        return rollouts.step(self.writer, ROUTE, "rollback", author=AUTHOR, reason=reason)


T = TypeVar("T")


def succeed(result: T | str) -> T:
    """Raise SufficeError for a text, which says why there is no result."""
    if isinstance(result, str):
        raise SufficeError(f"demo: {result}")
    return result
